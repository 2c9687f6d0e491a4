"""Between robot units and the policy's [-1, 1], by the statistics of a training set. NumPy only, float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightvla_core.contract import Normalization, PolicyContract
from lightvla_core.errors import LightVLAError

Array = NDArray[np.float64]

_BOUNDS: dict[Normalization, tuple[str, str]] = {"bounds": ("min", "max"), "bounds_q99": ("q01", "q99")}
_EPSILON = 1e-8  # of the published formula: keeps a constant dimension finite


@dataclass(frozen=True)
class Bounds:
    """The two ends that map to -1 and 1, float64 (dim,) each, and the mask of dimensions that are mapped at all."""

    lower: Array
    upper: Array
    mask: NDArray[np.bool_]

    def normalize(self, values: Array) -> Array:
        """Robot units to [-1, 1]; everything is clipped, unmapped dimensions too (as the published evaluation does)."""
        mapped = 2 * (values - self.lower) / (self.upper - self.lower + _EPSILON) - 1
        return np.clip(np.where(self.mask, mapped, values), -1, 1)

    def unnormalize(self, values: Array) -> Array:
        """[-1, 1] to robot units, nothing clipped; unmapped dimensions pass through."""
        values = np.asarray(values, dtype=np.float64)
        mapped = 0.5 * (values + 1) * (self.upper - self.lower + _EPSILON) + self.lower
        return np.where(self.mask, mapped, values)


def read_bounds(entry: Mapping[str, Any], scheme: Normalization, size: int, where: str) -> Bounds:
    """Bounds from an `action` or `proprio` entry of dataset statistics; where names it in error sentences."""
    lower_key, upper_key = _BOUNDS[scheme]
    try:
        lower, upper = (np.asarray(entry[key], dtype=np.float64) for key in (lower_key, upper_key))
    except (KeyError, TypeError, ValueError) as error:
        raise LightVLAError(f"{where} lacks {error} as a list of numbers, which normalization {scheme} needs") from None
    mask = np.asarray(entry.get("mask", np.ones(lower.shape, dtype=bool)), dtype=bool)
    if not lower.shape == upper.shape == mask.shape == (size,):
        raise LightVLAError(
            f"{where} describes {lower.size} numbers, but the contract has {size}; are they another robot's?"
        )
    if not (np.isfinite(lower).all() and np.isfinite(upper).all() and (lower <= upper).all()):
        raise LightVLAError(f"{where} has a bound that is not finite or a {lower_key} above its {upper_key}")
    return Bounds(lower, upper, mask)


@dataclass(frozen=True)
class Normalizer:
    """The bounds that a contract names: of its actions, and of its proprioception where it has one."""

    action: Bounds
    proprio: Bounds | None

    @classmethod
    def from_statistics(cls, statistics: Mapping[str, Any], contract: PolicyContract, source: str) -> Normalizer:
        """statistics: dataset_statistics.json; a key like libero_x falls back to libero_x_no_noops, as published."""
        key = contract.statistics_key
        if key not in statistics and f"{key}_no_noops" in statistics:
            key = f"{key}_no_noops"
        if key not in statistics:
            raise LightVLAError(
                f"{source} has no statistics for {key!r}, which the contract names; it has {', '.join(statistics)}"
            )
        entry, scheme = statistics[key], contract.normalization
        action = read_bounds(entry.get("action", {}), scheme, len(contract.actions), f"{source}: {key}.action")
        if not contract.proprioception:
            return cls(action, None)
        size, where = len(contract.proprioception), f"{source}: {key}.proprio"
        return cls(action, read_bounds(entry.get("proprio", {}), scheme, size, where))

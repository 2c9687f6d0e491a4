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


def read_bounds(entry: Any, scheme: Normalization, size: int, where: str) -> Bounds:
    """Bounds from an `action` or `proprio` entry of dataset statistics; where names it in error sentences."""
    lower_key, upper_key = _BOUNDS[scheme]
    try:
        lower, upper = (np.asarray(entry[key], dtype=np.float64) for key in (lower_key, upper_key))
    except (KeyError, TypeError, ValueError):
        raise LightVLAError(
            f"{where} lacks {lower_key} and {upper_key} as lists of numbers, which normalization {scheme} needs"
        ) from None
    mask = entry.get("mask", [True] * size)
    if not isinstance(mask, list) or not all(value in (True, False) for value in mask):
        raise LightVLAError(f"{where} has a mask that is no list of true and false; copy it again")
    mask = np.asarray(mask, dtype=bool)
    for values in (lower, upper, mask):
        if values.shape != (size,):
            raise LightVLAError(
                f"{where} describes {values.size} numbers, but the contract has {size}; are they another robot's?"
            )
    if not (np.isfinite(lower).all() and np.isfinite(upper).all() and (lower <= upper).all()):
        raise LightVLAError(f"{where} has a bound that is not finite or a {lower_key} above its {upper_key}")
    return Bounds(lower, upper, mask)


def check_statistics(statistics: Any, source: str) -> dict[str, Any]:
    """The content of dataset_statistics.json, once it is known to be entries by the name of their data set."""
    if not isinstance(statistics, dict) or not all(isinstance(entry, dict) for entry in statistics.values()):
        raise LightVLAError(f"{source} should hold statistics under the name of each data set; copy it again")
    return statistics


def find_key(statistics: Mapping[str, Any], key: str, source: str) -> str:
    """The entry for this key; one like libero_x falls back to libero_x_no_noops, as in the published evaluation."""
    for name in (key, f"{key}_no_noops"):
        if name in statistics:
            return name
    raise LightVLAError(f"{source} has no statistics for {key!r}; it has {', '.join(statistics) or 'none'}")


@dataclass(frozen=True)
class Normalizer:
    """The bounds that a contract names: of its actions, and of its proprioception where it has one."""

    action: Bounds
    proprio: Bounds | None

    @classmethod
    def from_statistics(cls, statistics: Any, contract: PolicyContract, source: str) -> Normalizer:
        """statistics: the content of dataset_statistics.json; source names it in error sentences"""
        key = find_key(check_statistics(statistics, source), contract.statistics_key, source)
        entry, scheme = statistics[key], contract.normalization
        action = read_bounds(entry.get("action", {}), scheme, len(contract.actions), f"{source}: {key}.action")
        if not contract.proprioception:
            return cls(action, None)
        size, where = len(contract.proprioception), f"{source}: {key}.proprio"
        return cls(action, read_bounds(entry.get("proprio", {}), scheme, size, where))

"""What goes into a policy and what comes out of it. No torch here: nodes on the robot's side use these too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Observation:
    """One moment as the robot saw it.

    images: camera name (as in the contract) -> uint8 (height, width, 3), RGB, as the camera delivered it
    proprio: float64 (proprio_dim,), contract order, robot units; None where the contract has no proprioception
    instruction: what the robot should do, in words
    stamp: when it was taken, s, in the clock of the caller; copied through, never interpreted
    """

    images: Mapping[str, NDArray[np.uint8]]
    proprio: NDArray[np.float64] | None
    instruction: str
    stamp: float = 0.0


@dataclass(frozen=True)
class ActionChunk:
    """A prediction.

    actions: float64 (chunk_length, action_dim), robot units, contract order
    kept: camera name -> bool (rows, columns), which image patches survived the pruner
    timing: stage -> s
    stamp: the observation's, s
    """

    actions: NDArray[np.float64]
    kept: Mapping[str, NDArray[np.bool_]]
    timing: Mapping[str, float] = field(default_factory=dict)
    stamp: float = 0.0

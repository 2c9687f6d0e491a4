"""Temporal ensembling: what overlapping chunks plan for one moment, averaged. Pure.

Source: ACT (Zhao et al. 2023, "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware", section IV-A).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ensemble(plans: NDArray[np.float64], decay: float, held: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The average of plans, float64 (chunks, channels), the oldest chunk first -> (channels,).

    Plan i weighs exp(-decay * i), so that the oldest weighs most and a larger decay trusts it more.
    held: boolean (channels,), the channels that take the newest plan as it is: a binary gripper has no average
    """
    weights = np.exp(-decay * np.arange(len(plans)))
    average: NDArray[np.float64] = (weights / weights.sum()) @ plans
    return np.where(held, plans[-1], average)

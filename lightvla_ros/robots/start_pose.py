"""The slow way to the start pose, as a curve over time. Pure; limits and watchdogs are execution's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The fastest that any channel moves, rad/s (a gripper: 1/s), and the share of its own limit that it never exceeds.
SPEED = 0.3
_SHARE = 0.25
# Of a cubic from rest to rest, its largest speed over its mean.
_PEAK = 1.5


# Of a stalled control loop, how many periods at most the move goes on by at once.
_CATCH_UP = 2.0


class StartMove:
    """All channels leave and arrive together, from rest to rest, in a time of the move's own.

    start, goal: (channels,); max_velocity: (channels,) per s; began: s, steady clock
    """

    def __init__(
        self,
        start: NDArray[np.float64],
        goal: NDArray[np.float64],
        max_velocity: NDArray[np.float64],
        began: float,
    ) -> None:
        self._start, self._goal = start, goal
        self._elapsed, self._last = 0.0, began
        speeds = np.minimum(SPEED, _SHARE * max_velocity)
        self.duration = float(np.max(_PEAK * np.abs(goal - start) / speeds, initial=0.0))

    def advance(self, now: float, period: float) -> NDArray[np.float64]:
        """Where the channels should be, (channels,); the goal from its end on.

        now: s, steady clock; period: of the control loop, s: after a stall the move goes on where it was
        """
        self._elapsed += min(max(0.0, now - self._last), _CATCH_UP * period)
        self._last = now
        share = 1.0 if self.done else self._elapsed / self.duration
        position: NDArray[np.float64] = self._start + share * share * (3.0 - 2.0 * share) * (self._goal - self._start)
        return position

    @property
    def done(self) -> bool:
        return self._elapsed >= self.duration

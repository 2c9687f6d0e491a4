"""Plan time: the ROS clock stretched by the speed at which chunks are executed. Pure; no clock of its own.

At speed 0.5 a second of the clock is half a second of the plan, so that every planned step lasts twice as long.
"""

from __future__ import annotations

from collections import deque

from lightvla_core.errors import LightVLAError

_SLOWEST = 0.1
# Changes that are remembered; an observation older than the oldest of them is taken as that old.
_CHANGES = 64


class PlanClock:
    """A piecewise linear map of the ROS clock, s, that never runs backward. Raises LightVLAError as set_speed does."""

    def __init__(self, speed: float = 1.0) -> None:
        check_speed(speed)
        # (ROS time, plan time, speed) from that ROS time on; before the first, plan time ran at full speed.
        self._changes: deque[tuple[float, float, float]] = deque([(0.0, 0.0, speed)], maxlen=_CHANGES)

    @property
    def speed(self) -> float:
        return self._changes[-1][2]

    def at(self, ros: float) -> float:
        """The plan time of a moment, which may lie in the past."""
        for since, plan, speed in reversed(self._changes):
            if ros >= since:
                return plan + speed * (ros - since)
        since, plan, _ = self._changes[0]
        return plan + (ros - since)

    def set_speed(self, speed: float, ros: float) -> None:
        """From this moment on (s, ROS clock). Raises LightVLAError for a speed outside 0.1 to 1."""
        check_speed(speed)
        if speed != self.speed:
            self._changes.append((ros, self.at(ros), speed))

    def forget(self) -> None:
        """The clock jumped: what was before means nothing any more, only the speed stays."""
        speed = self.speed
        self._changes.clear()
        self._changes.append((0.0, 0.0, speed))


def check_speed(speed: float) -> None:
    """Raise LightVLAError for a speed outside 0.1 to 1."""
    if not _SLOWEST <= speed <= 1.0:
        raise LightVLAError(f"speed should be between {_SLOWEST} and 1, but is {speed}")

"""What watches the inputs of the executor: ages of the joint states, the ROS clock, the operator's heartbeat. Pure.

Every moment is an argument. What a finding leads to, the latched stop, is in safety.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightvla_ros.safety import Now


class StateWatch:
    """Ages of the joint states: of the header stamp by the ROS clock and of the receipt by a steady clock.

    sources: whose states are needed, such as one an arm; timeout: the largest age of either kind, s
    """

    def __init__(self, sources: Sequence[str], timeout: float, future_tolerance: float) -> None:
        self.timeout, self.future_tolerance = timeout, future_tolerance
        self._seen: dict[str, Now | None] = dict.fromkeys(sources)

    def feed(self, source: str, stamp: float, received: float) -> None:
        """A joint state with this header stamp (s, ROS clock) came at this moment (s, steady clock)."""
        if source in self._seen:
            self._seen[source] = Now(stamp, received)

    def stale(self, now: Now) -> str | None:
        """One sentence on the first source that is not fresh, or None."""
        for source, seen in self._seen.items():
            if seen is None:
                return f"no joint state from {source} yet"
            if now.steady - seen.steady > self.timeout:
                return f"no joint state from {source} for more than {self.timeout:g} s"
            age = now.ros - seen.ros
            if age > self.timeout:
                return f"the joint state of {source} is stamped {age:.3f} s ago, more than {self.timeout:g} s"
            # Written so that a NaN age, too, is no fresh one.
            if not -age <= self.future_tolerance:
                return (
                    f"the joint state of {source} is stamped {-age:.3f} s in the future: are the clocks synchronised?"
                )
        return None


class ClockWatch:
    """Notices a ROS clock that stands still, goes back or leaps, by comparing it with the steady clock.

    frozen_after: longest time without any advance, s; max_leap: largest advance beyond the steady clock's, s
    """

    def __init__(self, frozen_after: float, max_leap: float) -> None:
        self.frozen_after, self.max_leap = frozen_after, max_leap
        self._advanced: Now | None = None

    def check(self, now: Now) -> str | None:
        """Call once a period. One sentence on what is wrong with the clock, or None."""
        before = self._advanced
        if before is None or now.ros > before.ros:
            self._advanced = now
        if before is None:
            return None
        if now.ros < before.ros:
            self._advanced = now
            return f"the ROS clock went back by {before.ros - now.ros:.3f} s"
        leap = (now.ros - before.ros) - (now.steady - before.steady)
        if leap > self.max_leap:
            return f"the ROS clock leapt ahead by {leap:.3f} s"
        if now.ros == before.ros and now.steady - before.steady > self.frozen_after:
            return f"the ROS clock has stood still for {self.frozen_after:g} s"
        return None


class HeartbeatWatch:
    """A heartbeat that somebody must keep up, by its receipt on the steady clock.

    timeout: longest silence, s; None where no heartbeat is required
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._last = -math.inf

    def feed(self, received: float) -> None:
        """A heartbeat came at this moment, s, steady clock."""
        self._last = received

    def silent(self, now: Now) -> str | None:
        """One sentence when the heartbeat is missing, or None."""
        if self.timeout is None or now.steady - self._last <= self.timeout:
            return None
        return f"no heartbeat of the operator for more than {self.timeout:g} s"

"""Deadlines for a loop that simulates at the speed of the wall clock, and how well it did. Reads no clock itself."""

from __future__ import annotations

# Falling behind by more than this is given up instead of caught up, so that a stalled machine sees no burst of steps.
_MAX_BACKLOG = 0.1


class Pacer:
    """Absolute deadlines, one a period (s). All times are s on one steady clock of the caller's."""

    def __init__(self, period: float, now: float) -> None:
        self._period = period
        self._deadline = now
        self._window_start = now
        self._window_ticks = 0
        self._window_lateness = 0.0

    def wait(self, now: float) -> float:
        """How long to sleep until the next tick is due, s; 0 when it is due or late."""
        return max(0.0, self._deadline - now)

    def tick(self, now: float) -> None:
        """Count a tick that begins now and set the next deadline."""
        lateness = now - self._deadline
        self._window_lateness = max(self._window_lateness, lateness)
        self._window_ticks += 1
        self._deadline += self._period
        if lateness > _MAX_BACKLOG:
            self._deadline = now + self._period

    def report(self, now: float) -> tuple[float, float]:
        """Real-time factor and largest lateness (s) since the last report; 1.0 keeps up with the wall clock."""
        elapsed = max(now - self._window_start, 1e-9)
        factor, lateness = self._window_ticks * self._period / elapsed, self._window_lateness
        self._window_start, self._window_ticks, self._window_lateness = now, 0, 0.0
        return factor, lateness

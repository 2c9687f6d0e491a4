"""When the policy infers next, from the planned times of the chunk it published last, and how long it took. Pure.

How a chunk is executed is the executor's business (lightvla_ros.chunk_schedule).
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lightvla_core.errors import LightVLAError
from lightvla_ros.observation import FUTURE_TOLERANCE

Mode = Literal["open_loop", "receding_horizon", "prefetch"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True)
class InferenceTiming:
    """The rule.

    mode: `open_loop`, a chunk is executed to its end before the next observation is taken; `receding_horizon`, the
        next observation is taken replan_steps steps after the last, and with 0 as soon as its inference is done;
        `prefetch`, so early before a chunk's end that the next one arrives in time, by the latency measured so far
    period: s, one step at full speed; chunk_length: steps
    Raises LightVLAError for values that contradict each other.
    """

    mode: Mode
    period: float
    chunk_length: int
    replan_steps: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise LightVLAError(f"mode is '{self.mode}'; expected one of {', '.join(MODES)}")
        if not 0 <= self.replan_steps <= self.chunk_length:
            raise LightVLAError(
                f"replan_steps is {self.replan_steps}; a chunk of this policy has {self.chunk_length} steps, "
                f"so it must be in 0..{self.chunk_length}"
            )

    def wait(self, now: float, published: float | None, latency: float = 0.0, speed: float = 1.0) -> float:
        """Seconds until the next observation is due, 0 when it is. Times are s in the ROS clock.

        published: the stamp of the observation behind the chunk published last, or None where no chunk is in force
        (at the start, after a new instruction). A stamp far later than now is of a time before the clock jumped back.
        latency: s, which nearly every inference stayed below, NaN before the first; speed: of the execution, 0.1..1
        """
        if published is None or published > now + FUTURE_TOLERANCE:
            return 0.0
        due = published + self._steps * self.period / speed
        if self.mode == "prefetch":
            # One step of grace: for the message's way, and since steps begin on the executor's own grid.
            due -= self.period + (latency if latency == latency else self.chunk_length * self.period)
        return max(0.0, due - now)

    @property
    def _steps(self) -> int:
        return self.replan_steps if self.mode == "receding_horizon" else self.chunk_length


class LatencyWindow:
    """The last durations, s, and their percentiles; written by one thread and read by another."""

    def __init__(self, length: int = 500) -> None:
        self._seconds: deque[float] = deque(maxlen=length)
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        with self._lock:
            self._seconds.append(seconds)

    def percentile(self, percent: float) -> float:
        """s; NaN while nothing was measured."""
        with self._lock:
            seconds = list(self._seconds)
        return float(np.percentile(seconds, percent)) if seconds else float("nan")

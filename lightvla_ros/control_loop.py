"""A thread that calls a function at absolute deadlines, and how late it was. No ROS; what is called is not its matter.

A dedicated thread, because an executor's timer was measured to be off by 4 ms at the median where this is by 0.01 ms.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError

# How long a thread may keep the interpreter during a tick, s: with the shorter time of real_time.py, whoever waits
# would take turns with it all the time. A thread that the tick interrupted gets its turn nevertheless, and keeps it for
# this long.
_UNDISTURBED = 0.0005
# Between two collections of garbage, s.
_COLLECTION_PERIOD = 1.0
# The longest that stopping waits for a sleep to end, s.
_SLICE = 0.05


class Ring:
    """The last `capacity` numbers, in memory allocated once."""

    def __init__(self, capacity: int) -> None:
        self._values = np.zeros(capacity)
        self.count = 0

    def add(self, value: float) -> None:
        self._values[self.count % len(self._values)] = value
        self.count += 1

    def clear(self) -> None:
        self.count = 0

    def held(self) -> NDArray[np.float64]:
        """A copy of what is held, in no particular order."""
        return self._values[: min(self.count, len(self._values))].copy()


def percentiles(values: NDArray[np.float64], *percents: float) -> list[float]:
    """Percentiles, NaN where there are no values."""
    return [float("nan")] * len(percents) if len(values) == 0 else np.percentile(values, percents).tolist()


@dataclass(frozen=True)
class LoopStatistics:
    """Since the last reset: achieved rate Hz, lateness against the ideal deadlines s, periods run and missed."""

    rate: float
    lateness_p50: float
    lateness_p99: float
    lateness_max: float
    periods: int
    missed: int


class ControlLoop:
    """Calls tick(deadline) once a period on its own thread; deadline: when it was due, s, time.monotonic.

    A period whose begin passes during the tick before is skipped and counted as missed, never made up for: two commands
    right after each other would be faster than one period's limits allow.
    While it runs it collects the process's garbage, where there is time for it.
    on_error: what to do with an exception of tick, after which the loop has ended
    priority: SCHED_FIFO priority of the thread, 0 for that of whoever starts it, which it keeps where none is given
    period: s; may be changed by tick, and counts from the next deadline on
    """

    def __init__(
        self,
        period: float,
        tick: Callable[[float], None],
        on_error: Callable[[Exception], None],
        history: int = 32_768,
        priority: int = 0,
    ) -> None:
        if not 0.0005 <= period <= 10.0:
            raise LightVLAError(f"a control period of {period} s is not possible, expected 0.0005 to 10 s")
        self.period, self._tick, self._on_error, self._priority = period, tick, on_error, priority
        self._lateness = Ring(history)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._running = False
        self._next_collection = 0.0
        self.reset()

    @property
    def running(self) -> bool:
        """Whether ticks still come; False as soon as on_error is called."""
        return self._running

    def start(self) -> None:
        self._stopping.clear()
        self._running = True
        self._thread = threading.Thread(target=self._run, name="control_loop", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return once the last tick is over; does nothing when called from tick itself or when nothing runs."""
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None

    def reset(self) -> None:
        """Begin the statistics anew."""
        with self._lock:
            self._lateness.clear()
            self._worst, self._missed = 0.0, 0
            self._first = self._latest = float("nan")

    def statistics(self) -> LoopStatistics:
        with self._lock:
            held, periods = self._lateness.held(), self._lateness.count
            elapsed, worst, missed = self._latest - self._first, self._worst, self._missed
        rate = (periods - 1) / elapsed if periods > 1 else float("nan")
        p50, p99 = percentiles(held, 50, 99)
        return LoopStatistics(rate, p50, p99, worst, periods, missed)

    def _run(self) -> None:
        gc.disable()
        try:
            self._ask_for_priority()
            deadline = time.monotonic() + self.period
            while not self._wait(deadline):
                self._record(deadline, time.monotonic())
                with _undisturbed():
                    self._tick(deadline)
                self._collect_garbage(deadline)
                deadline = self._next(deadline, time.monotonic())
        except Exception as error:
            self._running = False
            self._on_error(error)
        finally:
            self._running = False
            gc.enable()

    def _ask_for_priority(self) -> None:
        """What the process may have (see real_time.py) can be less by now; the loop then runs without."""
        if self._priority:
            with contextlib.suppress(OSError, AttributeError):
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(self._priority))

    def _wait(self, deadline: float) -> bool:
        """Sleep until the deadline; True when the loop is to end. Sleeps, not Event.wait, which is less exact."""
        while (left := deadline - time.monotonic()) > _SLICE and not self._stopping.is_set():
            time.sleep(min(_SLICE, left - _SLICE / 2))
        if not self._stopping.is_set():
            time.sleep(max(0.0, deadline - time.monotonic()))
        return self._stopping.is_set()

    def _collect_garbage(self, deadline: float) -> None:
        """Once a second, right after a tick and where there is time until the next."""
        if deadline < self._next_collection or time.monotonic() > deadline + self.period / 2:
            return
        self._next_collection = deadline + _COLLECTION_PERIOD
        gc.collect()

    def _next(self, deadline: float, now: float) -> float:
        skipped = max(0, int((now - deadline) / self.period))
        with self._lock:
            self._missed += skipped
        return deadline + (skipped + 1) * self.period

    def _record(self, deadline: float, now: float) -> None:
        with self._lock:
            self._lateness.add(now - deadline)
            self._worst = max(self._worst, now - deadline)
            if self._lateness.count == 1:
                self._first = now
            self._latest = now


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let whoever waits for the interpreter interrupt this block less often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_UNDISTURBED)
    try:
        yield
    finally:
        sys.setswitchinterval(before)

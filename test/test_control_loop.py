"""The control loop's thread. Its timing is measured by benchmarks; here only what does not depend on the machine."""

from __future__ import annotations

import gc
import sys
import threading
import time

import numpy as np
import pytest

from lightvla_core.errors import LightVLAError
from lightvla_ros.control_loop import ControlLoop, Ring, percentiles

PERIOD = 0.005


def deadlines_of(ticks: int, stall_at: int = -1) -> tuple[list[float], ControlLoop]:
    """Run so many ticks; one of them may take four and a half periods."""
    seen: list[float] = []
    done = threading.Event()

    def tick(deadline: float) -> None:
        seen.append(deadline)
        if len(seen) == stall_at:
            time.sleep(4.5 * PERIOD)
        if len(seen) >= ticks:
            done.set()

    loop = ControlLoop(PERIOD, tick, lambda error: done.set())
    loop.start()
    assert done.wait(10.0)
    loop.stop()
    return seen, loop


def test_deadlines_lie_on_one_grid_and_are_never_repeated() -> None:
    seen, _ = deadlines_of(30)
    steps = np.diff(seen) / PERIOD
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
    assert steps.min() > 0.5


def test_missed_periods_are_skipped_and_counted_never_bunched() -> None:
    seen, loop = deadlines_of(20, stall_at=10)
    assert seen[10] - seen[9] >= 4.9 * PERIOD
    assert np.diff(seen).min() > 0.9 * PERIOD
    assert loop.statistics().missed >= 4


def test_no_overdue_period_begins_right_after_a_late_tick() -> None:
    loop = ControlLoop(PERIOD, lambda deadline: None, lambda error: None)
    for ended, expected, missed in ((0.2, 1, 0), (1.1, 2, 1), (1.9, 2, 1), (2.1, 3, 2), (4.5, 5, 4)):
        loop.reset()
        assert loop._next(100.0, 100.0 + ended * PERIOD) == pytest.approx(100.0 + expected * PERIOD)
        assert loop.statistics().missed == missed


def test_statistics_count_periods_and_start_anew() -> None:
    seen, loop = deadlines_of(20)
    statistics = loop.statistics()
    assert statistics.periods == len(seen)
    assert 0.0 <= statistics.lateness_p50 <= statistics.lateness_p99 <= statistics.lateness_max
    loop.reset()
    assert loop.statistics().periods == 0


def test_no_tick_follows_stop() -> None:
    seen, _ = deadlines_of(5)
    count = len(seen)
    time.sleep(3 * PERIOD)
    assert len(seen) == count


def test_exception_in_a_tick_is_handed_over_and_ends_the_loop() -> None:
    caught: list[Exception] = []
    done = threading.Event()

    def tick(deadline: float) -> None:
        raise ValueError("no")

    def on_error(error: Exception) -> None:
        caught.append(error)
        done.set()

    loop = ControlLoop(PERIOD, tick, on_error)
    loop.start()
    assert done.wait(5.0)
    loop.stop()
    assert [str(e) for e in caught] == ["no"]
    assert not loop.running


def test_stopping_does_not_wait_for_a_long_period() -> None:
    loop = ControlLoop(5.0, lambda deadline: None, lambda error: None)
    loop.start()
    assert loop.running
    began = time.monotonic()
    loop.stop()
    assert time.monotonic() - began < 1.0
    assert not loop.running


def test_long_period_is_slept_to_its_deadline_all_the_same() -> None:
    late: list[float] = []
    done = threading.Event()

    def tick(deadline: float) -> None:
        late.append(time.monotonic() - deadline)
        done.set()

    loop = ControlLoop(0.18, tick, lambda error: done.set())
    loop.start()
    assert done.wait(5.0)
    loop.stop()
    assert late[0] >= 0.0


def test_priority_that_is_not_given_is_done_without() -> None:
    done = threading.Event()
    loop = ControlLoop(PERIOD, lambda deadline: done.set(), lambda error: None, priority=1000)
    loop.start()
    assert done.wait(5.0)
    loop.stop()


def test_garbage_is_collected_as_usual_when_no_loop_runs() -> None:
    within: list[bool] = []
    done = threading.Event()

    def tick(deadline: float) -> None:
        within.append(gc.isenabled())
        done.set()

    loop = ControlLoop(PERIOD, tick, lambda error: None)
    loop.start()
    assert done.wait(5.0)
    loop.stop()
    assert not any(within)
    assert gc.isenabled()


def test_impossible_period_is_refused() -> None:
    with pytest.raises(LightVLAError, match="control period"):
        ControlLoop(0.0, lambda deadline: None, lambda error: None)


def test_ring_forgets_the_oldest() -> None:
    ring = Ring(4)
    assert np.isnan(percentiles(ring.held(), 50)).all()
    for value in range(10):
        ring.add(value)
    assert percentiles(ring.held(), 0, 100) == [6.0, 9.0]


def test_a_tick_may_keep_the_interpreter_longer_and_others_have_it_back_whatever_happens() -> None:
    before, seen, ended = sys.getswitchinterval(), [], threading.Event()

    def tick(deadline: float) -> None:
        seen.append(sys.getswitchinterval())
        raise RuntimeError("inside")

    try:
        sys.setswitchinterval(0.00002)
        loop = ControlLoop(PERIOD, tick, lambda error: ended.set())
        loop.start()
        assert ended.wait(10.0)
        loop.stop()
        assert seen == [pytest.approx(0.0005)]
        assert sys.getswitchinterval() == pytest.approx(0.00002)
    finally:
        sys.setswitchinterval(before)

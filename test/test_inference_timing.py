"""When the policy infers next."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightvla_core.errors import LightVLAError
from lightvla_ros.inference_timing import InferenceTiming, LatencyWindow

DT = 0.04
OPEN_LOOP = InferenceTiming("open_loop", DT, chunk_length=25)
EVERY_10 = InferenceTiming("receding_horizon", DT, chunk_length=25, replan_steps=10)
PREFETCH = InferenceTiming("prefetch", DT, chunk_length=25)
AT_ONCE = InferenceTiming("receding_horizon", DT, chunk_length=25)


@pytest.mark.parametrize("timing", [OPEN_LOOP, EVERY_10, AT_ONCE, PREFETCH])
def test_first_inference_is_due_at_once(timing: InferenceTiming) -> None:
    assert timing.wait(100.0, None) == 0.0


def test_open_loop_waits_until_every_step_of_the_chunk_was_executed() -> None:
    assert OPEN_LOOP.wait(100.1, published=100.0) == pytest.approx(0.9)
    assert OPEN_LOOP.wait(101.0, published=100.0) == 0.0


def test_receding_horizon_waits_n_steps_from_the_last_observation() -> None:
    assert EVERY_10.wait(100.1, published=100.0) == pytest.approx(0.3)
    assert EVERY_10.wait(100.4, published=100.0) == 0.0


def test_receding_horizon_of_zero_steps_goes_on_as_soon_as_the_last_inference_is_done() -> None:
    assert AT_ONCE.wait(100.0, published=100.0) == 0.0


@pytest.mark.parametrize("latency", [0.0, 0.06, 0.5])
def test_prefetch_observes_so_early_that_the_next_chunk_is_there_a_step_before_the_end(latency: float) -> None:
    due = 100.1 + PREFETCH.wait(100.1, published=100.0, latency=latency)
    assert due + latency == pytest.approx(101.0 - DT)


def test_prefetch_with_an_inference_longer_than_a_chunk_or_not_yet_measured_goes_on_at_once() -> None:
    assert PREFETCH.wait(100.0, published=100.0, latency=2.0) == 0.0
    assert PREFETCH.wait(100.0, published=100.0, latency=math.nan) == 0.0


def test_waiting_stretches_with_the_speed_of_execution() -> None:
    assert OPEN_LOOP.wait(100.1, published=100.0, speed=0.5) == pytest.approx(1.9)
    assert EVERY_10.wait(100.1, published=100.0, speed=0.5) == pytest.approx(0.7)
    assert PREFETCH.wait(100.0, published=100.0, latency=0.06, speed=0.5) == pytest.approx(2.0 - DT - 0.06)


def test_chunk_of_a_time_before_the_clock_jumped_back_is_not_waited_for() -> None:
    assert OPEN_LOOP.wait(50.0, published=100.0) == 0.0


def test_observation_stamped_slightly_ahead_of_the_clock_is_still_waited_for() -> None:
    assert OPEN_LOOP.wait(100.0, published=100.03) == pytest.approx(1.03)


@given(
    mode=st.sampled_from(["open_loop", "receding_horizon", "prefetch"]),
    steps=st.integers(0, 25),
    now=st.floats(0.0, 1e9),
    published=st.none() | st.floats(0.0, 1e9),
)
def test_wait_is_never_negative_nor_longer_than_a_chunk(
    mode: str, steps: int, now: float, published: float | None
) -> None:
    timing = InferenceTiming(mode, DT, 25, steps)  # type: ignore[arg-type]
    assert 0.0 <= timing.wait(now, published) <= 25 * DT + 0.05 + 1e-6


@pytest.mark.parametrize("steps", [-1, 26])
def test_replan_steps_outside_the_chunk_are_refused(steps: int) -> None:
    with pytest.raises(LightVLAError, match=rf"replan_steps is {steps}.*0\.\.25"):
        InferenceTiming("receding_horizon", DT, 25, steps)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(LightVLAError, match="open_loop, receding_horizon"):
        InferenceTiming("closed_loop", DT, 25)  # type: ignore[arg-type]


def test_latency_window_keeps_only_the_last_durations() -> None:
    window = LatencyWindow(length=100)
    assert math.isnan(window.percentile(50))
    for milliseconds in (*[1000] * 50, *range(1, 101)):
        window.add(milliseconds / 1000)
    assert window.percentile(50) == pytest.approx(0.0505)
    assert window.percentile(99) == pytest.approx(0.1, abs=2e-3)

"""Plan time: the ROS clock stretched by the speed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightvla_core.errors import LightVLAError
from lightvla_ros.plan_clock import PlanClock

EPOCH = 1_795_000_000.0


def test_a_second_at_half_speed_is_half_a_second_of_the_plan() -> None:
    clock = PlanClock()
    clock.set_speed(0.5, EPOCH)
    assert clock.at(EPOCH + 1.0) - clock.at(EPOCH) == pytest.approx(0.5, abs=1e-6)


def test_the_past_keeps_the_speed_it_had() -> None:
    clock = PlanClock()
    clock.set_speed(0.5, EPOCH)
    clock.set_speed(0.1, EPOCH + 1.0)
    assert clock.at(EPOCH) - clock.at(EPOCH - 1.0) == pytest.approx(1.0, abs=1e-6)
    assert clock.at(EPOCH + 1.0) - clock.at(EPOCH) == pytest.approx(0.5, abs=1e-6)
    assert clock.at(EPOCH + 2.0) - clock.at(EPOCH + 1.0) == pytest.approx(0.1, abs=1e-6)


def test_a_jump_of_the_clock_leaves_only_the_speed() -> None:
    clock = PlanClock()
    clock.set_speed(0.5, EPOCH)
    clock.forget()
    assert clock.speed == 0.5
    assert clock.at(10.0) - clock.at(8.0) == pytest.approx(1.0)


@given(changes=st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(0.1, 1.0)), max_size=80))
def test_plan_time_never_runs_backward_nor_faster_than_the_clock(changes: list[tuple[float, float]]) -> None:
    clock, now, seen = PlanClock(), EPOCH, [(EPOCH, EPOCH)]
    for wait, speed in changes:
        now += wait
        clock.set_speed(speed, now)
        seen.append((now, clock.at(now)))
    for (before, plan_before), (after, plan_after) in pairwise(seen):
        assert -1e-5 <= plan_after - plan_before <= after - before + 1e-5


@pytest.mark.parametrize("speed", [0.0, 0.09, 1.01, float("nan")])
def test_speeds_outside_a_tenth_to_one_are_refused(speed: float) -> None:
    with pytest.raises(LightVLAError, match="speed should be between"):
        PlanClock().set_speed(speed, EPOCH)

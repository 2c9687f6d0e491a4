"""Limits and the latched stop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from executor_fixtures import START, aloha_contract, robot
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError
from lightvla_ros.execution import limits_for
from lightvla_ros.safety import Limits, Now, SafetyGate, bound

LIMITS = limits_for(aloha_contract(), robot())
PERIOD = 0.04
Vector = NDArray[np.float64]


def armed(measured: Vector = START) -> SafetyGate:
    gate = SafetyGate(LIMITS, PERIOD, starvation_timeout=0.5)
    gate.arm(measured, at(0.0))
    return gate


def at(seconds: float) -> Now:
    return Now(1000.0 + seconds, seconds)


def moved(by: float, channel: int = 0) -> Vector:
    pose = START.copy()
    pose[channel] += by
    return pose


def test_disarmed_gate_lets_nothing_through() -> None:
    gate = SafetyGate(LIMITS, PERIOD, 0.5)
    assert gate.command(START, START, at(0.0)) is None
    assert gate.state == "disarmed"


def test_first_command_is_bounded_from_the_measured_state() -> None:
    command = armed().command(moved(2.0), START, at(0.0))
    np.testing.assert_allclose(command, moved(0.1))


def test_later_commands_are_bounded_from_the_last_command_not_the_measured_state() -> None:
    gate = armed()
    gate.command(moved(0.1), START, at(0.0))
    np.testing.assert_allclose(gate.command(moved(2.0), START, at(0.04)), moved(0.2))


def test_interventions_are_counted_by_kind() -> None:
    gate = armed()
    gate.command(moved(5.0), START, at(0.0))
    gate.command(moved(0.05), START, at(0.04))
    assert (gate.interventions["position"], gate.interventions["step"]) == (1, 1)


def test_velocity_limit_governs_a_fast_loop() -> None:
    bounded = bound(moved(0.09), START, LIMITS, period=0.005)
    np.testing.assert_allclose(bounded.command, moved(3.14 * 0.005))
    assert bounded.interventions == ("velocity",)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_command_stops_and_holds_the_last(bad: float) -> None:
    gate = armed()
    gate.command(moved(0.05), START, at(0.0))
    desired = START.copy()
    desired[4] = bad
    np.testing.assert_allclose(gate.command(desired, moved(-0.3), at(0.04)), moved(0.05))
    assert gate.state == "stopped"
    assert gate.interventions["non_finite"] == 1


def test_tracking_error_stops() -> None:
    gate = armed()
    gate.command(START, START, at(0.0))
    np.testing.assert_allclose(gate.command(START, moved(-0.6, 2), at(0.04)), START)
    assert gate.state == "stopped"
    assert "tracking error: left_elbow" in gate.reason


def test_gripper_that_holds_an_object_is_no_tracking_error() -> None:
    gate = armed()
    for k in range(10):
        gate.command(moved(-1.0, 6), START, at(0.04 * k))
    assert gate.state == "armed"


def test_starvation_stops_only_after_its_timeout() -> None:
    gate = armed()
    gate.command(START, START, at(0.0))
    np.testing.assert_allclose(gate.command(None, START, at(0.49)), START)
    assert gate.state == "armed"
    gate.command(None, START, at(0.51))
    assert (gate.state, gate.reason[:10]) == ("stopped", "starvation")


def test_arming_without_any_chunk_starves_and_sends_nothing() -> None:
    gate = armed()
    assert gate.command(None, START, at(0.3)) is None
    assert gate.command(None, START, at(0.6)) is None
    assert gate.state == "stopped"


def test_stopped_gate_repeats_one_target_until_armed_again() -> None:
    gate = armed()
    gate.command(moved(0.1), START, at(0.0))
    gate.stop("stale input")
    for k in range(5):
        np.testing.assert_allclose(gate.command(moved(1.0), moved(k * 0.1), at(k)), moved(0.1))
    gate.stop("another reason")
    assert gate.reason == "stale input"
    gate.arm(START, at(9.0))
    np.testing.assert_allclose(gate.command(moved(1.0), START, at(9.0)), moved(0.1))


def test_measured_pose_is_latched_only_where_the_step_to_it_is_allowed() -> None:
    near, far = armed(), armed()
    for gate in (near, far):
        gate.command(moved(0.09), START, at(0.0))
    near.stop("test", moved(0.02))
    far.stop("test", moved(-0.3))
    np.testing.assert_allclose(near.target, moved(0.02))
    np.testing.assert_allclose(far.target, moved(0.09))


def test_stop_keeps_the_grip_on_a_held_object() -> None:
    gate = armed()
    gate.command(moved(-0.2, 6), START, at(0.0))
    gate.stop("test", START)
    assert gate.target is not None
    assert gate.target[6] == pytest.approx(0.8)


def test_velocity_channels_are_zero_after_a_stop() -> None:
    limits = Limits(
        ("eef_x",), *(np.array([v]) for v in (-1.0, 1.0, 0.5, math.inf, math.inf)), np.array([False]), np.array([True])
    )
    gate = SafetyGate(limits, 0.1, 0.5)
    gate.arm(np.zeros(1), at(0.0))
    gate.command(np.array([0.4]), np.zeros(1), at(0.0))
    gate.stop("test")
    np.testing.assert_array_equal(gate.target, [0.0])


def test_arm_is_refused_where_the_robot_stands_outside_its_limits_or_is_not_finite() -> None:
    with pytest.raises(LightVLAError, match=r"left_elbow is at 2\.1600, outside its limits"):
        armed(moved(1.0, 2))
    with pytest.raises(LightVLAError, match="left_elbow is not finite"):
        armed(moved(math.nan, 2))


def test_arming_twice_is_refused() -> None:
    with pytest.raises(LightVLAError, match="already armed"):
        armed().arm(START, at(1.0))


@pytest.mark.parametrize(("key", "value"), [("max_step", 0.0), ("lower", math.nan), ("upper", -9.0)])
def test_unusable_limits_cannot_be_built(key: str, value: float) -> None:
    fields = {k: getattr(LIMITS, k) for k in vars(LIMITS)}
    fields[key] = np.full(14, value)
    with pytest.raises(LightVLAError, match="left_waist"):
        Limits(**fields)


ANYTHING = arrays(np.float64, 14, elements=st.floats(allow_nan=True, allow_infinity=True))
NEAR = arrays(np.float64, 14, elements=st.floats(-0.4, 0.4))


@given(wishes=st.lists(st.tuples(st.none() | ANYTHING, NEAR), min_size=1, max_size=30), period=st.floats(0.002, 0.2))
def test_no_stream_of_wishes_breaks_a_limit(wishes: list[tuple[Vector | None, Vector]], period: float) -> None:
    gate = SafetyGate(LIMITS, period, 0.5)
    step = LIMITS.largest_step(period) + 1e-9
    gate.arm(START, at(0.0))
    before: Vector | None = None
    for k, (wish, offset) in enumerate(wishes):
        measured = np.clip(START + offset, LIMITS.lower, LIMITS.upper)
        command = gate.command(wish, measured, at(k * period))
        if command is None:
            continue
        assert np.isfinite(command).all()
        assert (command >= LIMITS.lower).all()
        assert (command <= LIMITS.upper).all()
        assert (np.abs(command - (measured if before is None else before)) <= step).all()
        before = command


def test_longer_period_bounds_the_next_command_by_the_time_that_has_passed() -> None:
    gate = armed()
    gate.set_times(0.005, 0.5)
    gate.command(START, START, at(0.0))
    gate.set_times(0.04, 0.5)
    np.testing.assert_allclose(gate.command(moved(1.0), START, at(0.005)), moved(3.14 * 0.005))
    np.testing.assert_allclose(gate.command(moved(1.0), START, at(0.045)), moved(3.14 * 0.005 + 0.1))


def test_times_changed_while_armed_bound_the_next_command() -> None:
    gate = armed()
    gate.command(START, START, at(0.0))
    gate.set_times(0.005, 0.1)
    np.testing.assert_allclose(gate.command(moved(1.0), START, at(0.005)), moved(3.14 * 0.005))
    gate.command(None, START, at(0.2))
    assert gate.reason.startswith("starvation")

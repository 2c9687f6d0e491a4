"""The whole executor under a simulated clock."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from executor_fixtures import START, aloha_contract, chunk, delta_contract, joint_positions, robot, settings
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError
from lightvla_ros.chunk_schedule import ChunkError
from lightvla_ros.execution import Execution
from lightvla_ros.robots.aloha import proprioception
from lightvla_ros.safety import Now

CONTRACT = aloha_contract()
CHANNELS = robot().channels
ARMS = ("follower_left", "follower_right")
EPOCH = 1_795_000_000.0
LOWER, UPPER = np.array([c.lower for c in CHANNELS]), np.array([c.upper for c in CHANNELS])


class Bench:
    """An execution, its clocks, and two arms that stand still."""

    def __init__(self, period: float = 0.04, blend_time: float = 0.0) -> None:
        self.execution = Execution(
            CONTRACT, robot(), settings(period, blend_time), lambda states: proprioception(CHANNELS, states)
        )
        self.period, self.time, self.sequence = period, 0.0, 0
        self.sent: list[NDArray[np.float64] | None] = []

    @property
    def now(self) -> Now:
        return Now(EPOCH + self.time, self.time)

    def feed(self, **changes: float) -> None:
        for arm in ARMS:
            self.execution.feed_state(arm, joint_positions() | changes, self.now.ros, self.now.steady)

    def offer(self, actions: NDArray[np.float64], late: float = 0.0) -> None:
        self.sequence += 1
        self.execution.offer(chunk(CONTRACT, actions, self.now.ros - late, self.sequence), self.now)

    def run(self, periods: int, feed: bool = True) -> NDArray[np.float64] | None:
        """The last of so many periods' commands."""
        for _ in range(periods):
            self.time += self.period
            if feed:
                self.feed()
            self.sent.append(self.execution.run_period(self.now).command)
        return self.sent[-1]

    def armed(self) -> Bench:
        self.feed()
        self.run(1)
        self.execution.arm(self.now)
        return self


def test_disarmed_executor_previews_but_commands_nothing() -> None:
    bench = Bench()
    bench.run(1)
    bench.offer(START + 0.5)
    bench.time += 0.04
    bench.feed()
    period = bench.execution.run_period(bench.now)
    assert period.command is None
    assert period.preview is not None
    assert np.abs(period.preview - START).max() <= 0.25 + 1e-9


def test_armed_executor_goes_to_the_chunk_within_limits() -> None:
    bench = Bench().armed()
    goal = START.copy()
    goal[0] = 0.45
    bench.offer(goal)
    np.testing.assert_allclose(bench.run(6), goal)
    assert bench.execution.counts().commands == 6
    assert bench.execution.counts().interventions["step"] == 4


def test_latency_runs_from_the_observation_to_the_first_command_that_uses_it() -> None:
    bench = Bench().armed()
    bench.offer(START, late=0.1)
    bench.run(3)
    assert bench.execution.counts().latency_p50 == pytest.approx(0.14, abs=1e-5)


@pytest.mark.parametrize("trouble", ["no state", "old state", "frozen stamps", "clock not checked"])
def test_arm_is_refused_without_fresh_joint_states(trouble: str) -> None:
    bench = Bench()
    if trouble != "clock not checked":
        bench.run(1, feed=False)
    if trouble != "no state":
        bench.feed()
    if trouble == "old state":
        bench.time += 0.3
    if trouble == "frozen stamps":
        for arm in ARMS:
            bench.execution.feed_state(arm, joint_positions(), EPOCH - 1.0, bench.now.steady)
    with pytest.raises(LightVLAError, match="cannot arm: "):
        bench.execution.arm(bench.now)
    assert bench.execution.state == "disarmed"


def test_stale_joint_state_stops_within_its_timeout_and_latches() -> None:
    bench = Bench().armed()
    bench.offer(START)
    bench.run(2)
    bench.run(6, feed=False)
    assert bench.execution.state.startswith("stopped: stale input: the joint state of follower_left")
    bench.offer(START + 0.2)
    for _ in range(5):
        np.testing.assert_allclose(bench.run(1), START)
    bench.execution.arm(bench.now)
    assert bench.execution.state == "armed"


def test_starvation_holds_then_latches() -> None:
    bench = Bench().armed()
    bench.offer(START)
    bench.run(25)
    assert bench.execution.state == "armed"
    np.testing.assert_allclose(bench.run(14), START)
    assert bench.execution.state.startswith("stopped: starvation")


def test_new_instruction_rejects_chunks_of_the_old_one() -> None:
    bench = Bench().armed()
    bench.offer(START)
    bench.execution.set_instruction("f" * 12)
    with pytest.raises(ChunkError, match="no longer in force"):
        bench.offer(START)
    assert bench.run(1) is None


@pytest.mark.parametrize(("jump", "sentence"), [(-5.0, "went back"), (5.0, "leapt ahead")])
def test_clock_jump_stops(jump: float, sentence: str) -> None:
    bench = Bench().armed()
    bench.offer(START)
    bench.run(2)
    now = Now(bench.now.ros + jump, bench.now.steady + 0.04)
    bench.execution.run_period(now)
    assert sentence in bench.execution.state


def test_frozen_clock_stops() -> None:
    bench = Bench().armed()
    bench.offer(START)
    bench.run(2)
    frozen = bench.now.ros
    for k in range(1, 8):
        steady = bench.now.steady + 0.04 * k
        for arm in ARMS:
            bench.execution.feed_state(arm, joint_positions(), frozen, steady)
        bench.execution.run_period(Now(frozen, steady))
    assert "stood still" in bench.execution.state


def test_joint_state_that_loses_a_joint_or_turns_nan_stops() -> None:
    for spoiled in ({"follower_left": {"waist": 0.0}}, {"follower_left": joint_positions() | {"elbow": math.nan}}):
        bench = Bench().armed()
        bench.offer(START)
        bench.run(1)
        bench.time += 0.04
        bench.feed()
        for arm, positions in spoiled.items():
            bench.execution.feed_state(arm, positions, bench.now.ros, bench.now.steady)
        np.testing.assert_allclose(bench.execution.run_period(bench.now).command, START)
        assert bench.execution.state.startswith("stopped")


def test_stop_from_outside_returns_the_latched_target() -> None:
    bench = Bench().armed()
    bench.offer(START)
    bench.run(1)
    np.testing.assert_allclose(bench.execution.stop("e-stop", bench.now), START)
    bench.execution.disarm()
    assert bench.run(1) is None


def test_contract_of_another_robot_is_refused() -> None:
    with pytest.raises(LightVLAError, match="trained for robot franka"):
        Execution(delta_contract(), robot(), settings(), lambda states: proprioception(CHANNELS, states))


@given(data=st.data(), period=st.sampled_from([0.005, 0.02, 0.04]), blend_time=st.sampled_from([0.0, 0.08]))
def test_no_stream_of_chunks_and_states_breaks_a_limit(data: st.DataObject, period: float, blend_time: float) -> None:
    bench = Bench(period, blend_time).armed()
    for _ in range(data.draw(st.integers(1, 6))):
        level = data.draw(st.floats(-1e300, 1e300) | st.floats(-3.0, 3.0))
        with contextlib.suppress(ChunkError):
            bench.offer(np.full(14, level), late=data.draw(st.floats(-0.1, 1.2)))
        bench.run(data.draw(st.integers(1, 12)), feed=data.draw(st.booleans()))
    commands = np.array([START, *(c for c in bench.sent if c is not None)])
    step = np.minimum([c.max_step for c in CHANNELS], np.array([c.max_velocity for c in CHANNELS]) * period)
    assert np.isfinite(commands).all()
    assert ((commands >= LOWER) & (commands <= UPPER)).all()
    assert (np.abs(np.diff(commands, axis=0)) <= step + 1e-9).all()

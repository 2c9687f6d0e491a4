"""The whole executor under a simulated clock."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from executor_fixtures import START, aloha_contract, chunk, delta_contract, joint_positions, robot, settings
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


class Bench:
    """An execution, its clocks, and two arms that stand still."""

    def __init__(self, period: float = 0.04, blend_time: float = 0.0, **changes: object) -> None:
        self.execution = Execution(
            CONTRACT, robot(), settings(period, blend_time, **changes), lambda states: proprioception(CHANNELS, states)
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
    assert bench.execution.counts().latencies[0] == pytest.approx(0.14, abs=1e-5)


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


@pytest.mark.parametrize(("before", "after"), [(0.005, 0.04), (0.04, 0.005)])
def test_changed_rate_never_exceeds_the_velocity_limit(before: float, after: float) -> None:
    bench = Bench(period=before).armed()
    goal = START.copy()
    goal[0] = 2.0
    bench.offer(goal)
    bench.run(2)
    bench.execution.change(settings(after))
    for _ in range(10):
        bench.period = bench.execution.settings.mode.period
        last = bench.sent[-1]
        moved = np.abs(bench.run(1) - last)[0]
        # Since the last command, and until it is to be reached.
        assert 0.0 < moved <= CHANNELS[0].max_velocity * min(bench.period, bench.execution.settings.mode.period) + 1e-9
    assert bench.period == after


def test_chunk_from_before_the_stop_is_not_executed_after_arming_again_however_slow() -> None:
    bench = Bench(speed=0.1).armed()
    goal = START.copy()
    goal[0] = 0.45
    bench.offer(goal)
    assert bench.run(3) is not None
    observed = bench.now.ros
    bench.execution.stop("test", bench.now)
    bench.run(5)
    bench.execution.arm(bench.now)
    assert bench.run(3) is None
    with pytest.raises(ChunkError, match="before the last stop"):
        bench.execution.offer(chunk(CONTRACT, goal, observed - 0.01, bench.sequence + 1), bench.now)
    bench.offer(goal)
    assert bench.run(1) is not None


def test_arming_takes_no_chunk_older_than_it_lasts_at_full_speed() -> None:
    bench = Bench(speed=0.1)
    bench.run(1)
    bench.offer(START)
    bench.run(26)
    bench.execution.arm(bench.now)
    assert bench.run(3) is None
    fresh = Bench(speed=0.1)
    fresh.run(1)
    fresh.offer(START)
    fresh.run(20)
    fresh.execution.arm(fresh.now)
    assert fresh.run(1) is not None


def test_clock_that_went_back_while_stopped_does_not_forbid_new_chunks() -> None:
    bench = Bench().armed()
    bench.execution.stop("test", bench.now)
    for _ in range(2):
        earlier = Now(bench.now.ros - 100.0, bench.now.steady + 0.04)
        for arm in ARMS:
            bench.execution.feed_state(arm, joint_positions(), earlier.ros, earlier.steady)
        bench.execution.run_period(earlier)
        bench.time += 0.04
    moment = Now(bench.now.ros - 100.0, bench.now.steady)
    bench.execution.arm(moment)
    bench.execution.offer(chunk(CONTRACT, START, moment.ros, 7), moment)


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
    spoils: list[dict[str, Any]] = [{"waist": 0.0}, joint_positions() | {"elbow": math.nan}, {"waist": "no number"}]
    for spoiled in ({"follower_left": spoil} for spoil in spoils):
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


def test_emergency_stop_latches_and_only_a_release_and_a_new_arm_recover() -> None:
    bench = Bench().armed()
    bench.offer(START)
    bench.run(2)
    bench.execution.set_emergency_stop(True, bench.now)
    assert bench.execution.state == "stopped: emergency stop"
    with pytest.raises(LightVLAError, match="emergency stop is engaged"):
        bench.execution.arm(bench.now)
    bench.execution.set_emergency_stop(False, bench.now)
    bench.offer(START + 0.1)
    np.testing.assert_allclose(bench.run(3), START)
    assert bench.execution.state == "stopped: emergency stop"
    bench.execution.arm(bench.now)
    assert bench.execution.state == "armed"


def test_emergency_stop_pressed_while_disarmed_refuses_to_arm() -> None:
    bench = Bench()
    bench.run(1)
    bench.execution.set_emergency_stop(True, bench.now)
    with pytest.raises(LightVLAError, match="emergency stop"):
        bench.execution.arm(bench.now)


def test_missing_heartbeat_refuses_to_arm_and_stops_when_it_falls_silent() -> None:
    bench = Bench(heartbeat_timeout=0.1)
    bench.run(1)
    with pytest.raises(LightVLAError, match="no heartbeat"):
        bench.execution.arm(bench.now)
    bench.execution.feed_heartbeat(bench.now.steady)
    bench.execution.arm(bench.now)
    bench.offer(START)
    bench.run(2)
    assert bench.execution.state == "armed"
    bench.run(2)
    assert bench.execution.state.startswith("stopped: no heartbeat")


def test_changed_settings_wait_for_the_step_boundary() -> None:
    bench = Bench(period=0.01).armed()
    bench.offer(START)
    bench.run(1)
    bench.execution.change(settings(0.02, speed=0.5))
    bench.run(2)
    assert bench.execution.settings.mode.period == 0.01
    bench.run(1)
    assert bench.execution.settings.mode == settings(0.02, speed=0.5).mode
    assert bench.execution.state == "armed"


def test_changed_settings_take_effect_at_once_when_nothing_is_under_way() -> None:
    bench = Bench()
    bench.execution.change(settings(0.02))
    bench.run(1)
    assert bench.execution.settings.mode.period == 0.02


@pytest.mark.parametrize("key", ["starvation_timeout", "state_timeout", "heartbeat_timeout", "future_tolerance"])
def test_impossible_settings_are_refused(key: str) -> None:
    with pytest.raises(LightVLAError, match=key):
        settings(**{key: -1.0})

"""Faults of an arm that is commanded by velocities, under a simulated clock: every stop is to standstill.

The same faults of an arm that is commanded by positions, and of nodes, are in test_faults.py and test_faults_live.py.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("geometry_msgs", reason="no ROS 2 here")

from executor_fixtures import INSTRUCTION, chunk, settings
from numpy.typing import NDArray
from test_robot_franka import FACTS, ROBOT, STATES, contract

from lightvla_core.errors import LightVLAError
from lightvla_ros.chunk_schedule import ChunkError
from lightvla_ros.execution import Execution, limits_for
from lightvla_ros.robots.franka import EEF, description_for
from lightvla_ros.robots.franka_arm import Twists, pose_of
from lightvla_ros.safety import Now

CONTRACT = contract()
DESCRIBED = description_for(CONTRACT, ROBOT)
# As the adapter does for twists: the state behind a velocity is the pose.
DESCRIBED = replace(
    DESCRIBED, channels=tuple(replace(c, arm="end_effector") if c.name in EEF else c for c in DESCRIBED.channels)
)
LIMITS = limits_for(CONTRACT, DESCRIBED)
EPOCH, PERIOD = 1_795_000_000.0, 0.05
Vector = NDArray[np.float64]
Pose = dict[str, float]
GOOD: Pose = dict(STATES["end_effector"])


def measure(states: Mapping[str, Mapping[str, float]]) -> Vector:
    """As the adapter does: a velocity counts from standstill, and only where there is a pose."""
    pose_of(states)
    return np.array([0.0] * 6 + [1.0])


class Rig:
    """Time in control periods, a pose that never changes, and a policy that asks for more speed than is allowed."""

    def __init__(self) -> None:
        self.execution = Execution(CONTRACT, DESCRIBED, settings(PERIOD), measure)
        self.execution.set_instruction(INSTRUCTION)
        self.way = Twists(FACTS, CONTRACT.end_effector)
        self.time, self.ros, self.sequence = 0.0, EPOCH, 0
        self.pose: Callable[[], Pose | None] = lambda: dict(GOOD)
        self.policy_runs = True
        self.sent: list[Vector | None] = []

    @property
    def now(self) -> Now:
        return Now(self.ros, self.time)

    def run(self, periods: int) -> Rig:
        for _ in range(periods):
            self.time, self.ros = self.time + PERIOD, self.ros + PERIOD
            self.feed()
            if self.policy_runs:
                self.sequence += 1
                wish = np.array([1.0, -1.0, 0.4, 0.0, 0.9, -0.9, -1.0])
                with contextlib.suppress(ChunkError):
                    self.execution.offer(chunk(CONTRACT, wish, self.ros, self.sequence), self.now)
            self.sent.append(self.execution.run_period(self.now).command)
        return self

    def feed(self) -> None:
        self.execution.feed_state("fingers", STATES["fingers"], self.ros, self.time)
        pose = self.pose()
        if pose is not None:
            self.execution.feed_state("end_effector", pose, self.ros, self.time)

    def armed(self) -> Rig:
        self.run(1)
        self.execution.arm(self.now)
        return self.run(10)

    def twist(self, command: Vector) -> list[float]:
        """The arm's message for it, from whatever pose is measured now."""
        twist = self.way.message(command[:6] * 0.05, self.execution.states, self.now, PERIOD, True).twist
        return [twist.linear.x, twist.linear.y, twist.linear.z, twist.angular.x, twist.angular.y, twist.angular.z]


def without_x() -> Pose:
    return {name: value for name, value in GOOD.items() if name != "x"}


def jump(rig: Rig) -> None:
    rig.ros -= 5.0


def give(pose: Callable[[], Pose | None]) -> Callable[[Rig], None]:
    return lambda rig: setattr(rig, "pose", pose)


# What happens, the stop's reason, and within how many periods it is detected.
FAULTS: dict[str, tuple[Callable[[Rig], None], str, int]] = {
    "pose with NaN": (give(lambda: {**GOOD, "y": math.nan}), "finite", 1),
    "pose with infinity": (give(lambda: {**GOOD, "qz": math.inf}), "finite", 1),
    "pose without an orientation": (give(lambda: {**GOOD, "qx": 0.0}), "fault", 1),
    "pose that lacks a number": (give(without_x), "lacks x", 1),
    "pose unreadable, and so as if none came": (give(lambda: None), "stale input", 5),
    "chunks dropped": (lambda rig: setattr(rig, "policy_runs", False), "starvation", 8 + 10 + 1),
    "clock jumps back": (jump, "went back", 1),
    "emergency stop": (lambda rig: rig.execution.set_emergency_stop(True, rig.now), "emergency stop", 1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_stop_is_standstill_and_nothing_else_until_armed_again(name: str) -> None:
    inject, reason, bound = FAULTS[name]
    rig = Rig().armed()
    assert np.abs(rig.sent[-1][:6]).max() > 1.0
    inject(rig)
    rig.run(bound)
    assert rig.execution.state.startswith("stopped")
    assert reason in rig.execution.state
    rig.policy_runs = True
    stopped = len(rig.sent)
    rig.run(10)
    for command in rig.sent[stopped:]:
        assert command is not None
        assert (command[:6] == 0.0).all()
        assert command[6] == rig.sent[stopped - 1][6]
        assert rig.twist(command) == [0.0] * 6
    rig.pose = lambda: dict(GOOD)
    rig.run(5)
    assert rig.execution.state.startswith("stopped")
    rig.execution.set_emergency_stop(False, rig.now)
    rig.execution.arm(rig.now)
    rig.run(5)
    assert rig.execution.state == "armed"
    assert np.abs(rig.sent[-1][:6]).max() > 0.0


@pytest.mark.parametrize("name", FAULTS)
def test_speed_and_its_change_stay_within_their_limits_through_every_fault(name: str) -> None:
    inject, _, bound = FAULTS[name]
    rig = Rig().armed()
    inject(rig)
    rig.run(bound + 3)
    before = np.zeros(7)
    for command in (command for command in rig.sent if command is not None):
        assert np.isfinite(command).all()
        assert (command >= LIMITS.lower).all()
        assert (command <= LIMITS.upper).all()
        # Standstill is commanded at once.
        change = np.where(LIMITS.rates & (command == 0.0), 0.0, np.abs(command - before))
        assert (change[:6] <= LIMITS.largest_step(PERIOD)[:6] + 1e-9).all()
        before = command


def test_arming_is_refused_while_the_pose_is_none() -> None:
    for name in ("pose with NaN", "pose that lacks a number", "pose unreadable, and so as if none came"):
        rig = Rig()
        FAULTS[name][0](rig)
        rig.run(1)
        with pytest.raises(LightVLAError, match=r"finite|lacks|no joint state"):
            rig.execution.arm(rig.now)
        assert rig.run(3).sent == [None] * 4

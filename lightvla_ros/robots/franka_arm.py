"""The ways to command an FR3's arm: joint positions, and end-effector velocities by twist, pose target or joints.

Each turns the arm's share of a command into one message a period; the gripper, and which way is taken, is franka.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from trajectory_msgs.msg import JointTrajectory

from lightvla_core.contract import EndEffector
from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.adapter import Endpoint, States, value_of
from lightvla_ros.robots.description import EndEffectorFacts, RobotChannel
from lightvla_ros.robots.kinematics import JointLimits, JointTarget
from lightvla_ros.robots.messages import JointGoal, pose_stamped, twist_stamped
from lightvla_ros.robots.pose_target import MotionWatch, PoseTarget, in_base, within_workspace
from lightvla_ros.robots.rotations import POSE_VALUES, Array, Pose
from lightvla_ros.safety import Now

_JOINTS = Endpoint("fr3_arm_controller/joint_trajectory", JointTrajectory, "the arm")
_TWIST = Endpoint("servo_node/delta_twist_cmds", TwistStamped, "the arm")
_POSE = Endpoint("servo_node/pose_target_cmds", PoseStamped, "the arm")


class ArmWay(Protocol):
    """source: the state that `check` and `message` read"""

    endpoint: Endpoint
    source: str

    def check(self, states: States, period: float) -> None:
        """Raise LightVLAError where no command can follow: a state that is no pose, or an arm that does not follow."""
        ...

    def message(self, values: Array, states: States, now: Now, period: float, holding: bool) -> Any:
        """values: the arm's, robot units; None where there is nothing to repeat."""
        ...

    def reset(self) -> None: ...


def pose_of(states: States) -> Pose:
    """The measured pose of the end effector; raises LightVLAError where there is none."""
    return Pose.from_values({name: value_of(states, "end_effector", name) for name in POSE_VALUES})


class JointPositions:
    """Absolute joint positions, rad, as they are."""

    endpoint, source = _JOINTS, "arm"

    def __init__(self, joints: Sequence[RobotChannel]) -> None:
        self._names, self._goal = [c.joint for c in joints], JointGoal()

    def check(self, states: States, period: float) -> None:
        """Nothing: the limits see the joints themselves."""

    def message(self, values: Array, states: States, now: Now, period: float, holding: bool) -> Any:
        return self._goal.message(self._names, values.tolist(), period)

    def reset(self) -> None:
        """Nothing: every command says everything."""


class Twists:
    """Velocities to MoveIt Servo, in the contract's own frame, so that Servo turns them with the tool in between."""

    endpoint, source = _TWIST, "end_effector"

    def __init__(self, facts: EndEffectorFacts, meaning: EndEffector) -> None:
        self._facts, self._meaning, self._base = facts, meaning, meaning.frame == "base"
        self._watch = MotionWatch(facts)

    def check(self, states: States, period: float) -> None:
        pose_of(states)
        self._watch.require_followed()

    def message(self, values: Array, states: States, now: Now, period: float, holding: bool) -> Any:
        # Standstill needs no pose: a stop gets through whatever is measured.
        if holding:
            self._watch.reset()
        else:
            measured = pose_of(states)
            values = np.concatenate((self._limited(values[:3], measured), values[3:]))
            self._watch.advance(in_base(values, self._meaning, measured.rotation), measured, now.steady)
        return twist_stamped(values, self._facts.base_frame if self._base else self._facts.tool_frame, now)

    def reset(self) -> None:
        self._watch.reset()

    def _limited(self, linear: Array, measured: Pose) -> Array:
        to_base = np.eye(3) if self._base else measured.rotation
        inside: Array = to_base.T @ within_workspace(to_base @ linear, measured.position, self._facts)
        return inside


class PoseTargets:
    """Pose targets to MoveIt Servo."""

    endpoint, source = _POSE, "end_effector"

    def __init__(self, facts: EndEffectorFacts, meaning: EndEffector) -> None:
        self._facts, self._meaning = facts, meaning
        self._target, self._holding = PoseTarget(facts), False

    def check(self, states: States, period: float) -> None:
        measured = pose_of(states)
        # After a stop nothing is expected of the arm, so that it can be armed again wherever it came to rest.
        if not self._holding:
            self._target.require_followed(measured, period)

    def message(self, values: Array, states: States, now: Now, period: float, holding: bool) -> Any:
        self._holding = holding
        if not holding and (values.any() or self._target.pose is None):
            measured = pose_of(states)
            twist = in_base(values, self._meaning, self._target.start(measured).rotation)
            self._target.advance(twist, period, measured)
        target = self._target.pose
        return None if target is None else pose_stamped(target, self._facts.base_frame, now)

    def reset(self) -> None:
        self._target.reset()
        self._holding = False


class JointDeltas:
    """The same velocities to a joint trajectory controller, through the arm's own kinematics. Nothing of tf is used."""

    endpoint, source = _JOINTS, "arm"

    def __init__(self, facts: EndEffectorFacts, meaning: EndEffector, joints: Sequence[RobotChannel]) -> None:
        self._facts, self._meaning, self._joints = facts, meaning, joints
        self._names, self._goal = [c.joint for c in joints], JointGoal()
        self._target, self._holding = JointTarget(facts.kinematics, _limits(joints)), False

    def check(self, states: States, period: float) -> None:
        measured = self._measured(states)
        if not self._holding:
            self._target.require_followed(measured)

    def message(self, values: Array, states: States, now: Now, period: float, holding: bool) -> Any:
        self._holding = holding
        if not holding and (values.any() or self._target.positions is None):
            pose = self._target.start(self._measured(states))
            twist = in_base(values, self._meaning, pose.rotation)
            inside = within_workspace(twist[:3], pose.position, self._facts)
            self._target.advance(np.concatenate((inside, twist[3:])), period)
        target = self._target.positions
        return None if target is None else self._goal.message(self._names, target.tolist(), period)

    def reset(self) -> None:
        self._target.reset()
        self._holding = False

    def _measured(self, states: States) -> Array:
        values = np.array([value_of(states, "arm", c.state_joint) for c in self._joints])
        if not np.isfinite(values).all():
            broken = self._joints[int(np.argmin(np.isfinite(values)))].joint
            raise LightVLAError(f"the measured position of {broken} is not finite")
        return values


def _limits(joints: Sequence[RobotChannel]) -> JointLimits:
    columns = ("lower", "upper", "max_velocity", "max_step", "max_tracking_error")
    return JointLimits(tuple(c.name for c in joints), *(np.array([getattr(c, k) for c in joints]) for k in columns))

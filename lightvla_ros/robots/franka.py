"""Franka FR3 on franka_ros2: joint positions or end-effector velocities out, a gripper by actions, its states in.

Everything here computes; publishers and action clients are in commanders.py, facts of the robot in config/robots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from lightvla_core.contract import EndEffector, Gripper, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.adapter import Endpoint, States, select_sources, value_of
from lightvla_ros.robots.description import (
    EndEffectorFacts,
    GripperAction,
    RobotChannel,
    RobotDescription,
    check_contract,
)
from lightvla_ros.robots.gripper import GripperEdges, Motion, opening_of, value_of_opening
from lightvla_ros.robots.rotations import (
    POSE_VALUES,
    Array,
    Pose,
    axis_angle,
    quaternion,
    rotation_of,
    shortened,
    turn,
)
from lightvla_ros.safety import Now

EEF = ("eef_x", "eef_y", "eef_z", "eef_rx", "eef_ry", "eef_rz")
ARM_TOPIC = "fr3_arm_controller/joint_trajectory"
TWIST_TOPIC = "servo_node/delta_twist_cmds"
POSE_TOPIC = "servo_node/pose_target_cmds"

# Proprioception -> number of the finger joint, and its sign: robosuite, and so LIBERO, has the right finger negative.
_FINGERS = {"finger_1": ("1", 1.0), "finger_2": ("2", 1.0), "finger_left": ("1", 1.0), "finger_right": ("2", -1.0)}

# How far ahead the workspace's edge is looked for: a velocity may not cross it within this time, s.
_WORKSPACE_HORIZON = 0.2


def proprioception(contract: PolicyContract, robot: RobotDescription, states: States) -> Array:
    """float64 (channels,) in the contract's order: joints rad, end effector m and axis-angle rad, fingers m."""
    wanted = robot.select_states(contract.proprio_names)
    eef = end_effector_state(states) if any(s.source == "end_effector" for s in wanted) else {}
    return np.array([eef[s.name] if s.name in eef else _joint_state(s.name, contract, robot, states) for s in wanted])


def end_effector_state(states: States) -> dict[str, float]:
    """eef_x .. eef_rz: position, m, and axis-angle, rad, base frame."""
    values = {name: value_of(states, "end_effector", name) for name in POSE_VALUES}
    position = [values[name] for name in POSE_VALUES[:3]]
    rotation = axis_angle(np.array([values[name] for name in POSE_VALUES[3:]]))
    return dict(zip(EEF, (*position, *rotation.tolist()), strict=True))


def _joint_state(name: str, contract: PolicyContract, robot: RobotDescription, states: States) -> float:
    gripper = robot.select(("gripper",))[0]
    if name == "gripper":
        return _measured_gripper(gripper, contract.gripper or Gripper(("gripper",), open=1.0, closed=0.0), states)
    if name in _FINGERS:
        which, sign = _FINGERS[name]
        return sign * value_of(states, "fingers", gripper.state_joint[:-1] + which)
    return value_of(states, "arm", robot.select((name,))[0].state_joint)


def _measured_gripper(channel: RobotChannel, gripper: Gripper, states: States) -> float:
    assert channel.gripper is not None
    opening = channel.gripper.opening(value_of(states, channel.arm, channel.state_joint))
    return value_of_opening(opening, gripper)


def description_for(contract: PolicyContract, robot: RobotDescription) -> RobotDescription:
    """The robot with its limits in the contract's units: velocities by the scale, the gripper by its sign."""
    gripper = _gripper_of(contract)
    low, high = sorted((gripper.closed, gripper.open))
    span = high - low
    scales = dict(zip(EEF, _scales(contract), strict=True))

    def converted(channel: RobotChannel) -> RobotChannel:
        if channel.name in gripper.channels:
            start = value_of_opening(channel.start, gripper)
            return replace(channel, lower=low, upper=high, max_step=span, start=start)
        scale = scales.get(channel.name, 1.0)
        return replace(
            channel,
            lower=channel.lower / scale,
            upper=channel.upper / scale,
            max_velocity=channel.max_velocity / scale,
            max_step=channel.max_step / scale,
        )

    return replace(robot, channels=tuple(converted(c) for c in robot.channels))


def _gripper_of(contract: PolicyContract) -> Gripper:
    gripper = contract.gripper
    if gripper is None or gripper.channels != ("gripper",):
        raise LightVLAError(
            "the contract does not say which values of the action `gripper` are open and closed; without that the sign "
            "of a Franka gripper is not known: add `gripper` to the contract"
        )
    if gripper.open == gripper.closed:
        raise LightVLAError(f"the contract's gripper is open and closed at the same value, {gripper.open}")
    return gripper


def _scales(contract: PolicyContract) -> Array:
    """What one unit of each of EEF is, (6,) m and rad."""
    facts = contract.end_effector
    if facts is None:
        return np.ones(6)
    units = {channel.name: channel.unit for channel in contract.actions}
    scales = np.array([facts.linear_scale] * 3 + [facts.angular_scale] * 3)
    for name, scale in zip(EEF, scales.tolist(), strict=True):
        expected = "m" if name in EEF[:3] else "rad"
        if units.get(name) not in ("normalized", expected):
            raise LightVLAError(f"action {name} is in {units.get(name)}, expected normalized or {expected}")
        if units[name] == expected and scale != 1.0:
            raise LightVLAError(
                f"action {name} is in {expected} and its scale is {scale:g}: a scale goes with the unit normalized"
            )
    return scales


def in_base(velocity: Array, facts: EndEffector, rotation: Array) -> Array:
    """A twist (6,) in the contract's frame -> in the base frame; rotation: of the tool, (3, 3)."""
    if facts.frame == "base":
        return velocity
    return np.concatenate((rotation @ velocity[:3], rotation @ velocity[3:]))


def within_workspace(velocity: Array, position: Array, facts: EndEffectorFacts) -> Array:
    """The part of a linear velocity (3,) m/s that keeps a position (3,) m in the workspace; outside, only inwards."""
    room_up = np.maximum(np.array(facts.workspace_upper) - position, 0.0) / _WORKSPACE_HORIZON
    room_down = np.maximum(position - np.array(facts.workspace_lower), 0.0) / _WORKSPACE_HORIZON
    limited: Array = np.clip(velocity, -room_down, room_up)
    return limited


class PoseTarget:
    """A pose that is moved by velocities, never far ahead of the measured one: a blocked arm gathers no distance."""

    def __init__(self, facts: EndEffectorFacts) -> None:
        self._facts = facts
        self._target: Pose | None = None

    def reset(self) -> None:
        self._target = None

    def rotation(self, measured: Pose) -> Array:
        """The tool's rotation that deltas refer to: the last target's, at first the measured."""
        return measured.rotation if self._target is None else self._target.rotation

    def advance(self, twist: Array, period: float, measured: Pose) -> Pose:
        """twist: (6,) m/s and rad/s, base frame, applied from the left; all zero repeats the target as it is."""
        if self._target is None:
            self._target = measured
        if twist.any():
            self._target = self._near(self._moved(self._target, twist, period), measured)
        return self._target

    def _moved(self, target: Pose, twist: Array, period: float) -> Pose:
        linear = within_workspace(twist[:3], target.position, self._facts)
        return Pose(target.position + linear * period, rotation_of(twist[3:] * period) @ target.rotation)

    def _near(self, target: Pose, measured: Pose) -> Pose:
        linear, angular = self._facts.max_lead
        ahead = shortened(target.position - measured.position, linear)
        turned = shortened(turn(measured.rotation, target.rotation), angular)
        return Pose(measured.position + ahead, rotation_of(turned) @ measured.rotation)


class FrankaAdapter:
    """See adapter.RobotAdapter. command_type: auto, joint_trajectory for joint positions; twist, pose for deltas."""

    def __init__(
        self, contract: PolicyContract, robot: RobotDescription, command_type: str, period: float, pose_source: str
    ) -> None:
        check_contract(contract, robot)
        assert robot.end_effector is not None
        assert robot.gripper_action is not None
        self.robot = description_for(contract, robot)
        self._contract, self._period, self._facts = contract, period, robot.end_effector
        self._gripper = _gripper_of(contract)
        self._channels = self.robot.select(contract.action_names)
        self._command_type = _command_type(contract, command_type)
        self._scales = _scales(contract)
        self._edges = GripperEdges(robot.gripper_action)
        self._target = PoseTarget(robot.end_effector)
        needed = dict.fromkeys(channel.arm for channel in self._channels)
        self.sources = select_sources(robot, tuple(needed), pose_source)
        self._goals = _gripper_goals(robot.gripper_action)
        arm = {"joint_trajectory": _joint_trajectory_endpoint, "twist": _twist_endpoint, "pose": _pose_endpoint}
        self.endpoints = (arm[self._command_type](), *self._goals.endpoints)

    def set_period(self, period: float) -> None:
        self._period = period

    def reset(self) -> None:
        self._edges.reset()
        self._target.reset()

    def measure(self, states: States) -> Array:
        return np.array([self._measured(channel, states) for channel in self._channels])

    def messages(self, command: Array, states: States, now: Now) -> Iterator[tuple[str, Any]]:
        by_name = dict(zip(self._contract.action_names, command.tolist(), strict=True))
        yield self._arm_message(by_name, states, now)
        motion = self._edges.update(opening_of(by_name["gripper"], self._gripper), now.steady)
        if motion is not None:
            yield self._goals.goal(motion)

    def _measured(self, channel: RobotChannel, states: States) -> float:
        if channel.gripper is not None:
            return _measured_gripper(channel, self._gripper, states)
        return 0.0 if channel.name in EEF else value_of(states, channel.arm, channel.state_joint)

    def _arm_message(self, command: dict[str, float], states: States, now: Now) -> tuple[str, Any]:
        if self._command_type == "joint_trajectory":
            return ARM_TOPIC, _joint_trajectory(
                [c.joint for c in self._channels if c.gripper is None],
                [command[c.name] for c in self._channels if c.gripper is None],
                self._period,
            )
        facts = self._contract.end_effector
        assert facts is not None
        velocity = np.array([command[name] for name in EEF]) * self._scales
        measured = Pose.from_values({name: value_of(states, "end_effector", name) for name in POSE_VALUES})
        if self._command_type == "pose":
            twist = in_base(velocity, facts, self._target.rotation(measured))
            return POSE_TOPIC, _pose(self._target.advance(twist, self._period, measured), self._facts.base_frame, now)
        return TWIST_TOPIC, self._twist(velocity, facts, measured, now)

    def _twist(self, velocity: Array, facts: EndEffector, measured: Pose, now: Now) -> Any:
        """In the contract's own frame, so that MoveIt Servo turns it with the tool between two messages."""
        base = facts.frame == "base"
        to_base = np.eye(3) if base else measured.rotation
        linear = to_base.T @ within_workspace(to_base @ velocity[:3], measured.position, self._facts)
        frame = self._facts.base_frame if base else self._facts.tool_frame
        return _twist(np.concatenate((linear, velocity[3:])), frame, now)


def _command_type(contract: PolicyContract, command_type: str) -> str:
    possible = ("joint_trajectory",) if contract.action_space == "joint_position" else ("twist", "pose")
    if command_type != "auto" and command_type not in possible:
        raise LightVLAError(
            f"command_type {command_type} does not go with {contract.action_space} actions of a Franka; "
            f"expected auto or {' or '.join(possible)}"
        )
    return possible[0] if command_type == "auto" else command_type


def _joint_trajectory_endpoint() -> Endpoint:
    from trajectory_msgs.msg import JointTrajectory

    return Endpoint(ARM_TOPIC, JointTrajectory, "the arm")


def _twist_endpoint() -> Endpoint:
    from geometry_msgs.msg import TwistStamped

    return Endpoint(TWIST_TOPIC, TwistStamped, "the arm")


def _pose_endpoint() -> Endpoint:
    from geometry_msgs.msg import PoseStamped

    return Endpoint(POSE_TOPIC, PoseStamped, "the arm")


def _joint_trajectory(names: list[str], positions: list[float], period: float) -> Any:
    from builtin_interfaces.msg import Duration
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    seconds, nanoseconds = divmod(round(period * 1e9), 1_000_000_000)
    # Stamp 0 starts now, and positions alone leave the velocity to the controller's interpolation.
    point = JointTrajectoryPoint(positions=positions, time_from_start=Duration(sec=seconds, nanosec=nanoseconds))
    return JointTrajectory(joint_names=names, points=[point])


def _stamp(message: Any, frame: str, now: Now) -> None:
    seconds = math.floor(now.ros)
    message.header.frame_id = frame
    message.header.stamp.sec, message.header.stamp.nanosec = seconds, int((now.ros - seconds) * 1e9)


def _twist(twist: Array, frame: str, now: Now) -> Any:
    from geometry_msgs.msg import TwistStamped

    message = TwistStamped()
    _stamp(message, frame, now)
    for part, values in ((message.twist.linear, twist[:3]), (message.twist.angular, twist[3:])):
        part.x, part.y, part.z = values.tolist()
    return message


def _pose(pose: Pose, frame: str, now: Now) -> Any:
    from geometry_msgs.msg import PoseStamped

    message = PoseStamped()
    _stamp(message, frame, now)
    position, orientation = message.pose.position, message.pose.orientation
    position.x, position.y, position.z = pose.position.tolist()
    orientation.x, orientation.y, orientation.z, orientation.w = quaternion(pose.rotation).tolist()
    return message


class _FrankaGoals:
    """franka_msgs: Move to open, Grasp to close, which holds with a force."""

    def __init__(self, facts: GripperAction, grasp: Any, move: Any) -> None:
        self._facts, self._grasp, self._move = facts, grasp, move
        self.endpoints = (
            Endpoint(f"{facts.topic}/move", move, "the gripper", "action"),
            Endpoint(f"{facts.topic}/grasp", grasp, "the gripper", "action"),
        )

    def goal(self, motion: Motion) -> tuple[str, Any]:
        facts = self._facts
        if motion == "open":
            return self.endpoints[0].name, self._move.Goal(width=facts.max_width, speed=facts.speed)
        goal = self._grasp.Goal(width=0.0, speed=facts.speed, force=facts.force)
        goal.epsilon.inner = goal.epsilon.outer = facts.epsilon
        return self.endpoints[1].name, goal


class _GripperCommandGoals:
    """control_msgs: one action for both; its position is one finger's, half the width, as franka_ros2 takes it."""

    def __init__(self, facts: GripperAction, action: Any) -> None:
        self._facts, self._action = facts, action
        self.endpoints = (Endpoint(f"{facts.topic}/gripper_action", action, "the gripper", "action"),)

    def goal(self, motion: Motion) -> tuple[str, Any]:
        goal = self._action.Goal()
        goal.command.position = self._facts.max_width / 2 if motion == "open" else 0.0
        goal.command.max_effort = self._facts.force
        return self.endpoints[0].name, goal


def _gripper_goals(facts: GripperAction) -> _FrankaGoals | _GripperCommandGoals:
    try:
        from franka_msgs.action import Grasp, Move

        return _FrankaGoals(facts, Grasp, Move)
    except ImportError:
        pass
    try:
        from control_msgs.action import GripperCommand

        return _GripperCommandGoals(facts, GripperCommand)
    except ImportError:
        raise LightVLAError(
            "a Franka's gripper is driven by actions of franka_msgs or control_msgs, and neither is installed here; "
            "source the franka_ros2 workspace, or install control_msgs"
        ) from None

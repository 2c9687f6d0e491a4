"""Franka FR3 on franka_ros2: joint positions or end-effector velocities out, a gripper by actions, its states in.

Everything here computes; publishers and action clients are in commanders.py, facts of the robot in config/robots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lightvla_core.contract import Gripper, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.adapter import States, select_sources, value_of
from lightvla_ros.robots.description import RobotChannel, RobotDescription, check_contract
from lightvla_ros.robots.gripper import GripperEdges, opening_of, value_of_opening
from lightvla_ros.robots.gripper_goals import gripper_goals
from lightvla_ros.robots.rotations import POSE_VALUES, Array, axis_angle
from lightvla_ros.safety import Now

if TYPE_CHECKING:
    from lightvla_ros.robots.franka_arm import ArmWay

EEF = ("eef_x", "eef_y", "eef_z", "eef_rx", "eef_ry", "eef_rz")

# Proprioception -> number of the finger joint, and its sign: robosuite, and so LIBERO, has the right finger negative.
_FINGERS = {"finger_1": ("1", 1.0), "finger_2": ("2", 1.0), "finger_left": ("1", 1.0), "finger_right": ("2", -1.0)}

# What each action space may be commanded by, the usual first.
_COMMAND_TYPES = {"joint_position": ("joint_trajectory",), "eef_delta": ("twist", "pose", "joint_trajectory")}


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
    scales: dict[str, float] = {}
    if contract.end_effector is not None:
        scales = dict(zip(EEF, end_effector_scales(contract).tolist(), strict=True))

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


def end_effector_scales(contract: PolicyContract) -> Array:
    """What one unit of each of EEF is, (6,) m and rad; for joint positions (1,), no scale."""
    facts = contract.end_effector
    if facts is None:
        return np.ones(1)
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


class FrankaAdapter:
    """See adapter.RobotAdapter. command_type: auto; joint_trajectory; for deltas also twist and pose."""

    def __init__(
        self, contract: PolicyContract, robot: RobotDescription, command_type: str, period: float, pose_source: str
    ) -> None:
        check_contract(contract, robot)
        assert robot.gripper_action is not None
        self._contract, self._period = contract, period
        self._gripper, self._scales = _gripper_of(contract), end_effector_scales(contract)
        self._edges, self._goals = GripperEdges(robot.gripper_action), gripper_goals(robot.gripper_action)
        self._arm = _way(contract, robot, command_type)
        self.robot = _reading(self._arm.source, description_for(contract, robot))
        self._channels = self.robot.select(contract.action_names)
        needed = dict.fromkeys(channel.arm for channel in self._channels)
        self.sources = select_sources(robot, tuple(needed), pose_source)
        self.endpoints = (self._arm.endpoint, *self._goals.endpoints)
        # The arm's share of a command, in the order of the robot's file.
        names = [name for name in robot.spaces[contract.action_space] if name not in self._gripper.channels]
        self._order = [contract.action_names.index(name) for name in names]

    def set_period(self, period: float) -> None:
        self._period = period

    def reset(self) -> None:
        self._edges.reset()
        self._arm.reset()

    def measure(self, states: States) -> Array:
        self._arm.check(states, self._period)
        return np.array([self._measured(channel, states) for channel in self._channels])

    def messages(self, command: Array, states: States, now: Now, holding: bool) -> Iterator[tuple[str, Any]]:
        values = command[self._order] * self._scales
        arm = self._arm.message(values, states, now, self._period, holding)
        if arm is not None:
            yield self._arm.endpoint.name, arm
        # What a stopped policy wished for last must not be done now.
        if holding:
            return
        gripper = float(command[self._contract.action_names.index("gripper")])
        motion = self._edges.update(opening_of(gripper, self._gripper), now.steady)
        if motion is not None:
            yield self._goals.goal(motion)

    def goal_failed(self, goal: Any, accepted: bool) -> None:
        if not (accepted and self._goals.may_hold(goal)):
            self._edges.forget()

    def _measured(self, channel: RobotChannel, states: States) -> float:
        if channel.gripper is not None:
            return _measured_gripper(channel, self._gripper, states)
        return 0.0 if channel.name in EEF else value_of(states, channel.arm, channel.state_joint)


def _way(contract: PolicyContract, robot: RobotDescription, command_type: str) -> ArmWay:
    # Not at the top: proprioception is read offline too, where there is no ROS.
    from lightvla_ros.robots.franka_arm import JointDeltas, JointPositions, PoseTargets, Twists

    possible = _COMMAND_TYPES[contract.action_space]
    chosen = possible[0] if command_type == "auto" else command_type
    if chosen not in possible:
        raise LightVLAError(
            f"command_type {command_type} does not go with {contract.action_space} actions of a Franka; "
            f"expected auto or {' or '.join(possible)}"
        )
    joints = tuple(c for c in robot.select(robot.spaces["joint_position"]) if c.gripper is None)
    facts, meaning = robot.end_effector, contract.end_effector
    assert facts is not None
    if meaning is None:
        return JointPositions(joints)
    if chosen == "joint_trajectory":
        return JointDeltas(facts, meaning, joints)
    return Twists(facts, meaning) if chosen == "twist" else PoseTargets(facts, meaning)


def _reading(source: str, robot: RobotDescription) -> RobotDescription:
    """The robot whose end-effector channels depend on this state source, so that it is the one that is watched."""
    return replace(robot, channels=tuple(replace(c, arm=source) if c.name in EEF else c for c in robot.channels))

"""ALOHA on the Interbotix drivers: joint states in, commands out, by name and never by index.

Pure functions, and thin builders of the driver's messages from what they give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.adapter import Endpoint, States
from lightvla_ros.robots.description import RobotChannel, RobotDescription, check_contract
from lightvla_ros.safety import Now

CommandType = Literal["joint_trajectory", "interbotix", "float64_multi_array"]
COMMAND_TYPES: tuple[CommandType, ...] = get_args(CommandType)


@dataclass(frozen=True)
class ArmCommand:
    """One arm's share of an action: joint positions rad by joint name, and the gripper's motor angle rad."""

    arm: str
    joints: tuple[str, ...]
    positions: tuple[float, ...]
    gripper_joint: str
    gripper: float


@dataclass(frozen=True)
class CommandTopic:
    """One topic of commands: its relative name, message class, and how an arm's command becomes a message."""

    arm: str
    topic: str
    message: Any
    build: Callable[[ArmCommand], Any]


def proprioception(channels: Sequence[RobotChannel], states: Mapping[str, Mapping[str, float]]) -> NDArray[np.float64]:
    """Joint states -> float64 (channels,) in the channels' order, rad and 0..1 for grippers.

    states: arm namespace -> joint name -> position as the driver reports it (fingers in m)
    Raises LightVLAError when an arm or a joint is missing: missing is missing, never zero.
    """
    return np.array([_measured(channel, states) for channel in channels], dtype=np.float64)


class ArmCommands:
    """One command an arm from an action, in the order of the arms' channels.

    channels: in the order of the actions. Who stands where in an action is found out once, not in every control period.
    """

    def __init__(self, channels: Sequence[RobotChannel]) -> None:
        self._width = len(channels)
        arms = dict.fromkeys(c.arm for c in channels)
        self._shares = [_Share.of(arm, channels) for arm in arms]

    def of(self, action: NDArray[np.float64]) -> tuple[ArmCommand, ...]:
        """action: float64 (channels,)"""
        if action.shape != (self._width,):
            raise LightVLAError(f"an action has shape {action.shape}, expected ({self._width},)")
        values = action.tolist()
        return tuple(share.command(values) for share in self._shares)


def command_topics(arms: Sequence[str], command_type: CommandType, period: float) -> tuple[CommandTopic, ...]:
    """The command topics of these arms. period: of the control loop, s, in which a commanded position is reached."""
    make = {
        "joint_trajectory": _trajectory_topics,
        "interbotix": _interbotix_topics,
        "float64_multi_array": _array_topics,
    }[command_type]
    return make(arms, period)


class AlohaAdapter:
    """See adapter.RobotAdapter. command_type: auto is joint_trajectory."""

    def __init__(self, contract: PolicyContract, robot: RobotDescription, command_type: str, period: float) -> None:
        check_contract(contract, robot)
        chosen = next((c for c in COMMAND_TYPES if command_type in (c, "auto")), None)
        if chosen is None:
            raise LightVLAError(
                f"command_type {command_type} is not one of robot {robot.robot}; expected {', '.join(COMMAND_TYPES)}"
            )
        self.robot, self._command_type = robot, chosen
        self._channels = robot.select(contract.action_names)
        # The driver's groups and controllers have an order of their own, which is the description's.
        self._order = [contract.action_names.index(name) for name in robot.names]
        self._commands = ArmCommands(robot.channels)
        self.sources = robot.sources
        self.set_period(period)
        self.endpoints = tuple(Endpoint(t.topic, t.message, t.arm) for t in self._topics)

    def set_period(self, period: float) -> None:
        self._topics = command_topics(tuple(self.robot.joint_state_topics), self._command_type, period)

    def reset(self) -> None:
        """Nothing: every command says everything."""

    def measure(self, states: States) -> NDArray[np.float64]:
        return proprioception(self._channels, states)

    def messages(
        self, command: NDArray[np.float64], states: States, now: Now, holding: bool
    ) -> Iterator[tuple[str, Any]]:
        by_arm = {c.arm: c for c in self._commands.of(command[self._order])}
        for topic in self._topics:
            yield topic.topic, topic.build(by_arm[topic.arm])

    def goal_failed(self, goal: Any, accepted: bool) -> None:
        """Nothing: no goals are sent."""


def _measured(channel: RobotChannel, states: Mapping[str, Mapping[str, float]]) -> float:
    if channel.arm not in states:
        raise LightVLAError(f"no joint state of {channel.arm} has arrived")
    positions = states[channel.arm]
    if channel.state_joint not in positions:
        raise LightVLAError(
            f"the joint state of {channel.arm} lacks {channel.state_joint}; it has {', '.join(positions)}"
        )
    position = positions[channel.state_joint]
    return position if channel.gripper is None else channel.gripper.opening(position)


@dataclass(frozen=True)
class _Share:
    """What of an action is one arm's: the driver takes the joints as one group and the gripper alone."""

    arm: str
    joints: tuple[str, ...]
    indices: tuple[int, ...]
    gripper_joint: str
    gripper_index: int
    motor: Callable[[float], float]

    @classmethod
    def of(cls, arm: str, channels: Sequence[RobotChannel]) -> _Share:
        own = [(i, c) for i, c in enumerate(channels) if c.arm == arm]
        joints = [(i, c.joint) for i, c in own if c.gripper is None]
        # The description gives every arm one gripper.
        index, joint, gripper = next((i, c.joint, c.gripper) for i, c in own if c.gripper is not None)
        return cls(arm, tuple(j for _, j in joints), tuple(i for i, _ in joints), joint, index, gripper.motor)

    def command(self, values: Sequence[float]) -> ArmCommand:
        positions = tuple(values[i] for i in self.indices)
        return ArmCommand(self.arm, self.joints, positions, self.gripper_joint, self.motor(values[self.gripper_index]))


def _trajectory_topics(arms: Sequence[str], period: float) -> tuple[CommandTopic, ...]:
    from trajectory_msgs.msg import JointTrajectory

    from lightvla_ros.robots.messages import JointGoal

    def arm_message(goal: JointGoal, command: ArmCommand) -> Any:
        return goal.message(command.joints, command.positions, period)

    def gripper_message(goal: JointGoal, command: ArmCommand) -> Any:
        return goal.message((command.gripper_joint,), (command.gripper,), period)

    return tuple(
        CommandTopic(arm, f"{arm}/{controller}/joint_trajectory", JointTrajectory, partial(build, JointGoal()))
        for arm in arms
        for controller, build in (("arm_controller", arm_message), ("gripper_controller", gripper_message))
    )


def _interbotix_topics(arms: Sequence[str], period: float) -> tuple[CommandTopic, ...]:
    try:
        from interbotix_xs_msgs.msg import JointGroupCommand, JointSingleCommand
    except ImportError:
        raise LightVLAError(
            "command_type interbotix needs the package interbotix_xs_msgs, which is not installed here; source the "
            "Interbotix workspace, or use command_type joint_trajectory"
        ) from None

    def arm_message(command: ArmCommand) -> Any:
        return JointGroupCommand(name="arm", cmd=list(command.positions))

    def gripper_message(command: ArmCommand) -> Any:
        return JointSingleCommand(name=command.gripper_joint, cmd=command.gripper)

    return tuple(
        topic
        for arm in arms
        for topic in (
            CommandTopic(arm, f"{arm}/commands/joint_group", JointGroupCommand, arm_message),
            CommandTopic(arm, f"{arm}/commands/joint_single", JointSingleCommand, gripper_message),
        )
    )


def _array_topics(arms: Sequence[str], period: float) -> tuple[CommandTopic, ...]:
    """ros2_control's forward_command_controller: numbers alone, in the order of the controller's `joints`."""
    from std_msgs.msg import Float64MultiArray

    def arm_message(command: ArmCommand) -> Any:
        return Float64MultiArray(data=list(command.positions))

    def gripper_message(command: ArmCommand) -> Any:
        return Float64MultiArray(data=[command.gripper])

    return tuple(
        CommandTopic(arm, f"{arm}/{controller}/commands", Float64MultiArray, build)
        for arm in arms
        for controller, build in (("arm_controller", arm_message), ("gripper_controller", gripper_message))
    )

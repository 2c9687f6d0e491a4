"""ALOHA on the Interbotix drivers: joint states in, commands out, by name and never by index.

Two pure functions, and thin builders of the driver's messages from what they give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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


def commands(channels: Sequence[RobotChannel], action: NDArray[np.float64]) -> tuple[ArmCommand, ...]:
    """A float64 (channels,) action in the channels' order -> one command an arm, in the order of the arms' channels."""
    if action.shape != (len(channels),):
        raise LightVLAError(f"an action has shape {action.shape}, expected ({len(channels)},)")
    wanted = {(c.arm, c.joint): (c, float(value)) for c, value in zip(channels, action, strict=True)}
    arms = dict.fromkeys(c.arm for c in channels)
    return tuple(_arm_command(arm, [v for (a, _), v in wanted.items() if a == arm]) for arm in arms)


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
        by_arm = {c.arm: c for c in commands(self.robot.channels, command[self._order])}
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


def _arm_command(arm: str, wanted: Sequence[tuple[RobotChannel, float]]) -> ArmCommand:
    joints = [(c.joint, value) for c, value in wanted if c.gripper is None]
    # The driver takes the six joints as one group and the gripper alone; the description gives every arm one gripper.
    gripper_joint, motor = next((c.joint, c.gripper.motor(value)) for c, value in wanted if c.gripper is not None)
    return ArmCommand(arm, tuple(n for n, _ in joints), tuple(v for _, v in joints), gripper_joint, motor)


def _trajectory_topics(arms: Sequence[str], period: float) -> tuple[CommandTopic, ...]:
    from trajectory_msgs.msg import JointTrajectory

    from lightvla_ros.robots.messages import joint_trajectory

    def arm_message(command: ArmCommand) -> Any:
        return joint_trajectory(command.joints, command.positions, period)

    def gripper_message(command: ArmCommand) -> Any:
        return joint_trajectory([command.gripper_joint], [command.gripper], period)

    return tuple(
        CommandTopic(arm, f"{arm}/{controller}/joint_trajectory", JointTrajectory, build)
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

"""What the nodes need of a robot, the same for every robot: its states as numbers, and commands as its own messages.

The interface and the choice of the adapter; each robot's own is in its module, publishers and clients in commanders.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.description import RobotDescription, StateSource
from lightvla_ros.robots.rotations import POSE_VALUES
from lightvla_ros.safety import Now

# Source -> name -> value, as the driver reports it: joint name -> rad or m, or the POSE_VALUES of a pose.
States = Mapping[str, Mapping[str, float]]

COMMAND_TYPES = ("auto", "joint_trajectory", "interbotix", "float64_multi_array", "twist", "pose")
POSE_SOURCES = ("broadcaster", "tf")


@dataclass(frozen=True)
class Endpoint:
    """Where commands go. name: relative, of the topic or action; message: its class; part: what it commands"""

    name: str
    message: Any
    part: str
    kind: Literal["topic", "action"] = "topic"


class RobotAdapter(Protocol):
    """One robot under one contract.

    robot: the description, its limits in the contract's units
    sources: what `measure` and `messages` read; endpoints: what `messages` names
    """

    robot: RobotDescription
    sources: tuple[StateSource, ...]
    endpoints: tuple[Endpoint, ...]

    def measure(self, states: States) -> NDArray[np.float64]:
        """The measured action channels, (channels,), contract order; raises LightVLAError where something is missing.

        A channel that is a velocity is measured as 0: commands start from standstill. So that this hides nothing, it
        raises too where the state behind such a channel is not usable, or does not follow what was commanded.
        """
        ...

    def messages(
        self, command: NDArray[np.float64], states: States, now: Now, holding: bool
    ) -> Iterator[tuple[str, Any]]:
        """What to send for a command (channels,): endpoint name and message (an action: its goal).

        holding: the command is the latched target of a stop: nothing begins that was not under way
        Called once a control period. May yield nothing for an endpoint where there is nothing new to say.
        """
        ...

    def goal_failed(self, goal: Any, accepted: bool) -> None:
        """An action refused a goal of `messages`, or accepted and did not reach it; from another thread."""
        ...

    def set_period(self, period: float) -> None:
        """Of the control loop from now on, s."""
        ...

    def reset(self) -> None:
        """Forget what was commanded before; called when it is armed."""
        ...


def adapter_for(
    contract: PolicyContract,
    robot: RobotDescription,
    command_type: str,
    period: float,
    pose_source: str = "broadcaster",
) -> RobotAdapter:
    """The adapter of this robot. period: of the control loop, s. Raises LightVLAError for what does not go together."""
    if robot.end_effector is not None:
        from lightvla_ros.robots.franka import FrankaAdapter

        return FrankaAdapter(contract, robot, command_type, period, pose_source)
    from lightvla_ros.robots.aloha import AlohaAdapter

    return AlohaAdapter(contract, robot, command_type, period)


def proprioception_sources(
    contract: PolicyContract, robot: RobotDescription, pose_source: str = "broadcaster"
) -> tuple[StateSource, ...]:
    """The state topics behind a contract's proprioception, in its order."""
    needed = dict.fromkeys(state.source for state in robot.select_states(contract.proprio_names))
    return select_sources(robot, tuple(needed), pose_source)


def select_sources(robot: RobotDescription, names: Sequence[str], pose_source: str) -> tuple[StateSource, ...]:
    """The sources of these names; the end effector's pose comes from tf where that is the pose_source."""
    by_name = {source.name: source for source in robot.sources}
    chosen = (by_name[name] for name in names)
    return tuple(
        StateSource(s.name, "/tf", "tf", s.base, s.tip) if s.kind == "pose" and pose_source == "tf" else s
        for s in chosen
    )


def proprioception(contract: PolicyContract, robot: RobotDescription, states: States) -> NDArray[np.float64]:
    """The contract's proprioception, float64 (channels,). Raises LightVLAError where something is missing."""
    if robot.end_effector is not None:
        from lightvla_ros.robots import franka

        return franka.proprioception(contract, robot, states)
    from lightvla_ros.robots import aloha

    return aloha.proprioception(robot.select(contract.proprio_names), states)


def state_values(message: Any, label: str) -> dict[str, float]:
    """sensor_msgs/JointState or geometry_msgs/PoseStamped -> value by name. label: its source, for errors.

    Values that are not finite pass: whoever acts on them decides what they mean.
    """
    if hasattr(message, "pose"):
        p, q = message.pose.position, message.pose.orientation
        values = dict(zip(POSE_VALUES, (p.x, p.y, p.z, q.x, q.y, q.z, q.w), strict=True))
    else:
        names, positions = list(message.name), list(message.position)
        if len(names) != len(positions):
            raise LightVLAError(f"{label} sent {len(names)} joint names with {len(positions)} positions")
        values = dict(zip(names, positions, strict=True))
    return values


def value_of(states: States, source: str, name: str) -> float:
    """One value of one source; missing is missing, never zero."""
    if source not in states:
        raise LightVLAError(f"no state of {source} has arrived")
    if name not in states[source]:
        raise LightVLAError(f"the state of {source} lacks {name}; it has {', '.join(states[source])}")
    return states[source][name]

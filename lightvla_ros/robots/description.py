"""A robot as data: which driver joint each action channel is, limits, gripper conversion, start pose, topics.

Facts and their checks; description_file reads them, and what becomes of an action vector is in the robot's module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from lightvla_core.contract import ActionSpace, Channel, PolicyContract, Unit
from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.kinematics import Kinematics


@dataclass(frozen=True)
class GripperConversion:
    """Linear maps between a gripper's 0 (closed) .. 1 (open), its finger joint (m) and its motor (rad)."""

    finger_closed: float
    finger_open: float
    motor_closed: float
    motor_open: float

    def __post_init__(self) -> None:
        _check_finite("gripper", vars(self))
        if self.finger_closed == self.finger_open or self.motor_closed == self.motor_open:
            raise LightVLAError("gripper: its open and closed values are equal, so it cannot be converted")

    def opening(self, finger: float) -> float:
        """Finger joint, m -> 0 closed .. 1 open, and a little beyond where the finger is."""
        return (finger - self.finger_closed) / (self.finger_open - self.finger_closed)

    def motor(self, opening: float) -> float:
        """0 closed .. 1 open -> motor angle, rad."""
        return self.motor_closed + opening * (self.motor_open - self.motor_closed)


@dataclass(frozen=True)
class RobotChannel:
    """One action channel and the joint behind it.

    arm: namespace of the driver; joint: its name for commands; state_joint: its name in joint states
    lower, upper: rad (a gripper: 0..1); max_velocity: per s; max_step: per control period
    max_tracking_error: largest |commanded - measured|, infinite where contact is the purpose
    start: where the arm should stand before a policy takes over
    """

    name: str
    unit: Unit
    arm: str
    joint: str
    state_joint: str
    lower: float
    upper: float
    max_velocity: float
    max_step: float
    start: float
    max_tracking_error: float = math.inf
    gripper: GripperConversion | None = None

    def __post_init__(self) -> None:
        _check_finite(self.name, {k: getattr(self, k) for k in ("lower", "upper", "max_step")})
        if not self.lower < self.upper:
            raise LightVLAError(f"{self.name}: lower {self.lower} is not below upper {self.upper}")
        for key in ("max_velocity", "max_step", "max_tracking_error"):
            if not getattr(self, key) > 0:
                raise LightVLAError(f"{self.name}: {key} is {getattr(self, key)}, not a positive number")
        if not self.lower <= self.start <= self.upper:
            raise LightVLAError(f"{self.name}: the start pose {self.start} is outside [{self.lower}, {self.upper}]")


SourceKind = Literal["joint_state", "pose", "tf"]
UNITS: tuple[Unit, ...] = get_args(Unit)
SOURCE_KINDS: tuple[SourceKind, ...] = get_args(SourceKind)


@dataclass(frozen=True)
class StateSource:
    """A topic on which a robot reports its state.

    kind: `joint_state` (sensor_msgs/JointState), `pose` (geometry_msgs/PoseStamped), `tf`: the pose of frame `tip` in
        frame `base` from /tf and /tf_static
    frames: names under which a driver gives poses in `base`
    """

    name: str
    topic: str
    kind: SourceKind = "joint_state"
    base: str = ""
    tip: str = ""
    frames: tuple[str, ...] = ()

    def require_base(self, frame: str, label: str) -> None:
        """Raise LightVLAError where a pose is given in another frame than `base`. label: whose it is, for the error"""
        if frame.lstrip("/") not in self.frames:
            raise LightVLAError(f"{label} is given in the frame {frame!r}, expected {' or '.join(self.frames)}")


@dataclass(frozen=True)
class StateChannel:
    """One number of the proprioception. source: the StateSource it comes from; start: its value at the start pose."""

    name: str
    unit: Unit
    source: str
    start: float


@dataclass(frozen=True)
class EndEffectorFacts:
    """What an end-effector robot needs beside its channels.

    base_frame: of poses and of deltas in frame `base`; tool_frame: of deltas in frame `tool`
    workspace_lower, workspace_upper: where the end effector may be, (3,) m, base frame
    max_speed: of each axis, m/s and rad/s
    max_lead: largest distance between a pose target and the measured pose, m and rad
    kinematics: of the joint channels, in their order, to the tool frame
    """

    base_frame: str
    tool_frame: str
    workspace_lower: tuple[float, float, float]
    workspace_upper: tuple[float, float, float]
    max_speed: tuple[float, float]
    max_lead: tuple[float, float]
    kinematics: Kinematics

    def __post_init__(self) -> None:
        pairs = zip(self.workspace_lower, self.workspace_upper, strict=True)
        if not all(math.isfinite(low) and math.isfinite(high) and low < high for low, high in pairs):
            raise LightVLAError(f"workspace: {self.workspace_lower} is not below {self.workspace_upper}")
        for key in ("max_speed", "max_lead"):
            if not all(math.isfinite(value) and value > 0 for value in getattr(self, key)):
                raise LightVLAError(f"{key} is {getattr(self, key)}, not positive numbers")


@dataclass(frozen=True)
class GripperAction:
    """A gripper that is opened and closed by ROS actions. Widths m, speed m/s, force N, min_interval s.

    close_below, open_above: opening (0 closed .. 1 open) where a closing, an opening begins; between them nothing does
    epsilon: how far a grasped object's width may be from the commanded one
    """

    topic: str
    max_width: float
    speed: float
    force: float
    epsilon: float
    close_below: float
    open_above: float
    min_interval: float

    def __post_init__(self) -> None:
        _check_finite("gripper", {k: v for k, v in vars(self).items() if k != "topic"})
        if not 0.0 < self.close_below < self.open_above < 1.0:
            raise LightVLAError(
                f"gripper: close_below {self.close_below} and open_above {self.open_above} should be in (0, 1) and rise"
            )
        for key in ("max_width", "speed", "force", "epsilon"):
            if not getattr(self, key) > 0:
                raise LightVLAError(f"gripper: {key} is {getattr(self, key)}, not a positive number")


@dataclass(frozen=True)
class RobotDescription:
    """A robot: its channels in the order of its file, state topics by source, camera topics by camera name.

    spaces: for each action space that the robot takes, the channels that it needs, all of them; empty: joint positions
    of all channels
    sources, states: where proprioception comes from; empty: the channels themselves, each arm's joint states
    """

    robot: str
    channels: tuple[RobotChannel, ...]
    joint_state_topics: dict[str, str]
    camera_topics: dict[str, str]
    spaces: dict[ActionSpace, tuple[str, ...]] = field(default_factory=dict)
    sources: tuple[StateSource, ...] = ()
    states: tuple[StateChannel, ...] = ()
    end_effector: EndEffectorFacts | None = None
    gripper_action: GripperAction | None = None

    def __post_init__(self) -> None:
        if not self.spaces:
            object.__setattr__(self, "spaces", {"joint_position": tuple(c.name for c in self.channels)})
        if not self.sources:
            sources = tuple(StateSource(arm, topic) for arm, topic in self.joint_state_topics.items())
            object.__setattr__(self, "sources", sources)
        if not self.states:
            states = tuple(StateChannel(c.name, c.unit, c.arm, c.start) for c in self.channels)
            object.__setattr__(self, "states", states)
        names = [c.name for c in self.channels]
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled or not names:
            raise LightVLAError(f"robot {self.robot}: channel {', '.join(doubled) or 'list'} is doubled or empty")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.channels)

    def select(self, names: tuple[str, ...]) -> tuple[RobotChannel, ...]:
        """The channels of these names, in the order of the names."""
        by_name = {c.name: c for c in self.channels}
        missing = [n for n in names if n not in by_name]
        if missing:
            raise LightVLAError(
                f"robot {self.robot} has no channel {', '.join(missing)}; it has {', '.join(self.names)}"
            )
        return tuple(by_name[n] for n in names)

    def select_states(self, names: tuple[str, ...]) -> tuple[StateChannel, ...]:
        """The proprioception of these names, in their order."""
        by_name = {s.name: s for s in self.states}
        missing = [n for n in names if n not in by_name]
        if missing:
            raise LightVLAError(f"robot {self.robot} has no channel {', '.join(missing)}; it has {', '.join(by_name)}")
        return tuple(by_name[n] for n in names)

    def camera_topic(self, camera: str) -> str:
        if camera not in self.camera_topics:
            raise LightVLAError(
                f"robot {self.robot} has no camera {camera}; it has {', '.join(self.camera_topics) or 'none'}"
            )
        return self.camera_topics[camera]


def check_contract(contract: PolicyContract, robot: RobotDescription) -> None:
    """Raise LightVLAError, in one sentence, unless this robot can execute this contract's actions."""
    if contract.robot != robot.robot:
        raise LightVLAError(f"the policy was trained for robot {contract.robot}, but this robot is {robot.robot}")
    if contract.action_space not in robot.spaces:
        raise LightVLAError(
            f"robot {robot.robot} takes {' or '.join(robot.spaces)} actions, not the policy's {contract.action_space}"
        )
    needed = robot.spaces[contract.action_space]
    missing = [n for n in needed if n not in contract.action_names]
    if missing:
        raise LightVLAError(
            f"the policy has {len(contract.actions)} actions and none for {', '.join(missing)}; robot "
            f"{robot.robot} has {len(needed)} channels for {contract.action_space} and every one needs an action"
        )
    foreign = [n for n in contract.action_names if n not in needed]
    if foreign:
        raise LightVLAError(f"robot {robot.robot} has no channel {', '.join(foreign)}; it has {', '.join(needed)}")
    _check_units(contract, robot)
    gripper = contract.gripper
    # A gripper that is driven by actions takes either sign.
    if robot.gripper_action is None and gripper is not None and (gripper.closed, gripper.open) != (0.0, 1.0):
        raise LightVLAError(
            f"robot {robot.robot} takes grippers as 0 closed, 1 open, but the policy's are {gripper.closed} closed, "
            f"{gripper.open} open"
        )


def _check_units(contract: PolicyContract, robot: RobotDescription) -> None:
    known: list[tuple[str, Channel, Unit]] = [
        ("proprioception", channel, state.unit)
        for channel, state in zip(contract.proprioception, robot.select_states(contract.proprio_names), strict=True)
    ]
    # A delta's unit goes with its scale, which is in the contract too: that is checked where the two are used.
    if contract.action_space != "eef_delta":
        robot_channels = robot.select(contract.action_names)
        known += [("action", c, channel.unit) for c, channel in zip(contract.actions, robot_channels, strict=True)]
    for what, channel, unit in known:
        if channel.unit != unit:
            verb = "takes" if what == "action" else "gives"
            raise LightVLAError(
                f"{what} {channel.name} is in {channel.unit}, but robot {robot.robot} {verb} it in {unit}"
            )


def _check_finite(what: str, values: dict[str, float]) -> None:
    for key, value in values.items():
        if not math.isfinite(value):
            raise LightVLAError(f"{what}: {key} is {value}, not a finite number")

"""A robot as data: which driver joint each action channel is, limits, gripper conversion, start pose, topics.

Reading and checking only; what becomes of an action vector is in the robot's own module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from lightvla_core.contract import ActionSpace, Channel, PolicyContract, Unit
from lightvla_core.errors import LightVLAError
from lightvla_core.resources import resource
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
    """

    name: str
    topic: str
    kind: SourceKind = "joint_state"
    base: str = ""
    tip: str = ""


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


def load_robot(name: str, gripper: str) -> RobotDescription:
    """Read config/robots/<name>.yaml, or the file that `name` is the path of.

    gripper: one of its variants, or empty for the first
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else resource(f"config/robots/{name}.yaml")
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise LightVLAError(f"cannot read the robot description {path} ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise LightVLAError(f"{path} is not valid YAML ({' '.join(str(error).split())})") from None
    try:
        return _parse(_Fields(data, path.name), gripper)
    except (LightVLAError, TypeError, ValueError) as error:
        raise LightVLAError(f"robot description {path}: {error}") from None


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


class _Fields:
    """A mapping read from YAML whose keys are asked for by type, and whose leftovers are an error."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise LightVLAError(f"{where} should be a mapping, but is {type(data).__name__}")
        self._data, self._where = dict(data), where

    def has(self, key: str) -> bool:
        return key in self._data

    def text(self, key: str) -> str:
        return str(self._take(key, str))

    def number(self, key: str) -> float:
        return float(self._take(key, (int, float)))

    def fields(self, key: str) -> _Fields:
        return _Fields(self._take(key, dict), f"{self._where}: {key}")

    def items(self, key: str) -> list[Any]:
        return list(self._take(key, list))

    def mapping(self, key: str) -> dict[str, Any]:
        return dict(self._take(key, dict))

    def numbers(self) -> dict[str, float]:
        return {key: self.number(key) for key in list(self._data)}

    def end(self) -> None:
        if self._data:
            raise LightVLAError(f"{self._where} has the unknown key {', '.join(map(str, self._data))}")

    def _take(self, key: str, kind: type | tuple[type, ...]) -> Any:
        if key not in self._data:
            raise LightVLAError(f"{self._where} lacks the key {key}")
        value = self._data.pop(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise LightVLAError(f"{self._where}: {key} has the wrong type, it is {value!r}")
        return value


_JOINT_KEYS = ("lower", "upper", "max_velocity", "max_step", "max_tracking_error")


def _parse(data: _Fields, variant: str) -> RobotDescription:
    """One of two kinds of file: arms that are all alike, or one arm with an end effector."""
    return _parse_end_effector_robot(data, variant) if data.has("end_effector") else _parse_arms(data, variant)


def _parse_arms(data: _Fields, variant: str) -> RobotDescription:
    robot, joint_states = data.text("robot"), data.text("joint_states")
    arms = [(arm.text("prefix"), arm.text("namespace")) for arm in map(_arm, data.items("arms"))]
    joints = [_Fields(joint, "a joint") for joint in data.items("joints")]
    start = data.items("start_pose")
    if len(start) != len(joints):
        raise LightVLAError(f"start_pose has {len(start)} numbers for {len(joints)} joints")
    templates = [
        {"name": joint.text("name"), "start": float(value)} | {key: joint.number(key) for key in _JOINT_KEYS}
        for joint, value in zip(joints, start, strict=True)
    ]
    gripper = _gripper(data.fields("gripper"), variant)
    cameras = {str(name): str(topic) for name, topic in data.mapping("cameras").items()}
    for part in (*joints, data):
        part.end()
    channels = [
        channel
        for prefix, namespace in arms
        for channel in (*(_joint_channel(prefix, namespace, t) for t in templates), gripper(prefix, namespace))
    ]
    topics = {namespace: f"{namespace}/{joint_states}" for _, namespace in arms}
    return RobotDescription(robot, tuple(channels), topics, cameras)


def _arm(data: Any) -> _Fields:
    return _Fields(data, "an arm")


def _joint_channel(prefix: str, arm: str, template: dict[str, Any]) -> RobotChannel:
    joint = template["name"]
    rest = {key: value for key, value in template.items() if key != "name"}
    return RobotChannel(name=f"{prefix}_{joint}", unit="rad", arm=arm, joint=joint, state_joint=joint, **rest)


def _gripper(data: _Fields, variant: str) -> Any:
    variants = data.mapping("variants")
    variant = variant or next(iter(variants), "")
    if variant not in variants:
        raise LightVLAError(f"there is no gripper {variant!r}; there are {', '.join(variants)}")
    fields = _Fields(variants[variant], f"gripper {variant}")
    keys = ("finger_closed", "finger_open", "motor_closed", "motor_open")
    conversion = GripperConversion(**{key: fields.number(key) for key in keys})
    fields.end()
    joint, state_joint = data.text("name"), data.text("state_joint")
    limits = {key: data.number(key) for key in ("max_velocity", "max_step", "start")}
    data.end()

    def channel(prefix: str, arm: str) -> RobotChannel:
        return RobotChannel(
            name=f"{prefix}_{joint}", unit="normalized", arm=arm, joint=joint, state_joint=state_joint,
            lower=0.0, upper=1.0, gripper=conversion, **limits,
        )  # fmt: skip

    return channel


_EEF = ("x", "y", "z", "rx", "ry", "rz")


def _parse_end_effector_robot(data: _Fields, variant: str) -> RobotDescription:
    """One arm that takes joint positions or end-effector velocities, with a gripper driven by actions."""
    robot = data.text("robot")
    frames = {key: data.text(key) for key in ("base_frame", "tool_frame")}
    sources = tuple(_source(str(name), fields, frames) for name, fields in data.mapping("sources").items())
    joints = tuple(_arm_joint(_Fields(joint, "a joint")) for joint in data.items("joints"))
    kinematics = _kinematics(data.fields("kinematics"), len(joints))
    end_effector, facts = _end_effector(data.fields("end_effector"), frames, kinematics)
    gripper, action = _gripper_by_action(data.fields("gripper"), variant)
    sources = (*sources, StateSource("fingers", f"{action.topic}/joint_states"))
    states = tuple(_state(_Fields(state, "a state")) for state in data.items("states"))
    cameras = {str(name): str(topic) for name, topic in data.mapping("cameras").items()}
    data.end()
    return RobotDescription(
        robot=robot,
        channels=(*joints, *end_effector, gripper),
        joint_state_topics={s.name: s.topic for s in sources if s.kind == "joint_state"},
        camera_topics=cameras,
        spaces={
            "joint_position": (*(c.name for c in joints), gripper.name),
            "eef_delta": (*(c.name for c in end_effector), gripper.name),
        },
        sources=sources,
        states=states,
        end_effector=facts,
        gripper_action=action,
    )


def _source(name: str, value: Any, frames: dict[str, str]) -> StateSource:
    fields = _Fields(value, f"source {name}")
    topic, kind = fields.text("topic"), fields.text("kind")
    fields.end()
    if kind not in SOURCE_KINDS:
        raise LightVLAError(f"source {name}: kind is {kind!r}, expected one of {', '.join(SOURCE_KINDS)}")
    return StateSource(name, topic, kind, frames["base_frame"], frames["tool_frame"])


def _arm_joint(fields: _Fields) -> RobotChannel:
    name, joint, start = fields.text("name"), fields.text("joint"), fields.number("start")
    limits: dict[str, Any] = {key: fields.number(key) for key in _JOINT_KEYS}
    fields.end()
    return RobotChannel(name=name, unit="rad", arm="arm", joint=joint, state_joint=joint, start=start, **limits)


def _kinematics(fields: _Fields, joints: int) -> Kinematics:
    links = tuple(_three(link) for link in fields.items("links"))
    tool = (fields.number("tool_distance"), fields.number("tool_turn"))
    fields.end()
    if len(links) != joints:
        raise LightVLAError(f"kinematics has {len(links)} links for {joints} joints")
    return Kinematics(links, tool)


def _end_effector(
    fields: _Fields, frames: dict[str, str], kinematics: Kinematics
) -> tuple[tuple[RobotChannel, ...], EndEffectorFacts]:
    """Velocities are the channels: position limits are speeds, and limits of change are accelerations."""
    speed = (fields.number("max_linear_speed"), fields.number("max_angular_speed"))
    acceleration = (fields.number("max_linear_acceleration"), fields.number("max_angular_acceleration"))
    workspace = fields.fields("workspace")
    lower, upper = (_three(workspace.items(key)) for key in ("lower", "upper"))
    workspace.end()
    lead = (fields.number("max_linear_lead"), fields.number("max_angular_lead"))
    fields.end()
    channels = tuple(
        RobotChannel(
            name=f"eef_{axis}", unit="m" if i < 3 else "rad", arm="end_effector", joint=axis, state_joint=axis,
            lower=-speed[i // 3], upper=speed[i // 3], max_velocity=acceleration[i // 3], max_step=speed[i // 3],
            start=0.0,
        )
        for i, axis in enumerate(_EEF)
    )  # fmt: skip
    facts = EndEffectorFacts(
        **frames, workspace_lower=lower, workspace_upper=upper, max_speed=speed, max_lead=lead, kinematics=kinematics
    )
    return channels, facts


def _three(values: list[Any]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise LightVLAError(f"expected three numbers, but got {values}")
    return float(values[0]), float(values[1]), float(values[2])


def _gripper_by_action(data: _Fields, variant: str) -> tuple[RobotChannel, GripperAction]:
    variants = data.mapping("variants")
    variant = variant or next(iter(variants), "")
    if variant not in variants:
        raise LightVLAError(f"there is no gripper {variant!r}; there are {', '.join(variants)}")
    chosen = _Fields(variants[variant], f"gripper {variant}")
    topic, joint = chosen.text("node"), data.text("joint")
    numbers = {
        key: data.number(key)
        for key in ("max_width", "speed", "force", "epsilon", "close_below", "open_above", "min_interval")
    }
    chosen.end()
    data.end()
    action = GripperAction(topic, **numbers)
    # The two fingers move alike, so a finger's joint is half the width. No motor: the driver takes widths.
    half = action.max_width / 2
    conversion = GripperConversion(finger_closed=0.0, finger_open=half, motor_closed=0.0, motor_open=action.max_width)
    channel = RobotChannel(
        name="gripper", unit="normalized", arm="fingers", joint="gripper", state_joint=joint, lower=0.0, upper=1.0,
        max_velocity=math.inf, max_step=1.0, start=1.0, gripper=conversion,
    )  # fmt: skip
    return channel, action


def _state(fields: _Fields) -> StateChannel:
    name, unit, source = (fields.text(key) for key in ("name", "unit", "source"))
    if unit not in UNITS:
        raise LightVLAError(f"state {name}: unit is {unit!r}, expected one of {', '.join(UNITS)}")
    state = StateChannel(name, unit, source, fields.number("start"))
    fields.end()
    return state


def _check_finite(what: str, values: dict[str, float]) -> None:
    for key, value in values.items():
        if not math.isfinite(value):
            raise LightVLAError(f"{what}: {key} is {value}, not a finite number")

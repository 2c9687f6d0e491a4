"""A robot as data: which driver joint each action channel is, limits, gripper conversion, start pose, topics.

Reading and checking only; what becomes of an action vector is in the robot's own module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightvla_core.contract import PolicyContract, Unit
from lightvla_core.errors import LightVLAError
from lightvla_ros.resources import resource


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
        _check_finite(self.name, {k: getattr(self, k) for k in ("lower", "upper", "max_velocity", "max_step")})
        if not self.lower < self.upper:
            raise LightVLAError(f"{self.name}: lower {self.lower} is not below upper {self.upper}")
        for key in ("max_velocity", "max_step", "max_tracking_error"):
            if not getattr(self, key) > 0:
                raise LightVLAError(f"{self.name}: {key} is {getattr(self, key)}, not a positive number")
        if not self.lower <= self.start <= self.upper:
            raise LightVLAError(f"{self.name}: the start pose {self.start} is outside [{self.lower}, {self.upper}]")


@dataclass(frozen=True)
class RobotDescription:
    """A robot: its channels in the order of its file, joint-state topic by arm, camera topic by camera name."""

    robot: str
    channels: tuple[RobotChannel, ...]
    joint_state_topics: dict[str, str]
    camera_topics: dict[str, str]

    def __post_init__(self) -> None:
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

    def camera_topic(self, camera: str) -> str:
        if camera not in self.camera_topics:
            raise LightVLAError(
                f"robot {self.robot} has no camera {camera}; it has {', '.join(self.camera_topics) or 'none'}"
            )
        return self.camera_topics[camera]


def load_robot(name: str, gripper: str) -> RobotDescription:
    """Read config/robots/<name>.yaml, or the file that `name` is the path of; gripper: one of its variants."""
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
    if contract.action_space != "joint_position":
        raise LightVLAError(
            f"robot {robot.robot} takes joint positions, but the policy's action space is {contract.action_space}"
        )
    missing = [n for n in robot.names if n not in contract.action_names]
    if missing:
        raise LightVLAError(
            f"the policy has {len(contract.actions)} actions and none for {', '.join(missing)}; robot "
            f"{robot.robot} has {len(robot.names)} channels and every one needs an action"
        )
    robot.select(contract.proprio_names)
    for channel, known in zip(contract.actions, robot.select(contract.action_names), strict=True):
        if channel.unit != known.unit:
            raise LightVLAError(
                f"action {channel.name} is in {channel.unit}, but robot {robot.robot} takes it in {known.unit}"
            )
    gripper = contract.gripper
    if gripper is not None and (gripper.closed, gripper.open) != (0.0, 1.0):
        raise LightVLAError(
            f"robot {robot.robot} takes grippers as 0 closed, 1 open, but the policy's are {gripper.closed} closed, "
            f"{gripper.open} open"
        )


class _Fields:
    """A mapping read from YAML whose keys are asked for by type, and whose leftovers are an error."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise LightVLAError(f"{where} should be a mapping, but is {type(data).__name__}")
        self._data, self._where = dict(data), where

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


def _check_finite(what: str, values: dict[str, float]) -> None:
    for key, value in values.items():
        if not math.isfinite(value):
            raise LightVLAError(f"{what}: {key} is {value}, not a finite number")

"""A robot's file in config/robots, read into a RobotDescription; whatever is wrong with it is one sentence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from lightvla_core.errors import LightVLAError
from lightvla_core.resources import resource
from lightvla_ros.robots.description import (
    SOURCE_KINDS,
    UNITS,
    EndEffectorFacts,
    GripperAction,
    GripperConversion,
    RobotChannel,
    RobotDescription,
    StateChannel,
    StateSource,
)
from lightvla_ros.robots.kinematics import Kinematics


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
    names = tuple(map(str, fields.items("frames"))) if fields.has("frames") else (frames["base_frame"],)
    fields.end()
    if kind not in SOURCE_KINDS:
        raise LightVLAError(f"source {name}: kind is {kind!r}, expected one of {', '.join(SOURCE_KINDS)}")
    return StateSource(name, topic, kind, frames["base_frame"], frames["tool_frame"], names)


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

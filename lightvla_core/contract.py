"""PolicyContract: what a checkpoint was trained for, as data that travels with its weights.

Nothing here computes actions; every consumer (preprocessing, policy, nodes) validates itself against it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar

from lightvla_core.errors import LightVLAError

FILE_NAME = "contract.json"
OPENVLA_PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
# Of OpenVLA's first version, whose language model is Vicuna, a chat model.
VICUNA_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: What action should the robot take to {instruction}? ASSISTANT:"
)

ActionSpace = Literal["joint_position", "eef_delta"]
ActionHead = Literal["l1", "diffusion", "discrete"]
Attention = Literal["bidirectional", "causal"]
Multiplicity = Literal["ignore", "weighted"]
Normalization = Literal["bounds", "bounds_q99"]
Readout = Literal["preceding", "published_lightvla"]
Resize = Literal["bicubic", "lanczos3"]
Unit = Literal["rad", "m", "normalized"]

_T = TypeVar("_T")


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise LightVLAError(f"invalid contract: {sentence}")


@dataclass(frozen=True)
class Camera:
    """One camera stream and what is done to its image before the vision towers, in this order.

    height, width: size of the tower input, px
    rotate: clockwise turn of the raw image, degrees (LIBERO's renders are upside down: 180)
    jpeg_quality: encode and decode as JPEG first (the published LIBERO evaluation: 95), or None
    resize: filter of the resize to the tower input: lanczos3 in the published evaluation, bicubic in its processor
    crop_area: area fraction of the centre crop (models trained with crop augmentation: 0.9), 1.0 for none
    """

    name: str
    height: int = 224
    width: int = 224
    rotate: int = 0
    jpeg_quality: int | None = None
    resize: Resize = "bicubic"
    crop_area: float = 1.0

    def __post_init__(self) -> None:
        _require(bool(self.name), "a camera has no name")
        _require(min(self.height, self.width) > 0, f"camera {self.name} has size {self.height}x{self.width}")
        _require(self.rotate in (0, 90, 180, 270), f"camera {self.name} is rotated by {self.rotate} degrees")
        _require(0.0 < self.crop_area <= 1.0, f"camera {self.name} has crop_area {self.crop_area}, not in (0, 1]")
        _require(
            self.jpeg_quality is None or 1 <= self.jpeg_quality <= 100,
            f"camera {self.name} has jpeg_quality {self.jpeg_quality}, not in 1..100",
        )


@dataclass(frozen=True)
class Channel:
    """One number of the proprioception or action vector. unit `normalized`: dimensionless, such as a gripper's 0..1."""

    name: str
    unit: Unit


@dataclass(frozen=True)
class EndEffector:
    """How an end-effector delta is meant. An action of ±1 moves linear_scale m or turns angular_scale rad.

    rotation: the convention of the three rotation numbers; applied from the left, in `frame`
    """

    linear_scale: float
    angular_scale: float
    rotation: Literal["axis_angle"] = "axis_angle"
    frame: Literal["base", "tool"] = "base"

    def __post_init__(self) -> None:
        for name, value in (("linear_scale", self.linear_scale), ("angular_scale", self.angular_scale)):
            _require(math.isfinite(value) and value > 0, f"{name} is {value}, not a positive number")


@dataclass(frozen=True)
class Gripper:
    """Which action channels are grippers, and what their two ends mean.

    binary: opened or closed, never anything between; such a channel is never blended nor interpolated
    """

    channels: tuple[str, ...]
    open: float
    closed: float
    binary: bool = False


@dataclass(frozen=True)
class Pruning:
    """The token pruner.

    multiplicity: `ignore`, the published inference: a kept patch stands once however many votes it got;
        `weighted`: its logit as a key is raised by log(votes), which equals the function that was trained
    mask_padding: prompt padding takes no part in the scoring (the published code lets it)
    """

    enabled: bool = True
    multiplicity: Multiplicity = "ignore"
    mask_padding: bool = True


@dataclass(frozen=True)
class PolicyContract:
    """What a checkpoint expects and delivers. Order matters everywhere; names are unique.

    control_rate: Hz, the rate of the recordings, so one action lasts 1 / control_rate s
    statistics_key: the entry of dataset_statistics.json that un-normalizes the actions
    readout: which hidden states feed the action head: `preceding`, the token before each action slot (as trained),
        or `published_lightvla`, two positions later (as LightVLA's published inference does)
    Raises LightVLAError, in one sentence, when built from values that contradict each other.
    """

    robot: str
    cameras: tuple[Camera, ...]
    proprioception: tuple[Channel, ...]
    actions: tuple[Channel, ...]
    action_space: ActionSpace
    chunk_length: int
    control_rate: float
    normalization: Normalization
    statistics_key: str
    end_effector: EndEffector | None = None
    gripper: Gripper | None = None
    prompt_template: str = OPENVLA_PROMPT
    action_head: ActionHead = "l1"
    film: bool = False
    attention: Attention = "bidirectional"
    pruning: Pruning = field(default_factory=Pruning)
    readout: Readout = "preceding"

    def __post_init__(self) -> None:
        _require(bool(self.robot), "robot has no name")
        _require(len(self.cameras) > 0, "it lists no camera, at least one is needed")
        _require(len(self.actions) > 0, "it lists no action")
        for what, names in (
            ("camera", [c.name for c in self.cameras]),
            ("proprioception", [c.name for c in self.proprioception]),
            ("action", [c.name for c in self.actions]),
        ):
            doubled = sorted({n for n in names if names.count(n) > 1})
            _require(not doubled, f"{what} name {', '.join(doubled)} stands more than once")
        _require(self.chunk_length >= 1, f"chunk_length is {self.chunk_length}, not at least 1")
        _require(
            math.isfinite(self.control_rate) and self.control_rate > 0,
            f"control_rate is {self.control_rate} Hz, not a positive number",
        )
        _require("{instruction}" in self.prompt_template, "prompt_template lacks the field {instruction}")
        _require(
            not set("{}") & set(self.prompt_template.replace("{instruction}", "")),
            "prompt_template has braces other than those of {instruction}",
        )
        _require(
            (self.action_space == "eef_delta") == (self.end_effector is not None),
            f"action_space {self.action_space} and end_effector {self.end_effector} do not go together",
        )
        unknown = sorted(set(self.gripper.channels if self.gripper else ()) - set(self.action_names))
        _require(not unknown, f"gripper channel {', '.join(unknown)} is not an action")
        _require(
            self.attention == "bidirectional" or not self.pruning.enabled,
            "causal attention and pruning do not go together",
        )
        _require(
            self.attention == "bidirectional" or (self.action_head == "discrete" and not self.proprioception),
            "causal attention goes with the discrete action head and without proprioception",
        )

    @property
    def action_names(self) -> tuple[str, ...]:
        return tuple(channel.name for channel in self.actions)

    @property
    def proprio_names(self) -> tuple[str, ...]:
        return tuple(channel.name for channel in self.proprioception)

    @property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self.cameras)

    @property
    def period(self) -> float:
        """Duration of one action, s."""
        return 1.0 / self.control_rate

    @property
    def hash(self) -> str:
        """12 hexadecimal digits that name this contract; any change of any field changes them."""
        canonical = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "contract") -> PolicyContract:
        """Parse and validate; source names the origin in error sentences."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise LightVLAError(f"{source} is not valid JSON ({error}); expected a policy contract") from None
        return _build(cls, data, source)

    @classmethod
    def from_file(cls, path: Path) -> PolicyContract:
        try:
            text = path.read_text()
        except OSError as error:
            raise LightVLAError(
                f"cannot read the contract {path} ({error.strerror}); a checkpoint folder holds one, "
                "made by `lightvla import` or `lightvla init`"
            ) from None
        except UnicodeDecodeError as error:
            raise LightVLAError(f"the contract {path} is not text in UTF-8 ({error}); copy it again") from None
        return cls.from_json(text, str(path))


def _build(cls: type[_T], data: Any, where: str) -> _T:
    """Build a contract dataclass from parsed JSON; unknown, missing and mistyped fields are named."""
    if not isinstance(data, dict):
        raise LightVLAError(f"{where} should be a JSON object, but is {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise LightVLAError(f"{where} has the unknown field {', '.join(unknown)}; known are {', '.join(fields)}")
    missing = sorted(
        name
        for name, f in fields.items()
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    if missing:
        raise LightVLAError(f"{where} lacks the field {', '.join(missing)}")
    hints = typing.get_type_hints(cls)
    values = {name: _value(hints[name], value, f"{where}: {name}") for name, value in data.items()}
    try:
        return cls(**values)
    except LightVLAError as error:
        raise LightVLAError(f"{where}: {error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        if value is None:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise LightVLAError(f"{where} should be a list, but is {value!r}")
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in arguments:
            raise LightVLAError(f"{where} should be one of {', '.join(map(str, arguments))}, but is {value!r}")
        return value
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise LightVLAError(f"{where} should be of type {hint.__name__}, but is {value!r}")
    return value

"""The latest message of every stream -> one observation, or the reason why there is none. Pure; imports no ROS.

Two clocks go in as numbers: the ROS clock, in which headers are stamped, and a steady clock, in which receipts are
noted. What a joint state means for a robot is in lightvla_ros.robots; pixels are decoded in lightvla_ros.images.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError
from lightvla_core.interface import Observation
from lightvla_ros.images import compressed_to_rgb, image_to_rgb
from lightvla_ros.robots.adapter import state_values

# How far ahead of the ROS clock a stamp may be, s: time synchronisation is good to 1 ms, but /clock arrives in steps.
FUTURE_TOLERANCE = 0.05


# Positions by joint name by stream name -> float64 (proprio_dim,), contract order, robot units.
Proprioception = Callable[[Mapping[str, Mapping[str, float]]], NDArray[np.float64]]


class Reason(Enum):
    """Why there is no inference: the clock, a stream, or what became of an observation."""

    CLOCK_JUMPED_BACK = "clock jumped back"
    CLOCK_FROZEN = "clock frozen"
    MISSING = "missing"
    FUTURE = "stamped in the future"
    STALE = "stale"
    SKEWED = "skewed"
    NO_INSTRUCTION = "no instruction"
    UNUSABLE = "unusable"
    FAILED = "failed"


@dataclass(frozen=True)
class NotReady:
    """No inference now. sentence is for the log; reason and stream name the condition, so that its edge can be seen.

    stream: the stream that is at fault, '' where it is the clock
    """

    reason: Reason
    stream: str
    sentence: str


@dataclass(frozen=True)
class Stream:
    """One subscription. name: the contract's camera name, or what the robot calls this joint state topic."""

    name: str
    topic: str
    kind: Literal["camera", "joint state", "pose"]

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.topic})"


@dataclass(frozen=True)
class Limits:
    """max_age: s, of any message, by header stamp and by receipt; max_skew: s, between oldest and newest stamp."""

    max_age: float
    max_skew: float
    future_tolerance: float = FUTURE_TOLERANCE

    def __post_init__(self) -> None:
        for name in ("max_age", "max_skew", "future_tolerance"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise LightVLAError(f"{name} is {getattr(self, name)} s; expected a positive number")


@dataclass(frozen=True)
class Snapshot:
    """One message of every stream, all fresh and close in time. All stamps are header stamps, s, ROS clock.

    stamp: the moment the observation stands for. It is the oldest joint state's: recordings pair the action of a step
        with the joint state measured at that step, and take whatever image was the newest then, so chunk time counts
        from the joint state, and the image is as much older than it as it was in the recordings (at most max_skew).
        Without joint states it is the oldest image's.
    images: camera -> stamp of its image; two snapshots with equal ones saw the same images
    received: when its newest message came, s, steady clock
    """

    messages: Mapping[str, Any]
    stamp: float
    images: Mapping[str, float]
    skew: float
    received: float


@dataclass(frozen=True)
class _Sample:
    message: Any
    stamp: float
    received: float


class EdgeLog:
    """Turns a condition that is told at every tick into the few sentences worth logging.

    patience: s that a condition must last before it is said: discovery takes a while, and a stream that falls silent
    is skewed before it is stale
    """

    def __init__(self, patience: Mapping[Reason, float]) -> None:
        self._patience = dict(patience)
        self._condition: tuple[Reason, str] | None = None
        self._since = 0.0
        self._told = False

    def update(self, fault: NotReady | None, now: float) -> str | None:
        """The sentence to log now, or None. now: s, steady clock."""
        condition = None if fault is None else (fault.reason, fault.stream)
        if condition != self._condition:
            recovered = self._told and fault is None
            self._condition, self._since, self._told = condition, now, False
            if recovered:
                return "inference goes on: every input is fresh again"
        if fault is None or self._told:
            return None
        if now - self._since < self._patience.get(fault.reason, 0.0):
            return None
        self._told = True
        return f"no inference: {fault.sentence}"


class ObservationGatherer:
    """Holds the latest message of every stream. `put` and `gather` may be called from different threads."""

    def __init__(self, streams: Sequence[Stream], limits: Limits) -> None:
        self._streams = tuple(streams)
        self.limits = limits
        self._latest: dict[str, _Sample] = {}
        self._lock = threading.Lock()
        self._received = {stream.name: 0 for stream in self._streams}
        self._last_ros = float("-inf")
        self._clock_moved = float("-inf")

    def put(self, stream: str, message: Any, stamp: float, received: float) -> None:
        """Keep a message. stamp: its header's, s, ROS clock; received: s, steady clock."""
        with self._lock:
            self._latest[stream] = _Sample(message, stamp, received)
            self._received[stream] += 1

    def received(self) -> dict[str, int]:
        """How many messages of every stream have come."""
        with self._lock:
            return dict(self._received)

    def image_stamps(self) -> list[float]:
        """The header stamps, s, of the newest image of every camera; empty until every camera has sent one."""
        cameras = [stream.name for stream in self._streams if stream.kind == "camera"]
        with self._lock:
            if not all(camera in self._latest for camera in cameras):
                return []
            return [self._latest[camera].stamp for camera in cameras]

    def gather(self, now_ros: float, now_steady: float) -> Snapshot | NotReady:
        """The latest message of every stream, if it makes an observation now (both nows in s, of the two clocks)."""
        with self._lock:
            fault = self._clock_fault(now_ros, now_steady)
            if fault is not None:
                return fault
            latest = dict(self._latest)
        missing = [stream for stream in self._streams if stream.name not in latest]
        if missing:
            names = " ".join(stream.name for stream in missing)
            labels = ", ".join(map(str, missing))
            return NotReady(Reason.MISSING, names, f"nothing has come yet from {labels}; is its driver running?")
        for stream in self._streams:
            fault = self._stream_fault(stream, latest[stream.name], now_ros, now_steady)
            if fault is not None:
                return fault
        return self._aligned(latest)

    def _clock_fault(self, now_ros: float, now_steady: float) -> NotReady | None:
        previous, self._last_ros = self._last_ros, now_ros
        if now_ros != previous:
            self._clock_moved = now_steady
        if now_ros < previous:
            self._latest.clear()
            return NotReady(
                Reason.CLOCK_JUMPED_BACK,
                "",
                f"the ROS clock jumped back by {previous - now_ros:.3f} s; waiting for messages of the new time",
            )
        still = now_steady - self._clock_moved
        if still > self.limits.max_age:
            hint = "is /clock published?" if now_ros == 0.0 else "is the simulation or the bag paused?"
            return NotReady(Reason.CLOCK_FROZEN, "", f"the ROS clock stands still at {now_ros:.3f} s; {hint}")
        return None

    def _stream_fault(self, stream: Stream, sample: _Sample, now_ros: float, now_steady: float) -> NotReady | None:
        limit = self.limits.max_age
        ahead, age, silence = sample.stamp - now_ros, now_ros - sample.stamp, now_steady - sample.received
        if ahead > self.limits.future_tolerance:
            return NotReady(
                Reason.FUTURE,
                stream.name,
                f"{stream} is stamped {ahead:.3f} s in the future; synchronise the clocks of the machines",
            )
        # Written so that a NaN age, too, is no fresh one.
        if not (age <= limit and silence <= limit):
            return NotReady(
                Reason.STALE,
                stream.name,
                f"the last message of {stream} is {age:.3f} s old by its stamp and came {silence:.3f} s ago; "
                f"max_age is {limit:.3f} s",
            )
        return None

    def _aligned(self, latest: Mapping[str, _Sample]) -> Snapshot | NotReady:
        by_age = sorted(self._streams, key=lambda stream: latest[stream.name].stamp)
        oldest, newest = by_age[0], by_age[-1]
        skew = latest[newest.name].stamp - latest[oldest.name].stamp
        if skew > self.limits.max_skew:
            return NotReady(
                Reason.SKEWED,
                oldest.name,
                f"{oldest} is {skew:.3f} s older than {newest}, max_skew is {self.limits.max_skew:.3f} s",
            )
        reference = next((stream for stream in by_age if stream.kind != "camera"), oldest)
        return Snapshot(
            messages={stream.name: latest[stream.name].message for stream in self._streams},
            stamp=latest[reference.name].stamp,
            images={s.name: latest[s.name].stamp for s in self._streams if s.kind == "camera"},
            skew=skew,
            received=max(sample.received for sample in latest.values()),
        )


def to_observation(
    snapshot: Snapshot,
    streams: Sequence[Stream],
    proprioception: Proprioception | None,
    instruction: str,
    decode: Callable[[Any], Any],
) -> Observation:
    """Decode a snapshot's messages; this costs milliseconds and belongs on the inference thread.

    proprioception: None where the contract has none; decode: from what was put into the gatherer to a message, raises
        LightVLAError for what is none
    Raises LightVLAError for messages that cannot be decoded and for a state that is not finite.
    """
    messages = {s.name: _decoded_message(decode, snapshot.messages[s.name], s) for s in streams}
    images = {s.name: _pixels(messages[s.name], s) for s in streams if s.kind == "camera"}
    states = {s.name: finite_values(messages[s.name], str(s)) for s in streams if s.kind != "camera"}
    proprio = None if proprioception is None else proprioception(states)
    return Observation(images=images, proprio=proprio, instruction=instruction, stamp=snapshot.stamp)


def finite_values(message: Any, label: str) -> dict[str, float]:
    """sensor_msgs/JointState or geometry_msgs/PoseStamped -> value by name. label: its source, for errors."""
    values = state_values(message, label)
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise LightVLAError(f"{label} sent a position of {', '.join(broken)} that is not a finite number")
    return values


def _decoded_message(decode: Callable[[Any], Any], data: Any, stream: Stream) -> Any:
    try:
        return decode(data)
    except LightVLAError as error:
        raise LightVLAError(f"{stream} cannot be decoded: {error}") from None


def _pixels(message: Any, stream: Stream) -> NDArray[np.uint8]:
    label = str(stream)
    return compressed_to_rgb(message, label) if hasattr(message, "format") else image_to_rgb(message, label)

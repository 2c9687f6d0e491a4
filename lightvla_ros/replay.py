"""A policy over a recorded bag, through the code of the live node: same gathering, same decision, same chunk message.

Pure: messages in, chunks and recorded actions out; ROS is not imported and time is the bag's. Reading bags is in bag,
what was recorded in recorded_actions, what is written and shown afterwards in replay_report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.bag import Bag, BagMessage, list_topics
from lightvla_ros.chunk_message import timed_chunk
from lightvla_ros.chunk_schedule import TimedChunk
from lightvla_ros.inference_decision import InferenceDecision, Wait
from lightvla_ros.inference_loop import Predictor
from lightvla_ros.inference_timing import InferenceTiming
from lightvla_ros.observation import Limits, NotReady, ObservationGatherer, Proprioception, Stream, to_observation
from lightvla_ros.recorded_actions import (
    JOINT_STATE,
    POSE,
    Recorder,
    Series,
    command_topics,
    require_comparable,
    state_topics,
)
from lightvla_ros.robots.adapter import proprioception, proprioception_sources
from lightvla_ros.robots.description import RobotDescription
from lightvla_ros.wire import header_stamp

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
INSTRUCTION_TOPIC, TEXT = "/instruction", "std_msgs/msg/String"

# The defaults of the live node's parameters max_age and max_skew, s.
LIMITS = Limits(max_age=0.3, max_skew=0.15)


@dataclass(frozen=True)
class ReplayedChunk:
    """A chunk and when it was decided on: the time of the message that completed its observation, ns, bag's clock."""

    chunk: TimedChunk
    decided: int


@dataclass(frozen=True)
class Replay:
    """What came out. recorded: channel name -> series; faults: why there was no observation -> at how many messages."""

    contract: PolicyContract
    chunks: tuple[ReplayedChunk, ...]
    recorded: Mapping[str, Series]
    faults: Mapping[str, int]

    def recorded_steps(self, chunk: TimedChunk) -> NDArray[np.float64]:
        """What was recorded for each step of a chunk: (steps, channels), NaN where nothing was."""
        return np.stack([self.recorded[name].at_steps(chunk) for name in chunk.names], axis=-1)


@dataclass(frozen=True)
class ReplayPlan:
    """What is read from a bag, and as what: found, and refused, before anything is inferred.

    streams: the policy's; states, commands: see state_topics and command_topics of recorded_actions
    """

    contract: PolicyContract
    robot: RobotDescription
    streams: tuple[Stream, ...]
    states: Mapping[str, str]
    commands: Mapping[str, str]
    instructions: bool

    @property
    def topics(self) -> frozenset[str]:
        own = {INSTRUCTION_TOPIC} if self.instructions else set()
        return frozenset({stream.topic for stream in self.streams} | set(self.commands) | set(self.states) | own)


def make_plan(contract: PolicyContract, robot: RobotDescription, bag: Bag, instruction: str) -> ReplayPlan:
    """Find the policy's streams and the recorded actions in a bag.

    instruction: used in place of the bag's own; '' to use those. Raises LightVLAError, in one sentence, for topics
    that are missing or of another type, and where there is no instruction.
    """
    streams = _streams(contract, robot, bag)
    instructions = not instruction and INSTRUCTION_TOPIC in bag.topics
    if not instruction and not instructions:
        raise LightVLAError(
            f"the bag {bag.path} has no topic {INSTRUCTION_TOPIC}; say with --instruction what the robot was doing"
        )
    if instructions:
        _check_type(bag, INSTRUCTION_TOPIC, TEXT)
    states, commands = state_topics(contract, robot, bag), command_topics(contract, robot, bag)
    require_comparable(contract, robot, states, commands)
    return ReplayPlan(contract, robot, streams, states, commands, instructions)


def replay(
    policy: Predictor,
    plan: ReplayPlan,
    messages: Iterable[BagMessage],
    timing: InferenceTiming,
    instruction: str = "",
    limits: Limits = LIMITS,
) -> Replay:
    """Run the policy over the messages of the plan's topics. Deterministic: no clock but the messages', no thread.

    The live node looks at its inputs whenever an image comes and every 20 ms; here it looks after every message, and
    inference takes no time. Raises LightVLAError when not one chunk comes out.
    """
    recorder = Recorder(plan.contract, plan.robot)
    player = _Player(policy, plan, timing, limits, instruction)
    by_topic = {stream.topic: stream for stream in plan.streams}
    for message in messages:
        if message.topic in plan.commands:
            recorder.command(plan.commands[message.topic], message)
        if message.topic in plan.states:
            recorder.state(plan.states[message.topic], message, _stamp(message))
        if message.topic == INSTRUCTION_TOPIC:
            player.instruct(message.decode().data.strip())
        if (stream := by_topic.get(message.topic)) is not None:
            player.hear(stream, message)
    if not player.chunks:
        raise LightVLAError(f"the policy made no chunk of this bag: {player.last_fault}")
    return Replay(plan.contract, tuple(player.chunks), recorder.series(), dict(player.faults))


class _Player:
    """The inference loop without its thread: both clocks stand at the receipt of the last message."""

    def __init__(
        self, policy: Predictor, plan: ReplayPlan, timing: InferenceTiming, limits: Limits, instruction: str
    ) -> None:
        self._policy = policy
        self._plan = plan
        self._gatherer = ObservationGatherer(plan.streams, limits)
        self._decision = InferenceDecision(self._gatherer, timing)
        self._decision.latency = 0.0
        self._instruction = instruction
        self._proprioception: Proprioception | None = None
        if plan.contract.proprioception:
            self._proprioception = partial(proprioception, plan.contract, plan.robot)
        self.chunks: list[ReplayedChunk] = []
        self.faults: Counter[str] = Counter()
        self.last_fault = "none of its messages came"

    def instruct(self, instruction: str) -> None:
        if instruction != self._instruction:
            self._instruction = instruction
            self._decision.forget()

    def hear(self, stream: Stream, message: BagMessage) -> None:
        self._gatherer.put(stream.name, message, _stamp(message), message.time)
        decision = self._decision.decide(message.time, message.time, self._instruction)
        if isinstance(decision, Wait):
            return
        if isinstance(decision, NotReady):
            self._note(decision.reason.value, decision.sentence)
            return
        self._decision.taken(decision)
        try:
            observation = to_observation(
                decision, self._plan.streams, self._proprioception, self._instruction, BagMessage.decode
            )
            prediction = self._policy.predict_action(observation)
            chunk = timed_chunk(prediction, self._plan.contract, self._instruction, len(self.chunks) + 1)
        except LightVLAError as error:
            self._note("unusable", str(error))
            return
        self.chunks.append(ReplayedChunk(chunk, message.received))
        self._decision.published(decision)

    def _note(self, reason: str, sentence: str) -> None:
        self.faults[reason] += 1
        self.last_fault = sentence


def _streams(contract: PolicyContract, robot: RobotDescription, bag: Bag) -> tuple[Stream, ...]:
    streams, missing = [], []
    for camera in contract.camera_names:
        raw = f"/{robot.camera_topic(camera)}"
        topic = next((t for t in (raw, f"{raw}/compressed") if t in bag.topics), None)
        if topic is None:
            missing.append(f"{raw} or {raw}/compressed (camera {camera})")
            continue
        _check_type(bag, topic, IMAGE if topic == raw else COMPRESSED)
        streams.append(Stream(camera, topic, "camera"))
    for source in proprioception_sources(contract, robot):
        topic = f"/{source.topic}"
        kind: Literal["joint state", "pose"] = "joint state" if source.kind == "joint_state" else "pose"
        if topic not in bag.topics:
            missing.append(f"{topic} ({kind} of {source.name})")
            continue
        _check_type(bag, topic, JOINT_STATE if kind == "joint state" else POSE)
        streams.append(Stream(source.name, topic, kind))
    if missing:
        raise LightVLAError(
            f"the bag {bag.path} lacks {', '.join(missing)}, which the policy needs; it holds {list_topics(bag.topics)}"
        )
    return tuple(streams)


def _check_type(bag: Bag, topic: str, expected: str) -> None:
    if bag.topics[topic] != expected:
        raise LightVLAError(f"{topic} holds {bag.topics[topic]} in the bag {bag.path}; expected {expected}")


def _stamp(message: BagMessage) -> float:
    try:
        return header_stamp(message.data)
    except Exception:  # too short for a header
        raise LightVLAError(f"a message of {message.topic} in the bag is too short to hold a header") from None

"""A policy over a recorded bag, through the code of the live node: same gathering, same decision, same chunk message.

Pure: messages in, chunks and recorded actions out; ROS is not imported and time is the bag's. Reading bags is in bag,
what is written and shown afterwards in replay_report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightvla_core.contract import Gripper, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.bag import Bag, BagMessage, list_topics
from lightvla_ros.chunk_message import timed_chunk
from lightvla_ros.chunk_schedule import TimedChunk
from lightvla_ros.inference_decision import InferenceDecision, Wait
from lightvla_ros.inference_loop import Predictor
from lightvla_ros.inference_timing import InferenceTiming
from lightvla_ros.observation import Limits, NotReady, ObservationGatherer, Proprioception, Stream, to_observation
from lightvla_ros.robots.adapter import proprioception, proprioception_sources
from lightvla_ros.robots.description import RobotChannel, RobotDescription
from lightvla_ros.wire import header_stamp

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
JOINT_STATE, POSE = "sensor_msgs/msg/JointState", "geometry_msgs/msg/PoseStamped"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
JOINT_GROUP, JOINT_SINGLE = "interbotix_xs_msgs/msg/JointGroupCommand", "interbotix_xs_msgs/msg/JointSingleCommand"
INSTRUCTION_TOPIC, TEXT = "/instruction", "std_msgs/msg/String"
# Trajectories of ours that are no commands.
_OWN_TRAJECTORIES = ("/action_chunk", "/preview")

# The defaults of the live node's parameters max_age and max_skew, s.
LIMITS = Limits(max_age=0.3, max_skew=0.15)


@dataclass(frozen=True)
class ReplayedChunk:
    """A chunk and when it was decided on: the time of the message that completed its observation, ns, bag's clock."""

    chunk: TimedChunk
    decided: int


@dataclass(frozen=True)
class Series:
    """What was recorded of one channel, in the contract's unit: times (n,) s, ascending, and values (n,).

    source: `command`, or `joint state` where the bag holds no command of this channel
    """

    source: Literal["command", "joint state"]
    times: NDArray[np.float64]
    values: NDArray[np.float64]

    def at_steps(self, chunk: TimedChunk) -> NDArray[np.float64]:
        """What was recorded for each step of a chunk: (steps,), NaN where nothing was.

        A command is the one in force in the middle of the step, stamp + (i + 1/2)·dt, since recordings pair a state
        with the command that follows it; a joint state, linear between two messages, is the one at the step's end.
        """
        begin = np.array([chunk.stamp + i * chunk.dt for i in range(len(chunk.actions))], dtype=np.float64)
        if self.source == "joint state":
            return np.interp(begin + chunk.dt, self.times, self.values, left=np.nan, right=np.nan)
        middle = begin + chunk.dt / 2
        index = np.searchsorted(self.times, middle, side="right") - 1
        # After the last command nothing is known, but for as long as a command usually stands.
        usual = float(np.median(np.diff(self.times))) if len(self.times) > 1 else 0.0
        known = (index >= 0) & (middle <= self.times[-1] + usual)
        return np.where(known, self.values[np.maximum(index, 0)], np.nan)


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

    streams: the policy's; states: topic -> arm, of joint states that the actions are compared with
    commands: topic -> arm, of recorded commands; '' where a topic is of no one arm
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
    if contract.action_space != "joint_position":
        raise LightVLAError(
            f"the policy's actions are {contract.action_space}; replay compares joint positions and nothing else yet"
        )
    streams = _streams(contract, robot, bag)
    instructions = not instruction and INSTRUCTION_TOPIC in bag.topics
    if not instruction and not instructions:
        raise LightVLAError(
            f"the bag {bag.path} has no topic {INSTRUCTION_TOPIC}; say with --instruction what the robot was doing"
        )
    if instructions:
        _check_type(bag, INSTRUCTION_TOPIC, TEXT)
    channels = robot.select(contract.action_names)
    return ReplayPlan(
        contract, robot, streams, _state_topics(robot, channels, bag), _command_topics(channels, bag), instructions
    )


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
    recorder = _Recorder(plan.robot.select(plan.contract.action_names), plan.contract.gripper)
    player = _Player(policy, plan, timing, limits, instruction)
    by_topic = {stream.topic: stream for stream in plan.streams}
    for message in messages:
        if message.topic in plan.commands:
            recorder.command(plan.commands[message.topic], message)
        if message.topic in plan.states:
            recorder.state(plan.states[message.topic], message)
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
        except LightVLAError as error:
            self._note("unusable", str(error))
            return
        chunk = timed_chunk(prediction, self._plan.contract, self._instruction, len(self.chunks) + 1)
        self.chunks.append(ReplayedChunk(chunk, message.received))
        self._decision.published(decision)

    def _note(self, reason: str, sentence: str) -> None:
        self.faults[reason] += 1
        self.last_fault = sentence


@dataclass
class _Recorder:
    """Collects, for every action channel, what was commanded and what was measured, in the contract's unit."""

    channels: Sequence[RobotChannel]
    gripper: Gripper | None
    _commanded: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _measured: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def command(self, arm: str, message: BagMessage) -> None:
        for channel, value in self._goals(arm, message):
            motor = channel.gripper
            if motor is not None:
                closed, opened = motor.motor(0.0), motor.motor(1.0)
                value = self._gripper_value((value - closed) / (opened - closed))
            # A command with stamp 0 starts when it comes, so its receipt is its time.
            self._commanded.setdefault(channel.name, []).append((message.time, value))

    def state(self, arm: str, message: BagMessage) -> None:
        state = message.decode()
        values = dict(zip(state.name, state.position.tolist(), strict=False))
        for channel in self._of(arm):
            if channel.state_joint in values:
                value = values[channel.state_joint]
                if channel.gripper is not None:
                    value = self._gripper_value(channel.gripper.opening(value))
                self._measured.setdefault(channel.name, []).append((_stamp(message), value))

    def series(self) -> dict[str, Series]:
        """For each channel its commands, or its joint states if the bag holds none."""
        lacking = [c.name for c in self.channels if c.name not in {**self._commanded, **self._measured}]
        if lacking:
            raise LightVLAError(
                f"the bag holds neither commands nor joint states of {', '.join(lacking)}, "
                "so there is nothing to compare the policy's actions with"
            )
        return {
            c.name: _series("command", self._commanded[c.name])
            if c.name in self._commanded
            else _series("joint state", self._measured[c.name])
            for c in self.channels
        }

    def _gripper_value(self, opening: float) -> float:
        """0 closed .. 1 open -> the contract's convention."""
        closed, opened = (0.0, 1.0) if self.gripper is None else (self.gripper.closed, self.gripper.open)
        return closed + opening * (opened - closed)

    def _goals(self, arm: str, message: BagMessage) -> list[tuple[RobotChannel, float]]:
        goal = message.decode()
        joints = self._of(arm)
        if message.type == JOINT_GROUP:
            # The driver takes the arm's joints as one group, in its own order; the robot's file keeps that order.
            group = [channel for channel in joints if channel.gripper is None]
            return list(zip(group, goal.cmd.tolist(), strict=False))
        if message.type == JOINT_SINGLE:
            return [(channel, float(goal.cmd)) for channel in joints if channel.joint == goal.name]
        if not goal.points:
            return []
        positions = dict(zip(goal.joint_names, goal.points[-1].positions.tolist(), strict=False))
        return [(channel, positions[channel.joint]) for channel in joints if channel.joint in positions]

    def _of(self, arm: str) -> list[RobotChannel]:
        return [channel for channel in self.channels if arm in ("", channel.arm)]


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


def _state_topics(robot: RobotDescription, channels: Sequence[RobotChannel], bag: Bag) -> dict[str, str]:
    arms = {channel.arm for channel in channels}
    sources = {f"/{s.topic}": s.name for s in robot.sources if s.kind == "joint_state" and s.name in arms}
    return {topic: arm for topic, arm in sources.items() if bag.topics.get(topic) == JOINT_STATE}


def _command_topics(channels: Sequence[RobotChannel], bag: Bag) -> dict[str, str]:
    """Topics of recorded commands, whatever the controllers are called: by message type, and in an arm's namespace
    unless the joints' names alone tell the arm."""
    arms = {channel.arm for channel in channels}
    unique = len({channel.joint for channel in channels}) == len(channels)
    found = {}
    for topic, kind in bag.topics.items():
        if kind not in (TRAJECTORY, JOINT_GROUP, JOINT_SINGLE) or topic.endswith(_OWN_TRAJECTORIES):
            continue
        arm = next((arm for arm in arms if topic.startswith(f"/{arm}/")), "")
        if arm or (unique and kind == TRAJECTORY):
            found[topic] = arm
    return found


def _check_type(bag: Bag, topic: str, expected: str) -> None:
    if bag.topics[topic] != expected:
        raise LightVLAError(f"{topic} holds {bag.topics[topic]} in the bag {bag.path}; expected {expected}")


def _stamp(message: BagMessage) -> float:
    try:
        return header_stamp(message.data)
    except Exception:  # too short for a header
        raise LightVLAError(f"a message of {message.topic} in the bag is too short to hold a header") from None


def _series(source: Literal["command", "joint state"], samples: list[tuple[float, float]]) -> Series:
    ordered = np.array(sorted(samples, key=lambda sample: sample[0]), dtype=np.float64)
    return Series(source, ordered[:, 0], ordered[:, 1])

"""The executor and the policy's gathering side under one simulated clock, with every input open to a fault.

What the faults are is in faults.py; what must hold whatever happens is in fault_checks.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from executor_fixtures import START, aloha_contract, chunk, robot, settings
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError
from lightvla_ros.chunk_schedule import ChunkError, Sample, TimedChunk
from lightvla_ros.execution import Execution
from lightvla_ros.inference_decision import InferenceDecision
from lightvla_ros.inference_timing import InferenceTiming
from lightvla_ros.observation import Limits, ObservationGatherer, Snapshot, Stream
from lightvla_ros.safety import Now

CONTRACT = aloha_contract()
CHANNELS = robot().select(CONTRACT.action_names)
ARMS = ("follower_left", "follower_right")
EPOCH = 1_795_000_000.0
PERIOD, CHUNK_EVERY, LATENCY = 0.02, 0.2, 0.06
HEARTBEAT_TIMEOUT = 0.3
GATHER_LIMITS = Limits(max_age=0.3, max_skew=0.15)
CAMERA = Stream("cam_high", "cam_high/image", "camera")
STATES = tuple(Stream(arm, f"{arm}/joint_states", "joint state") for arm in ARMS)

Vector = NDArray[np.float64]
# What an input becomes on its way: (message, stamp) -> those that arrive now.
ChunkFault = Callable[[TimedChunk, float], list[TimedChunk]]
StateFault = Callable[[str, dict[str, float], float], list[tuple[dict[str, float], float]]]
FrameFault = Callable[[float, float], list[float]]


@dataclass
class Record:
    """One control period as it went. period: in which its command is to be reached, s"""

    time: float
    now: Now
    period: float
    state: str
    command: Vector | None
    measured: Vector
    last_error: float
    sample: Sample | None


@dataclass
class Taken:
    """An observation that inference was started on: the largest ages by both clocks, and skew, s."""

    age: float
    silence: float
    skew: float


def measure(states: Mapping[str, Mapping[str, float]]) -> Vector:
    """As an adapter does: by name, and missing is missing."""
    missing = [c.name for c in CHANNELS if c.name not in states.get(c.arm, {})]
    if missing:
        raise LightVLAError(f"no measured position of {', '.join(missing)}")
    return np.array([states[c.arm][c.name] for c in CHANNELS])


@dataclass
class Switches:
    """What a fault may turn; as built, nothing is wrong."""

    chunks: ChunkFault = lambda made, now: [made]
    states: StateFault = lambda arm, positions, stamp: [(positions, stamp)]
    frames: FrameFault = lambda stamp, now: [stamp]
    policy_runs: bool = True
    clock_runs: bool = True
    heartbeat: bool = True
    follows: bool = True
    each_period: Callable[[Rig], None] = lambda rig: None


@dataclass
class Rig:
    """Steps through time; the arms follow their commands, the policy plans slow sine motions."""

    speed: float = 1.0
    require_heartbeat: bool = False
    time: float = 0.0
    ros: float = EPOCH
    sequence: int = 0
    instruction: str = chunk(CONTRACT, START).instruction_id
    switches: Switches = field(default_factory=Switches)
    records: list[Record] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)

    def __post_init__(self) -> None:
        timeout = HEARTBEAT_TIMEOUT if self.require_heartbeat else None
        self.execution = Execution(
            CONTRACT, robot(), settings(PERIOD, 0.08, speed=self.speed, heartbeat_timeout=timeout), measure
        )
        self.execution.set_instruction(self.instruction)
        self.gatherer = ObservationGatherer((CAMERA, *STATES), GATHER_LIMITS)
        self.decision = InferenceDecision(self.gatherer, InferenceTiming("receding_horizon", CONTRACT.period, 25, 5))
        self.received: dict[str, float] = {}
        self.pose: Vector = START.copy()
        self.under_way: list[tuple[float, TimedChunk]] = []
        self._sampled: Sample | None = None
        self._spy_on_samples()

    @property
    def now(self) -> Now:
        return Now(self.ros, self.time)

    def run(self, seconds: float) -> None:
        end = self.time + seconds - 1e-9
        while self.time < end:
            self.step()

    def step(self, stall: float = 0.0) -> None:
        """One control period at the rate in force, which begins so much late, s."""
        elapsed = self.execution.settings.mode.period + stall
        self.time += elapsed
        if self.switches.clock_runs:
            self.ros += elapsed
        self.switches.each_period(self)
        self._feed_states()
        self._feed_frames()
        self._think()
        if self.switches.heartbeat:
            self.execution.feed_heartbeat(self.time)
        self._control()

    def receive(self, made: TimedChunk) -> None:
        with contextlib.suppress(ChunkError):
            self.execution.offer(made, self.now)

    def make_chunk(self, stamp: float) -> TimedChunk:
        self.sequence += 1
        moments = stamp - EPOCH + CONTRACT.period * np.arange(1, 26)
        goal = START + 0.15 * np.sin(1.5 * moments)[:, None] * (np.arange(14) % 7 != 6)
        return chunk(CONTRACT, goal, stamp, self.sequence, instruction_id=self.instruction)

    def _feed_states(self) -> None:
        for arm in ARMS:
            positions = {c.name: float(p) for c, p in zip(CHANNELS, self.pose, strict=True) if c.arm == arm}
            for seen, stamp in self.switches.states(arm, positions, self.ros - 0.002):
                self.execution.feed_state(arm, seen, stamp, self.time)
                self._put(arm, seen, stamp)

    def _feed_frames(self) -> None:
        for stamp in self.switches.frames(self.ros - 0.01, self.ros):
            self._put(CAMERA.name, stamp, stamp)

    def _put(self, stream: str, message: Any, stamp: float) -> None:
        self.received[stream] = self.time
        self.gatherer.put(stream, message, stamp, self.time)

    def _think(self) -> None:
        """The policy node: gather, decide, and after its latency a chunk."""
        if self.switches.policy_runs:
            decided = self.decision.decide(self.ros, self.time, self.instruction)
            if isinstance(decided, Snapshot):
                self._note(decided)
                self.decision.taken(decided)
                self.decision.published(decided)
                self.under_way.append((self.time + LATENCY, self.make_chunk(decided.stamp)))
        due = [made for when, made in self.under_way if when <= self.time]
        self.under_way = [(when, made) for when, made in self.under_way if when > self.time]
        for made in due:
            for arriving in self.switches.chunks(made, self.ros):
                self.receive(arriving)

    def _note(self, snapshot: Snapshot) -> None:
        stamps = [*snapshot.images.values(), snapshot.stamp]
        silence = self.time - min(self.received[name] for name in snapshot.messages)
        self.taken.append(Taken(self.ros - min(stamps), silence, max(stamps) - min(stamps)))

    def _control(self) -> None:
        last = self._last_command()
        error = 0.0 if last is None else float(np.abs((last - self.pose)[:6]).max())
        measured, self._sampled = self.pose.copy(), None
        command = self.execution.run_period(self.now).command
        if command is not None and self.switches.follows:
            self.pose = command.copy()
        self.records.append(
            Record(
                self.time,
                self.now,
                self.execution.settings.mode.period,
                self.execution.state,
                command,
                measured,
                error,
                self._sampled,
            )
        )

    def _last_command(self) -> Vector | None:
        return self.records[-1].command if self.records else None

    def _spy_on_samples(self) -> None:
        """Keep what the schedule plans, which is not visible in the commands behind the limits."""
        schedule = self.execution._schedule
        sample = schedule.sample

        def spied(now: float, standing: Vector | None) -> Sample | None:
            self._sampled = sample(now, standing)
            return self._sampled

        schedule.sample = spied  # type: ignore[method-assign]


def refuses_to_arm(rig: Rig) -> bool:
    try:
        rig.execution.arm(rig.now)
    except LightVLAError:
        return True
    return False

"""The inference thread: fresh observation -> policy -> chunk, over and over. Imports no ROS and no torch.

Whether to infer, and on what, is in inference_decision; topics and messages are the policy node's.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lightvla_core.errors import LightVLAError
from lightvla_core.interface import ActionChunk, Observation
from lightvla_ros.inference_decision import LOOK_PERIOD, InferenceDecision, Wait
from lightvla_ros.inference_timing import InferenceTiming, LatencyWindow
from lightvla_ros.observation import (
    NotReady,
    ObservationGatherer,
    Proprioception,
    Reason,
    Snapshot,
    Stream,
    to_observation,
)

# How long stopping waits for an inference that is under way, s. Nothing is published after stopping, in any case.
_JOIN = 2.0


class Predictor(Protocol):
    """What the loop needs of lightvla_core.Policy."""

    def predict_action(self, observation: Observation) -> ActionChunk: ...


class Events(Protocol):
    """Whom the loop tells; every method is called on the inference thread.

    publish: a chunk to execute, never after `stop`, raises LightVLAError for one that nobody may execute; show: the
    same again, when nothing waits for it; tell: why there is no inference, or None when there is again, at every change
    and in between; failed: the loop has ended, with this
    """

    def publish(self, chunk: ActionChunk, instruction: str) -> None: ...
    def show(self, observation: Observation, chunk: ActionChunk) -> None: ...
    def tell(self, fault: NotReady | None) -> None: ...
    def failed(self, error: Exception, trace: str) -> None: ...


@dataclass(frozen=True)
class LoopStatus:
    """A moment of the loop. Latencies over the last chunks, s, NaN before the first.

    fault: why there is no inference now; dropped: chunks not published, since what they were made for was over
    inference: the policy's own time; image_to_chunk: header stamp of the oldest image -> chunk published, ROS clock
    frame_age: of the oldest of the newest images, whenever inputs were looked at, ROS clock
    overhead: newest message in, or the thread free for it -> chunk out, without decoding and inference
    """

    fault: NotReady | None
    inferences: int
    dropped: int
    kept: Mapping[str, tuple[int, int]]
    inference_p50: float
    inference_p99: float
    image_to_chunk_p50: float
    image_to_chunk_p99: float
    frame_age_p99: float
    overhead_p99: float


class InferenceLoop:
    """Infers on its own thread between `start` and `stop`. All public methods return at once, but for `stop`.

    streams, proprioception, decode: as for observation.to_observation; ros_clock: its present time, s
    """

    def __init__(
        self,
        policy: Predictor,
        gatherer: ObservationGatherer,
        streams: Sequence[Stream],
        proprioception: Proprioception | None,
        decode: Callable[[Any], Any],
        timing: InferenceTiming,
        ros_clock: Callable[[], float],
        events: Events,
    ) -> None:
        self._policy = policy
        self._streams = tuple(streams)
        self._proprioception = proprioception
        self._decode = decode
        self._gatherer = gatherer
        self._decision = InferenceDecision(gatherer, timing)
        self._ros_clock = ros_clock
        self._events = events
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = True
        self._instruction = ""
        # Counts the occasions on which what is planned became meaningless.
        self._occasion = 0
        self._fault: NotReady | None = None
        self._inferences = self._dropped = 0
        self._kept: Mapping[str, tuple[int, int]] = {}
        self._inference, self._image_to_chunk = LatencyWindow(), LatencyWindow()
        self._frame_age, self._overhead = LatencyWindow(5000), LatencyWindow()
        self._free_since = 0.0
        # Observation taken -> chunk published, ROS clock; what prefetching goes by.
        self._latency = LatencyWindow(100)

    def start(self) -> None:
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nothing is published once this was called. Raises LightVLAError if an inference does not come to its end."""
        with self._lock:
            self._stopping = True
        self._wake.set()
        if self._thread is None:
            return
        self._thread.join(_JOIN)
        if self._thread.is_alive():
            raise LightVLAError(f"an inference did not end within {_JOIN:.0f} s; its chunk will not be published")
        self._thread = None

    def instruct(self, instruction: str) -> None:
        """From now on act on this instruction; '' stops inferring. A chunk still under way for another is dropped."""
        with self._lock:
            if instruction != self._instruction:
                self._instruction = instruction
                self._forget()
        self._wake.set()

    def begin_anew(self) -> None:
        """Infer now, whatever was planned: execution begins. A chunk still under way is dropped."""
        with self._lock:
            self._forget()
        self._wake.set()

    def set_timing(self, timing: InferenceTiming) -> None:
        """Decide by this rule from the next look on."""
        self._decision.timing = timing
        self._wake.set()

    def set_speed(self, speed: float) -> None:
        """The executor's speed, 0.1..1: planned steps take that much longer."""
        self._decision.speed = speed

    def wake(self) -> None:
        """A new image came."""
        self._wake.set()

    def status(self) -> LoopStatus:
        return LoopStatus(
            self._fault,
            self._inferences,
            self._dropped,
            self._kept,
            self._inference.percentile(50),
            self._inference.percentile(99),
            self._image_to_chunk.percentile(50),
            self._image_to_chunk.percentile(99),
            self._frame_age.percentile(99),
            self._overhead.percentile(99),
        )

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._wake.clear()
                self._wake.wait(self._step())
        except Exception as error:
            text = f"inference stopped: {type(error).__name__}: {error}; activate again after mending it"
            self._fault = NotReady(Reason.FAILED, "", " ".join(text.split()))
            self._events.failed(error, traceback.format_exc())

    def _step(self) -> float:
        """Infer if it is time and everything is fresh; returns how long to sleep unless woken, s."""
        with self._lock:
            instruction, occasion = self._instruction, self._occasion
        now = self._ros_clock()
        decision = self._decision.decide(now, time.monotonic(), instruction)
        if stamps := self._gatherer.image_stamps():
            self._frame_age.add(now - min(stamps))
        if isinstance(decision, Wait):
            return decision.seconds
        if isinstance(decision, NotReady):
            self._tell(decision)
            return LOOK_PERIOD
        self._infer(decision, instruction, occasion)
        return 0.0

    def _infer(self, snapshot: Snapshot, instruction: str, occasion: int) -> None:
        self._decision.taken(snapshot)
        began_steady, began_ros = time.monotonic(), self._ros_clock()
        try:
            observation = to_observation(snapshot, self._streams, self._proprioception, instruction, self._decode)
        except LightVLAError as error:
            self._tell(NotReady(Reason.UNUSABLE, "", str(error)))
            return
        started = time.perf_counter()
        try:
            chunk = self._policy.predict_action(observation)
        except LightVLAError as error:
            self._tell(NotReady(Reason.FAILED, "", str(error)))
            return
        ended = time.perf_counter()
        self._inference.add(ended - started)
        self._inferences += 1
        self._kept = {camera: (int(kept.sum()), kept.size) for camera, kept in chunk.kept.items()}
        try:
            if not self._publish(chunk, snapshot, instruction, occasion):
                return
        except LightVLAError as error:
            self._tell(NotReady(Reason.FAILED, "", f"the policy's chunk cannot be executed: {error}"))
            return
        self._latency.add(self._ros_clock() - began_ros)
        self._decision.latency = self._latency.percentile(99)
        self._overhead.add(began_steady - max(snapshot.received, self._free_since) + time.perf_counter() - ended)
        self._image_to_chunk.add(self._ros_clock() - min(snapshot.images.values()))
        self._tell(None)
        self._events.show(observation, chunk)
        self._free_since = time.monotonic()

    def _publish(self, chunk: ActionChunk, snapshot: Snapshot, instruction: str, occasion: int) -> bool:
        """Whether it was still wanted; raises LightVLAError as Events.publish does."""
        with self._lock:
            if self._stopping or occasion != self._occasion:
                self._dropped += 1
                return False
            self._events.publish(chunk, instruction)
            self._decision.published(snapshot)
            return True

    def _forget(self) -> None:
        self._occasion += 1
        self._decision.forget()

    def _tell(self, fault: NotReady | None) -> None:
        self._fault = fault
        self._events.tell(fault)

"""The inference thread: fresh observation -> policy -> chunk, over and over. Imports no ROS and no torch.

When to infer is in inference_timing, on what in observation; topics and messages are the policy node's.
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

# How often inputs are looked at while nothing wakes the thread, s; the bound on noticing a stale one.
_POLL = 0.02
# How long stopping waits for an inference that is under way, s. Nothing is published after stopping, in any case.
_JOIN = 2.0


class Predictor(Protocol):
    """What the loop needs of lightvla_core.Policy."""

    def predict_action(self, observation: Observation) -> ActionChunk: ...


class Events(Protocol):
    """Whom the loop tells; every method is called on the inference thread.

    publish: a chunk to execute, never after `stop`; show: the same again, when nothing waits for it; tell: why there is
    no inference, or None when there is again, at every change and in between; failed: the loop has ended, with this
    """

    def publish(self, chunk: ActionChunk, instruction: str) -> None: ...
    def show(self, observation: Observation, chunk: ActionChunk) -> None: ...
    def tell(self, fault: NotReady | None) -> None: ...
    def failed(self, error: Exception, trace: str) -> None: ...


@dataclass(frozen=True)
class LoopStatus:
    """A moment of the loop. Latencies over the last chunks, s, NaN before the first.

    fault: why there is no inference now; dropped: chunks not published, for their instruction was no longer in force
    inference: the policy's own time; image_to_chunk: header stamp of the oldest image -> chunk published, ROS clock
    """

    fault: NotReady | None
    inferences: int
    dropped: int
    kept: Mapping[str, tuple[int, int]]
    inference_p50: float
    inference_p99: float
    image_to_chunk_p50: float
    image_to_chunk_p99: float


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
        self._gatherer = gatherer
        self._streams = tuple(streams)
        self._proprioception = proprioception
        self._decode = decode
        self._timing = timing
        self._ros_clock = ros_clock
        self._events = events
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = True
        self._instruction = ""
        self._published: float | None = None
        self._seen: Mapping[str, float] = {}
        self._fault: NotReady | None = None
        self._inferences = self._dropped = 0
        self._kept: Mapping[str, tuple[int, int]] = {}
        self._inference, self._image_to_chunk = LatencyWindow(), LatencyWindow()

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
                self._published, self._seen = None, {}
        self._wake.set()

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
        now = self._ros_clock()
        gathered = self._gatherer.gather(now, time.monotonic())
        if isinstance(gathered, NotReady):
            if gathered.reason is Reason.CLOCK_JUMPED_BACK:
                self._published, self._seen = None, {}
            self._tell(gathered)
            return _POLL
        instruction = self._instruction
        if not instruction:
            self._tell(
                NotReady(Reason.NO_INSTRUCTION, "", "there is no instruction; publish one on the topic `instruction`")
            )
            return _POLL
        wait = self._timing.wait(now, self._published)
        if wait > 0.0:
            return min(wait, _POLL)
        # Images of one moment arrive one by one: after the first of them alone, the others would be a frame older.
        if any(self._seen.get(camera) == stamp for camera, stamp in gathered.images.items()):
            return _POLL
        self._infer(gathered, instruction)
        return 0.0

    def _infer(self, snapshot: Snapshot, instruction: str) -> None:
        self._seen = snapshot.images
        try:
            observation = to_observation(snapshot, self._streams, self._proprioception, instruction, self._decode)
            started = time.perf_counter()
            chunk = self._policy.predict_action(observation)
        except LightVLAError as error:
            self._tell(NotReady(Reason.UNUSABLE, "", str(error)))
            return
        self._inference.add(time.perf_counter() - started)
        self._inferences += 1
        self._kept = {camera: (int(kept.sum()), kept.size) for camera, kept in chunk.kept.items()}
        with self._lock:
            if self._stopping or instruction != self._instruction:
                self._dropped += 1
                return
            self._events.publish(chunk, instruction)
            self._published = snapshot.stamp
        self._image_to_chunk.add(self._ros_clock() - min(snapshot.images.values()))
        self._tell(None)
        self._events.show(observation, chunk)

    def _tell(self, fault: NotReady | None) -> None:
        self._fault = fault
        self._events.tell(fault)

"""Whether to infer now, and on what: the one decision of the live inference loop and of offline replay. Pure.

When an inference is due is in inference_timing, what makes an observation in observation; threads are the loop's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightvla_ros.inference_timing import InferenceTiming
from lightvla_ros.observation import NotReady, ObservationGatherer, Reason, Snapshot

# How often inputs are looked at while nothing new comes, s; the bound on noticing a stale one.
LOOK_PERIOD = 0.02


@dataclass(frozen=True)
class Wait:
    """Everything is well and nothing is to be done for this long, s, unless something new comes."""

    seconds: float


class InferenceDecision:
    """Remembers which chunk is in force and which images were used. Whoever shares it between threads holds a lock."""

    def __init__(self, gatherer: ObservationGatherer, timing: InferenceTiming) -> None:
        self._gatherer = gatherer
        self.timing = timing
        # s, what inferences take, NaN before the first; and the executor's speed. Whoever measures them sets them.
        self.latency, self.speed = float("nan"), 1.0
        self._published: float | None = None
        self._seen: Mapping[str, float] = {}

    def decide(self, now_ros: float, now_steady: float, instruction: str) -> Snapshot | NotReady | Wait:
        """The observation to infer on now, or why there is none, or that it is not time (both nows in s)."""
        gathered = self._gatherer.gather(now_ros, now_steady)
        if isinstance(gathered, NotReady):
            if gathered.reason is Reason.CLOCK_JUMPED_BACK:
                self.forget()
            return gathered
        if not instruction:
            return NotReady(
                Reason.NO_INSTRUCTION, "", "there is no instruction; publish one on the topic `instruction`"
            )
        wait = self.timing.wait(now_ros, self._published, self.latency, self.speed)
        if wait > 0.0:
            return Wait(min(wait, LOOK_PERIOD))
        # Images of one moment arrive one by one: after the first of them alone, the others would be a frame older.
        if any(self._seen.get(camera) == stamp for camera, stamp in gathered.images.items()):
            return Wait(LOOK_PERIOD)
        return gathered

    def taken(self, snapshot: Snapshot) -> None:
        """Inference on this observation begins; its images serve no other."""
        self._seen = snapshot.images

    def published(self, snapshot: Snapshot) -> None:
        """The chunk of this observation is in force."""
        self._published = snapshot.stamp

    def forget(self) -> None:
        """No chunk is in force: a new instruction, or another time."""
        self._published, self._seen = None, {}

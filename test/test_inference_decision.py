"""Whether to infer now, and on what."""

from __future__ import annotations

import pytest

from lightvla_ros.inference_decision import LOOK_PERIOD, InferenceDecision, Wait
from lightvla_ros.inference_timing import InferenceTiming
from lightvla_ros.observation import Limits, NotReady, ObservationGatherer, Reason, Snapshot, Stream

CAMERA, ARM = Stream("cam", "/cam", "camera"), Stream("arm", "/joint_states", "joint state")
ROS, STEADY, DT = 1000.0, 50.0, 0.04


class Bench:
    def __init__(self, timing: InferenceTiming) -> None:
        self.gatherer = ObservationGatherer((CAMERA, ARM), Limits(max_age=0.3, max_skew=0.15))
        self.decision = InferenceDecision(self.gatherer, timing)

    def decide(self, after: float, instruction: str = "go", image: float | None = None) -> Snapshot | NotReady | Wait:
        """After so many s, with fresh messages; image: its stamp's seconds after the start, else as fresh."""
        self.gatherer.put("cam", "image", ROS + (after if image is None else image), STEADY + after)
        self.gatherer.put("arm", "state", ROS + after, STEADY + after)
        return self.decision.decide(ROS + after, STEADY + after, instruction)

    def infer(self, after: float) -> None:
        decided = self.decide(after)
        assert isinstance(decided, Snapshot)
        self.decision.taken(decided)
        self.decision.published(decided)


def at_once() -> Bench:
    return Bench(InferenceTiming("receding_horizon", DT, 25))


def test_without_an_instruction_there_is_no_inference() -> None:
    decided = at_once().decide(0.0, instruction="")
    assert isinstance(decided, NotReady)
    assert decided.reason is Reason.NO_INSTRUCTION


def test_images_serve_one_inference_only() -> None:
    bench = at_once()
    bench.infer(0.0)
    assert bench.decide(0.01, image=0.0) == Wait(LOOK_PERIOD)
    assert isinstance(bench.decide(0.02, image=0.02), Snapshot)


def test_forgetting_infers_again_on_what_is_there() -> None:
    bench = Bench(InferenceTiming("open_loop", DT, 25))
    bench.infer(0.0)
    assert isinstance(bench.decide(0.1), Wait)
    bench.decision.forget()
    assert isinstance(bench.decide(0.1), Snapshot)


def test_prefetching_goes_by_the_latency_that_was_measured() -> None:
    bench = Bench(InferenceTiming("prefetch", DT, 25))
    bench.infer(0.0)
    bench.decision.latency = 0.1
    assert isinstance(bench.decide(0.85), Wait)
    assert isinstance(bench.decide(0.861), Snapshot)


def test_slower_execution_waits_longer() -> None:
    bench = Bench(InferenceTiming("open_loop", DT, 25))
    bench.infer(0.0)
    bench.decision.speed = 0.5
    assert isinstance(bench.decide(1.01), Wait)
    assert isinstance(bench.decide(2.01), Snapshot)


def test_another_rule_holds_from_the_next_look_on() -> None:
    bench = Bench(InferenceTiming("open_loop", DT, 25))
    bench.infer(0.0)
    assert isinstance(bench.decide(0.1), Wait)
    bench.decision.timing = InferenceTiming("receding_horizon", DT, 25)
    assert isinstance(bench.decide(0.11), Snapshot)


@pytest.mark.parametrize("mode", ["open_loop", "receding_horizon", "prefetch"])
def test_clock_that_jumps_back_forgets_what_was_published(mode: str) -> None:
    bench = Bench(InferenceTiming(mode, DT, 25, 0))  # type: ignore[arg-type]
    bench.infer(0.0)
    assert isinstance(bench.decision.decide(ROS - 5.0, STEADY + 0.01, "go"), NotReady)
    bench.gatherer.put("cam", "image", ROS - 5.0, STEADY + 0.02)
    bench.gatherer.put("arm", "state", ROS - 5.0, STEADY + 0.02)
    assert isinstance(bench.decision.decide(ROS - 4.99, STEADY + 0.02, "go"), Snapshot)

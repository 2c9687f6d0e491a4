"""The inference thread with a policy that errs; what it does with good ones is in test_policy_node.py."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from executor_fixtures import aloha_contract

from lightvla_core.errors import LightVLAError
from lightvla_core.interface import ActionChunk, Observation
from lightvla_ros.chunk_message import timed_chunk
from lightvla_ros.images import fill_image
from lightvla_ros.inference_loop import InferenceLoop
from lightvla_ros.inference_timing import InferenceTiming
from lightvla_ros.observation import Limits, NotReady, ObservationGatherer, Reason, Stream

CONTRACT = aloha_contract()
CAMERA = Stream("cam_high", "/cam_high", "camera")


class Policy:
    """Gives the same number for every channel of every step, or an error."""

    def __init__(self) -> None:
        self.value: float | None = 0.0
        self.pause, self.asked = 0.0, 0

    def predict_action(self, observation: Observation) -> ActionChunk:
        self.asked += 1
        time.sleep(self.pause)
        if self.value is None:
            raise LightVLAError("the policy is not well")
        return ActionChunk(np.full((25, 14), self.value), {}, stamp=observation.stamp)


class Listener:
    """What the loop tells, as the policy node hears it."""

    def __init__(self) -> None:
        self.published, self.faults, self.failures = 0, list[NotReady](), list[Exception]()

    def publish(self, chunk: ActionChunk, instruction: str) -> None:
        timed_chunk(chunk, CONTRACT, instruction, self.published)
        self.published += 1

    def show(self, observation: Observation, chunk: ActionChunk) -> None:
        pass

    def tell(self, fault: NotReady | None) -> None:
        if fault is not None:
            self.faults.append(fault)

    def failed(self, error: Exception, trace: str) -> None:
        self.failures.append(error)


class Bench:
    """A running loop with a camera that is always fresh, on a clock that is also the ROS clock."""

    def __init__(self) -> None:
        self.policy, self.heard = Policy(), Listener()
        self.gatherer = ObservationGatherer((CAMERA,), Limits(0.3, 0.1))
        timing = InferenceTiming("receding_horizon", CONTRACT.period, CONTRACT.chunk_length)
        self.loop = InferenceLoop(
            self.policy, self.gatherer, (CAMERA,), None, lambda m: m, timing, time.monotonic, self.heard
        )
        self.image = SimpleNamespace()
        fill_image(self.image, np.zeros((4, 4, 3), np.uint8))
        self.loop.instruct("go")
        self.loop.start()

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 10.0
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            now = time.monotonic()
            self.gatherer.put(CAMERA.name, self.image, now, now)
            self.loop.wake()
            time.sleep(0.005)

    def more_chunks(self) -> bool:
        before = self.heard.published
        self.until(lambda: self.heard.published > before)
        return True


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.loop.stop()


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_chunk_that_cannot_be_executed_is_an_error_that_passes(bench: Bench, value: float | None) -> None:
    assert bench.more_chunks()
    bench.policy.value = value
    bench.heard.faults.clear()
    bench.until(lambda: len(bench.heard.faults) > 3)
    assert {fault.reason for fault in bench.heard.faults} == {Reason.FAILED}
    published = bench.heard.published
    bench.until(lambda: len(bench.heard.faults) > 6)
    assert bench.heard.published == published
    bench.policy.value = 0.1
    assert bench.more_chunks()
    assert bench.heard.failures == []


def test_chunk_under_way_when_execution_begins_is_dropped(bench: Bench) -> None:
    assert bench.more_chunks()
    bench.policy.pause = 0.2
    inferred = bench.loop.status().inferences
    bench.until(lambda: bench.policy.asked > inferred)
    bench.loop.begin_anew()
    bench.until(lambda: bench.loop.status().dropped == 1)
    bench.policy.pause = 0.0
    assert bench.more_chunks()

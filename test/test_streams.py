"""Random streams of chunks, states, modes, jumps and re-arming through schedule and safety gate.

The suite runs a few thousand. All 100,000, about ten minutes on one core: `pytest -m slow test/test_streams.py`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from executor_fixtures import INSTRUCTION, aloha_contract, delta_contract
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightvla_core.contract import Channel, Gripper, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.chunk_schedule import ChannelKinds, ChunkError, ChunkSchedule, ExecutionMode, TimedChunk
from lightvla_ros.safety import Limits, Now, SafetyGate

EPOCH = 1_795_000_000.0
JOINTS = replace(
    aloha_contract(chunk_length=6, control_rate=20.0),
    proprioception=(),
    actions=(Channel("waist", "rad"), Channel("elbow", "rad"), Channel("gripper", "normalized")),
    gripper=Gripper(("gripper",), 1.0, 0.0, binary=True),
)
DELTAS = delta_contract()
MODES = (
    ExecutionMode(0.05),
    ExecutionMode(0.02, blend_time=0.1),
    ExecutionMode(0.005, blend_time=0.05, ensemble_decay=0.01),
    ExecutionMode(0.02, ensemble_decay=2.0, speed=0.5),
    ExecutionMode(0.1, blend_time=0.3, speed=0.1),
)
ANY = st.floats(-1e300, 1e300) | st.floats(-3.0, 3.0)
EVENTS = st.lists(st.tuples(st.integers(0, 7), ANY, st.floats(-0.2, 1.0)), min_size=1, max_size=12)


def limits(contract: PolicyContract) -> Limits:
    def all_(*values: float) -> NDArray[np.float64]:
        return np.array(values)

    return Limits(
        contract.action_names,
        lower=all_(-1.0, -2.0, 0.0),
        upper=all_(1.0, 0.5, 1.0),
        max_step=all_(0.1, 0.05, 0.3),
        max_velocity=all_(2.0, 3.0, math.inf),
        max_tracking_error=all_(0.4, math.inf, math.inf),
        grips=np.array([False, False, True]),
        rates=ChannelKinds.of(contract).rates,
    )


class Stream:
    """Plays events, and checks every command and every sample as it comes."""

    def __init__(self, contract: PolicyContract, mode: ExecutionMode) -> None:
        self.contract, self.mode, self.limits = contract, mode, limits(contract)
        self.next_mode, self.since = mode, math.inf
        self.schedule = ChunkSchedule(contract, mode)
        self.gate = SafetyGate(self.limits, mode.period, 0.3)
        self.measured = np.array([0.1, -0.5, 0.9])
        self.time, self.ros, self.sequence = 0.0, EPOCH, 0
        self.before: NDArray[np.float64] | None = None
        self.planned = (-math.inf, 0)
        self.gate.arm(self.measured, self.now)

    @property
    def now(self) -> Now:
        return Now(self.ros, self.time)

    def play(self, events: list[tuple[int, float, float]]) -> None:
        acts: tuple[Callable[[float, float], None], ...] = (
            self.run, self.run, self.chunk, self.chunk, self.move, self.change_mode, self.jump, self.rearm
        )  # fmt: skip
        for kind, value, moment in events:
            acts[kind](value, moment)
            self.run(value, 0.05)

    def run(self, value: float, moment: float) -> None:
        for _ in range(1 + int(10 * abs(moment))):
            # The loop takes over a new period after the first command that knows of it.
            self.time += self.mode.period
            self.ros += self.mode.period
            self.since += self.mode.period
            self.take_mode()
            sample = self.schedule.sample(self.ros, self.measured if self.gate.last is None else self.gate.last)
            if sample is not None:
                assert (sample.stamp, sample.step) >= self.planned, "time ran backward"
                self.planned = (sample.stamp, sample.step)
            self.check(self.gate.command(None if sample is None else sample.values, self.measured, self.now))

    def check(self, command: NDArray[np.float64] | None) -> None:
        if command is None:
            return
        assert np.isfinite(command).all()
        assert (command >= self.limits.lower).all()
        assert (command <= self.limits.upper).all()
        base = self.measured if self.before is None else self.before
        change = np.abs(command - base)
        # A velocity is set to zero at once, where nothing is planned and on a stop.
        change = np.where(self.limits.rates & (command == 0.0), 0.0, change)
        # Neither in the time since the command before, nor in that in which it is to be reached, is it too fast.
        assert (change <= self.limits.largest_step(min(self.since, self.mode.period)) + 1e-9).all()
        self.before, self.since = command.copy(), 0.0

    def chunk(self, value: float, moment: float) -> None:
        self.sequence += 1
        steps = np.linspace(value, -value * moment, self.contract.chunk_length)[:, None] * np.array([1.0, 0.5, 0.1])
        with contextlib.suppress(ChunkError):
            made = TimedChunk(
                self.ros - moment * 0.4,
                self.contract.period,
                self.contract.action_names,
                steps,
                self.contract.hash,
                INSTRUCTION,
                self.sequence,
            )
            self.schedule.offer(made, self.ros)

    def move(self, value: float, moment: float) -> None:
        self.measured = np.clip(self.measured + np.clip(value, -0.3, 0.3), self.limits.lower, self.limits.upper)
        if moment > 0.9:
            self.measured = self.measured * math.nan

    def change_mode(self, value: float, moment: float) -> None:
        self.next_mode = MODES[int(abs(moment) * 100) % len(MODES)]

    def take_mode(self) -> None:
        if self.next_mode is not self.mode:
            self.mode = self.next_mode
            self.schedule.change_mode(self.mode, self.ros)
            self.gate.set_times(self.mode.period, 0.3)

    def jump(self, value: float, moment: float) -> None:
        """As the executor does when the clock watch finds a jump."""
        self.ros += 20.0 * moment
        self.schedule.clear()
        self.gate.stop("the clock jumped")
        self.planned = (-math.inf, 0)

    def rearm(self, value: float, moment: float) -> None:
        if not np.isfinite(self.measured).all():
            self.measured = np.zeros(3)
        if self.gate.state == "armed":
            self.gate.stop("test")
        with contextlib.suppress(LightVLAError):
            self.gate.arm(self.measured, self.now)
            self.before, self.since = None, math.inf


def play(events: list[tuple[int, float, float]], contract: PolicyContract, mode: ExecutionMode) -> None:
    Stream(contract, mode).play(events)


STREAMS = {"events": EVENTS, "contract": st.sampled_from((JOINTS, DELTAS)), "mode": st.sampled_from(MODES)}
FAST = (HealthCheck.too_slow,)


@settings(max_examples=1500, database=None, suppress_health_check=FAST)
@given(**STREAMS)
def test_no_stream_breaks_a_limit_or_runs_time_backward(
    events: list[tuple[int, float, float]], contract: PolicyContract, mode: ExecutionMode
) -> None:
    play(events, contract, mode)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(10))
def test_hundred_thousand_streams(part: int) -> None:
    @seed(part)
    @settings(max_examples=10_000, database=None, suppress_health_check=FAST)
    @given(**STREAMS)
    def part_of_them(events: list[tuple[int, float, float]], contract: PolicyContract, mode: ExecutionMode) -> None:
        play(events, contract, mode)

    part_of_them()

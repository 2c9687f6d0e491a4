"""Chunks and joint states in, one command a period out: schedule, watchdogs and safety gate put together. Pure; no ROS.

The node feeds it and publishes what it returns; under a simulated clock it is the whole executor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.chunk_schedule import ChannelKinds, ChunkError, ChunkSchedule, TimedChunk
from lightvla_ros.control_loop import Ring, percentiles
from lightvla_ros.robots.description import RobotDescription, check_contract
from lightvla_ros.safety import ClockWatch, Limits, Now, SafetyGate, StateWatch

# How many latencies are remembered for their percentiles.
_LATENCIES = 4096


@dataclass(frozen=True)
class ExecutionSettings:
    """Times in s: period of the control loop, blend_time at the seam, and the timeouts that stop."""

    period: float
    blend_time: float
    starvation_timeout: float
    state_timeout: float
    future_tolerance: float
    max_clock_leap: float


@dataclass(frozen=True, eq=False)
class Period:
    """What one control period gives, each (channels,) or None.

    command: to be sent to the robot; preview: what would be sent if it were armed
    """

    command: NDArray[np.float64] | None
    preview: NDArray[np.float64] | None


@dataclass(frozen=True)
class Counts:
    """What diagnostics report, since the last arm where it concerns commands."""

    commands: int
    interventions: dict[str, int]
    rejected: dict[str, int]
    steps_late: int
    latency_p50: float
    latency_p99: float


def limits_for(contract: PolicyContract, robot: RobotDescription) -> Limits:
    """The robot's limits in the order of the contract's actions."""
    channels = robot.select(contract.action_names)
    return Limits(
        names=contract.action_names,
        lower=np.array([c.lower for c in channels]),
        upper=np.array([c.upper for c in channels]),
        max_step=np.array([c.max_step for c in channels]),
        max_velocity=np.array([c.max_velocity for c in channels]),
        max_tracking_error=np.array([c.max_tracking_error for c in channels]),
        grips=np.array([c.gripper is not None for c in channels]),
        rates=ChannelKinds.of(contract).rates,
    )


class Execution:
    """The executor without its node.

    measure: joint states, arm -> joint name -> position, to the measured action channels, (channels,)
    Raises LightVLAError when robot and contract do not fit, or a setting is not possible.
    """

    def __init__(
        self,
        contract: PolicyContract,
        robot: RobotDescription,
        settings: ExecutionSettings,
        measure: Callable[[Mapping[str, Mapping[str, float]]], NDArray[np.float64]],
    ) -> None:
        check_contract(contract, robot)
        self.contract, self.settings = contract, settings
        self._measure = measure
        self._schedule = ChunkSchedule(contract, settings.period, settings.blend_time, settings.future_tolerance)
        self._gate = SafetyGate(limits_for(contract, robot), settings.period, settings.starvation_timeout)
        arms = tuple(dict.fromkeys(c.arm for c in robot.select(contract.action_names)))
        self._watch = StateWatch(arms, settings.state_timeout, settings.future_tolerance)
        self._clock = ClockWatch(settings.state_timeout, settings.max_clock_leap)
        self._clock_trouble: str | None = "the control loop has not run yet"
        self._states: dict[str, Mapping[str, float]] = {}
        self._latency = Ring(_LATENCIES)
        self._commanded_stamp: float | None = None
        self._commands = 0

    @property
    def state(self) -> str:
        """`disarmed`, `armed` or `stopped: <reason>`."""
        return f"stopped: {self._gate.reason}" if self._gate.state == "stopped" else self._gate.state

    def set_instruction(self, instruction_id: str) -> None:
        self._schedule.set_instruction(instruction_id)

    def offer(self, chunk: TimedChunk, now: Now) -> None:
        """Take a chunk; raises ChunkError, counted, if it is not to be executed."""
        self._schedule.offer(chunk, now.ros)

    def count_refused(self, error: ChunkError) -> None:
        """Count a chunk that could not even be read."""
        self._schedule.count(error)

    def feed_state(self, arm: str, positions: Mapping[str, float], stamp: float, received: float) -> None:
        """A joint state of one arm: joint name -> position, header stamp (s, ROS clock), receipt (s, steady clock)."""
        self._states[arm] = positions
        self._watch.feed(arm, stamp, received)

    def arm(self, now: Now) -> None:
        """Let commands through; raises LightVLAError with the reason when this is not safe now."""
        trouble = self._clock_trouble or self._watch.stale(now)
        if trouble is not None:
            raise LightVLAError(f"cannot arm: {trouble}")
        self._gate.arm(self._measure(self._states), now)
        self._latency.clear()
        self._commands, self._commanded_stamp = 0, None

    def disarm(self) -> None:
        self._gate.disarm()

    def stop(self, reason: str, now: Now) -> NDArray[np.float64] | None:
        """The one defined stop, from outside; returns the latched target, (channels,), or None where none was sent."""
        self._gate.stop(reason, self._fresh(now))
        return self._gate.target

    def run_period(self, now: Now) -> Period:
        """One control period; never raises for anything that inputs can do, but stops."""
        self._check_clock(now)
        trouble = self._watch.stale(now)
        if trouble is not None:
            self._gate.stop(f"stale input: {trouble}")
        measured = None if trouble is not None else self._try_measure()
        if measured is None or self._gate.state == "stopped":
            return Period(self._gate.target, None)
        return self._follow(measured, now)

    def counts(self) -> Counts:
        p50, p99 = percentiles(self._latency.held(), 50, 99)
        return Counts(
            commands=self._commands,
            interventions=dict(self._gate.interventions),
            rejected=dict(self._schedule.rejected),
            steps_late=self._schedule.steps_late,
            latency_p50=p50,
            latency_p99=p99,
        )

    def _follow(self, measured: NDArray[np.float64], now: Now) -> Period:
        standing = measured if self._gate.last is None else self._gate.last
        sample = self._schedule.sample(now.ros, standing)
        desired = None if sample is None else sample.values
        if self._gate.state == "disarmed":
            return Period(None, None if desired is None else self._gate.preview(desired, measured))
        command = self._gate.command(desired, measured, now)
        if command is not None and self._gate.state == "armed":
            self._commands += 1
            if sample is not None and sample.stamp != self._commanded_stamp:
                self._commanded_stamp = sample.stamp
                self._latency.add(now.ros - sample.stamp)
        return Period(command, None)

    def _check_clock(self, now: Now) -> None:
        self._clock_trouble = self._clock.check(now)
        if self._clock_trouble is not None:
            # Planned times mean nothing on a clock that jumped, and in replay it may jump back.
            self._schedule.clear()
            self._gate.stop(self._clock_trouble, None)

    def _try_measure(self) -> NDArray[np.float64] | None:
        try:
            return self._measure(self._states)
        except LightVLAError as error:
            self._gate.stop(f"fault: {error}")
            return None

    def _fresh(self, now: Now) -> NDArray[np.float64] | None:
        return None if self._watch.stale(now) is not None else self._try_measure()

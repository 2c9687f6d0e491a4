"""Chunks and joint states in, one command a period out: schedule, watchdogs and safety gate put together. Pure; no ROS.

The node feeds it and publishes what it returns; under a simulated clock it is the whole executor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.chunk_schedule import ChannelKinds, ChunkError, ChunkSchedule, ExecutionMode, TimedChunk
from lightvla_ros.control_loop import Ring
from lightvla_ros.robots.description import RobotDescription, check_contract
from lightvla_ros.robots.start_pose import StartMove
from lightvla_ros.safety import Limits, Now, SafetyGate
from lightvla_ros.watchdogs import ClockWatch, HeartbeatWatch, StateWatch

# How many latencies are remembered for their percentiles.
_LATENCIES = 4096


@dataclass(frozen=True)
class ExecutionSettings:
    """How chunks become commands, and the times, s, whose end stops.

    heartbeat_timeout: of the operator's heartbeat; None where none is required
    Raises LightVLAError for times that are not possible.
    """

    mode: ExecutionMode
    starvation_timeout: float
    state_timeout: float
    future_tolerance: float
    max_clock_leap: float
    heartbeat_timeout: float | None = None

    def __post_init__(self) -> None:
        for name in ("starvation_timeout", "state_timeout", "max_clock_leap", "heartbeat_timeout"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise LightVLAError(f"{name} should be a positive number of s, but is {value}")
        if not (math.isfinite(self.future_tolerance) and self.future_tolerance >= 0):
            raise LightVLAError(f"future_tolerance should be at least 0 s, but is {self.future_tolerance}")


@dataclass(frozen=True, eq=False)
class Period:
    """What one control period gives, each (channels,) or None.

    command: to be sent to the robot; preview: what would be sent if it were armed
    """

    command: NDArray[np.float64] | None
    preview: NDArray[np.float64] | None


@dataclass(frozen=True, eq=False)
class Counts:
    """What diagnostics report, since the last arm where it concerns commands.

    latencies: float64 (chunks,), s, from an observation's stamp to the first command that uses it
    """

    commands: int
    interventions: dict[str, int]
    rejected: dict[str, int]
    steps_late: int
    latencies: NDArray[np.float64]


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
        self._schedule = ChunkSchedule(contract, settings.mode, settings.future_tolerance)
        self._gate = SafetyGate(limits_for(contract, robot), settings.mode.period, settings.starvation_timeout)
        arms = tuple(dict.fromkeys(c.arm for c in robot.select(contract.action_names)))
        self._watch = StateWatch(arms, settings.state_timeout, settings.future_tolerance)
        self._clock = ClockWatch(settings.state_timeout, settings.max_clock_leap)
        self._heartbeat = HeartbeatWatch(settings.heartbeat_timeout)
        self._clock_trouble: str | None = "the control loop has not run yet"
        # When it was stopped last, s, ROS clock: what was observed before is of another situation.
        self._stopped_at = -math.inf
        self._emergency_stop = False
        self._next_settings: ExecutionSettings | None = None
        self._states: dict[str, Mapping[str, float]] = {}
        self._latency = Ring(_LATENCIES)
        self._commanded_stamp: float | None = None
        self._commands = 0
        self._start_pose = np.array([c.start for c in robot.select(contract.action_names)])
        self._start_move: StartMove | None = None

    @property
    def state(self) -> str:
        """`disarmed`, `armed`, `armed: moving to the start pose` or `stopped: <reason>`."""
        if self._gate.state == "armed" and self._start_move is not None:
            return "armed: moving to the start pose"
        return f"stopped: {self._gate.reason}" if self._gate.state == "stopped" else self._gate.state

    @property
    def states(self) -> Mapping[str, Mapping[str, float]]:
        """The newest state of every source: source -> name -> value."""
        return self._states

    def change(self, settings: ExecutionSettings) -> None:
        """Run with these settings from the next step boundary on."""
        self._next_settings = settings

    def set_instruction(self, instruction_id: str) -> None:
        """Refuse chunks of any other from now on; the step under way ends first."""
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

    def feed_heartbeat(self, received: float) -> None:
        """The operator is there; received: s, steady clock."""
        self._heartbeat.feed(received)

    def set_emergency_stop(self, engaged: bool, now: Now) -> None:
        """Engaged, it stops and refuses to arm; released, it only allows to arm again."""
        self._emergency_stop = engaged
        if engaged:
            self.stop("emergency stop", now)

    def arm(self, now: Now) -> None:
        """Let commands through; raises LightVLAError with the reason when this is not safe now."""
        if self._emergency_stop:
            raise LightVLAError("cannot arm: the emergency stop is engaged; release it first")
        trouble = self._clock_trouble or self._watch.stale(now) or self._heartbeat.silent(now)
        if trouble is not None:
            raise LightVLAError(f"cannot arm: {trouble}")
        self._gate.arm(self._measure(self._states), now)
        # By the clock and not the plan: at a tenth of the speed a chunk lasts ten times as long.
        horizon = self.contract.chunk_length * self.contract.period
        self._schedule.drop_before(max(now.ros - horizon, self._stopped_at))
        self._start_move = None
        self._latency.clear()
        self._commands, self._commanded_stamp = 0, None

    def move_to_start(self, now: Now) -> float:
        """Arm for a slow move to the start pose and nothing else; returns how long it takes, s.

        Every limit and every cause of a stop holds as under a policy; at its end it is disarmed.
        """
        if self.contract.action_space != "joint_position":
            raise LightVLAError(
                "the policy commands the end effector, so joints cannot be moved; use the robot's own tool"
            )
        self.arm(now)
        limits = self._gate.limits
        goal = np.clip(self._start_pose, limits.lower, limits.upper)
        self._start_move = StartMove(self._measure(self._states), goal, limits.max_velocity, now.steady)
        return self._start_move.duration

    def disarm(self) -> None:
        self._gate.disarm()
        self._start_move = None

    def stop(self, reason: str, now: Now) -> NDArray[np.float64] | None:
        """The one defined stop, from outside; returns the latched target, (channels,), or None where none was sent."""
        armed = self._gate.state == "armed"
        self._gate.stop(reason, self._fresh(now))
        self._note_stop(armed, now)
        return self._gate.target

    def run_period(self, now: Now) -> Period:
        """One control period; never raises for anything that inputs can do, but stops."""
        armed = self._gate.state == "armed"
        period = self._run_period(now)
        self._note_stop(armed, now)
        return period

    def counts(self) -> Counts:
        return Counts(
            commands=self._commands,
            interventions=dict(self._gate.interventions),
            rejected=dict(self._schedule.rejected),
            steps_late=self._schedule.steps_late,
            latencies=self._latency.held(),
        )

    def _run_period(self, now: Now) -> Period:
        self._check_clock(now)
        self._apply_settings(now)
        trouble = self._watch.stale(now)
        if trouble is not None:
            self._gate.stop(f"stale input: {trouble}")
        measured = None if trouble is not None else self._try_measure()
        silence = self._heartbeat.silent(now)
        if silence is not None:
            self._gate.stop(silence, measured)
        if measured is None or self._gate.state == "stopped":
            return Period(self._gate.target, None)
        return self._follow(measured, now)

    def _follow_start_move(self, move: StartMove, measured: NDArray[np.float64], now: Now) -> Period:
        command = self._gate.command(move.advance(now.steady, self.settings.mode.period), measured, now)
        if self._gate.state == "armed" and move.done:
            self.disarm()
        return Period(command, None)

    def _follow(self, measured: NDArray[np.float64], now: Now) -> Period:
        if self._start_move is not None and self._gate.state == "armed":
            return self._follow_start_move(self._start_move, measured, now)
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

    def _note_stop(self, was_armed: bool, now: Now) -> None:
        if was_armed and self._gate.state == "stopped":
            self._stopped_at = now.ros

    def _apply_settings(self, now: Now) -> None:
        settings = self._next_settings
        if settings is None or (self._gate.state == "armed" and not self._schedule.at_step_boundary(now.ros)):
            return
        self._next_settings, self.settings = None, settings
        self._schedule.change_mode(settings.mode, now.ros)
        self._schedule.future_tolerance = self._watch.future_tolerance = settings.future_tolerance
        self._gate.set_times(settings.mode.period, settings.starvation_timeout)
        self._watch.timeout = self._clock.frozen_after = settings.state_timeout
        self._clock.max_leap = settings.max_clock_leap
        self._heartbeat.timeout = settings.heartbeat_timeout

    def _check_clock(self, now: Now) -> None:
        self._clock_trouble = self._clock.check(now)
        if self._clock_trouble is not None:
            # Planned times mean nothing on a clock that jumped, and in replay it may jump back.
            self._schedule.clear()
            self._stopped_at = -math.inf
            self._gate.stop(self._clock_trouble, None)

    def _try_measure(self) -> NDArray[np.float64] | None:
        try:
            return self._measure(self._states)
        except Exception as error:
            # Whatever a driver can send ends here: the loop must go on, to repeat the latched target.
            self._gate.stop(f"fault: {error}" if isinstance(error, LightVLAError) else f"fault: {error!r}")
            return None

    def _fresh(self, now: Now) -> NDArray[np.float64] | None:
        return None if self._watch.stale(now) is not None else self._try_measure()

"""Time-aligned execution of action chunks: which chunks are taken, and what to command at a moment. Pure; no ROS.

Limits and the decision to command at all are in safety.py. No clock here: every moment is an argument.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.ensembling import ensemble
from lightvla_ros.plan_clock import PlanClock, check_speed

Reason = Literal["malformed", "other_contract", "other_instruction", "out_of_order", "future", "expired"]
REASONS: tuple[Reason, ...] = get_args(Reason)

# Stamps are float64 seconds since 1970, good to 0.24 µs; a step's edge is not missed by less than this, s.
_EDGE = 1e-6


class ChunkError(LightVLAError):
    """A chunk that is not executed; reason is the key under which it is counted."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class TimedChunk:
    """An action chunk with planned times: actions[i] is sent at stamp + i * dt and reached dt later.

    stamp: of the observation, s, ROS clock; dt: duration of one action, s; names: of the action channels, in order
    actions: float64 (steps, channels), finite, robot units; sequence: counts the chunks of one policy process
    """

    stamp: float
    dt: float
    names: tuple[str, ...]
    actions: NDArray[np.float64]
    contract_hash: str
    instruction_id: str
    sequence: int

    def __post_init__(self) -> None:
        actions = np.array(self.actions, dtype=np.float64)
        if actions.ndim != 2 or len(actions) == 0 or actions.shape[1] != len(self.names):
            raise ChunkError(
                "malformed", f"a chunk should be (steps, {len(self.names)}) actions, but is {actions.shape}"
            )
        if not np.isfinite(actions).all():
            step, channel = np.argwhere(~np.isfinite(actions))[0]
            raise ChunkError(
                "malformed", f"step {step} of the chunk has {actions[step, channel]} for {self.names[channel]}"
            )
        if not (math.isfinite(self.stamp) and math.isfinite(self.dt) and self.dt > 0):
            raise ChunkError("malformed", f"a chunk has stamp {self.stamp} s and step duration {self.dt} s")
        actions.flags.writeable = False
        object.__setattr__(self, "actions", actions)

    @property
    def end(self) -> float:
        """When its last step has been reached, s."""
        return self.stamp + len(self.actions) * self.dt

    def step_at(self, now: float) -> int:
        """The index of the step that is to be sent at `now`; may lie outside the chunk."""
        return math.floor((now - self.stamp + _EDGE) / self.dt)

    def position_at(self, when: float) -> NDArray[np.float64]:
        """Where the channels should be at `when`, (channels,): linear between the steps, constant beyond the ends."""
        place = (when - self.stamp) / self.dt - 1.0
        last = len(self.actions) - 1
        place = min(max(place, 0.0), float(last))
        step = min(int(place), max(0, last - 1))
        weight = place - step
        position: NDArray[np.float64] = (1.0 - weight) * self.actions[step] + weight * self.actions[min(step + 1, last)]
        return position

    def travel(self, start: float, end: float) -> NDArray[np.float64]:
        """What the actions add up to between two moments, (channels,), each at its even rate; beyond the ends 0."""
        return self._travelled(end) - self._travelled(start)

    def _travelled(self, when: float) -> NDArray[np.float64]:
        place = min(max((when - self.stamp) / self.dt, 0.0), float(len(self.actions)))
        step = min(int(place), len(self.actions) - 1)
        travelled: NDArray[np.float64] = self._sums[step] + (place - step) * self.actions[step]
        return travelled

    @cached_property
    def _sums(self) -> NDArray[np.float64]:
        """What the actions before each step add up to, (steps, channels)."""
        return np.cumsum(self.actions, axis=0) - self.actions


@dataclass(frozen=True)
class ChannelKinds:
    """How each action channel is sampled; boolean (channels,), in contract order.

    rates: end-effector deltas, which become the mean velocity of the control period, so that they add up at any rate
    held: binary grippers, which take a step's value as it is; everything else is a position and is interpolated
    """

    rates: NDArray[np.bool_]
    held: NDArray[np.bool_]

    @classmethod
    def of(cls, contract: PolicyContract) -> ChannelKinds:
        gripper = contract.gripper
        grippers = np.array([gripper is not None and n in gripper.channels for n in contract.action_names])
        binary = gripper is not None and gripper.binary
        deltas = contract.action_space == "eef_delta"
        return cls(rates=~grippers & deltas, held=grippers & binary)

    @cached_property
    def all_positions(self) -> bool:
        """Every channel is interpolated."""
        return not (self.rates.any() or self.held.any())


@dataclass(frozen=True, eq=False)
class Sample:
    """What the policy wants commanded now.

    values: float64 (channels,); a delta channel in its unit per second, every other in its own unit
    stamp: of the newest observation behind it, s; step: index in its chunk
    """

    values: NDArray[np.float64]
    stamp: float
    step: int


@dataclass(frozen=True)
class ExecutionMode:
    """How chunks become commands; may be changed between two steps.

    period: of the control loop, s: a position commanded at t is the planned one at t + period
    blend_time: over which the difference between two chunks fades at the seam, s; 0 for none
    ensemble_decay: None to execute the newest chunk alone; a number averages all chunks that plan the moment
        (temporal ensembling), the i-th oldest with the weight exp(-ensemble_decay * i)
    speed: 0.1 to 1; at less than 1 every planned step takes longer
    Raises LightVLAError for values that are not possible.
    """

    period: float
    blend_time: float = 0.0
    ensemble_decay: float | None = None
    speed: float = 1.0

    def __post_init__(self) -> None:
        for name, value, least, unit in (
            ("period", self.period, 1e-6, " s"),
            ("blend_time", self.blend_time, 0.0, " s"),
            ("ensemble_decay", self.ensemble_decay or 0.0, 0.0, ""),
        ):
            if not (math.isfinite(value) and value >= least):
                raise LightVLAError(f"{name} should be a finite number of at least {least}{unit}, but is {value}")
        check_speed(self.speed)


class ChunkSchedule:
    """Holds the chunks that plan the present and samples them by time.

    contract: names, rate and hash that chunks must have; future_tolerance: how far ahead of the clock a stamp may be, s
    """

    def __init__(self, contract: PolicyContract, mode: ExecutionMode, future_tolerance: float = 0.05) -> None:
        self._contract_hash = contract.hash
        self._kinds = ChannelKinds.of(contract)
        self._mode = mode
        self.future_tolerance = future_tolerance
        self._clock = PlanClock(mode.speed)
        self._instruction: str | None = None
        # As many as overlap when one is made for every step, oldest first.
        self._chunks: deque[_Planned] = deque(maxlen=contract.chunk_length)
        self.rejected: Counter[str] = Counter({reason: 0 for reason in REASONS})
        self.steps_late = 0
        self._oldest = -math.inf
        self.clear()

    def clear(self) -> None:
        """Forget chunks and seam, as after a clock jump; counts stay."""
        self._oldest = -math.inf
        self._chunks.clear()
        self._clock.forget()
        self._newest: TimedChunk | None = None
        self._sampled: tuple[TimedChunk, int] | None = None
        self._seam = (np.zeros(len(self._kinds.held)), -math.inf)

    def drop_before(self, stamp: float) -> None:
        """Execute no chunk whose observation is older than this (s, ROS clock), neither at hand nor still to come."""
        self._oldest = stamp
        kept = [planned for planned in self._chunks if planned.chunk.stamp >= stamp]
        self._chunks.clear()
        self._chunks.extend(kept)

    def change_mode(self, mode: ExecutionMode, now: float) -> None:
        """Execute in another way from `now` (s, ROS clock) on; call it at a step boundary."""
        self._clock.set_speed(mode.speed, now)
        self._mode = mode
        # What was averaged or blended before is where the commands stand, and fades like a seam.
        self._sampled = None

    def set_instruction(self, instruction_id: str | None) -> None:
        """Only chunks of this instruction are taken from now on, None takes any; those at hand end with their step."""
        self._instruction = instruction_id

    def at_step_boundary(self, now: float) -> bool:
        """Whether no step is under way at `now`: another begins, or there is none."""
        if self._sampled is None or not self._chunks or self._chunks[-1].chunk is not self._sampled[0]:
            return True
        return self._chunks[-1].step_at(self._clock.at(now)) != self._sampled[1]

    def offer(self, chunk: TimedChunk, now: float) -> None:
        """Take a chunk that arrives at `now` (s, ROS clock). Raises ChunkError, and counts it, if it is not taken."""
        planned = _Planned(chunk, self._clock.at(chunk.stamp))
        try:
            self._check(planned, now)
        except ChunkError as error:
            self.count(error)
            raise
        self.steps_late += max(0, planned.step_at(self._clock.at(now)))
        if self._mode.ensemble_decay is None:
            self._chunks.clear()
        self._chunks.append(planned)
        self._newest = chunk

    def count(self, error: ChunkError) -> None:
        """Count a chunk that was refused before it came here."""
        self.rejected[error.reason] += 1

    def sample(self, now: float, standing: NDArray[np.float64] | None) -> Sample | None:
        """What to command at `now` (s, ROS clock), or None: no executable step.

        standing: the last command, (channels,), from which the seam to a new chunk starts; None if there is none yet
        """
        if self._instruction is not None and self.at_step_boundary(now):
            self._drop_other_instructions(self._instruction)
        plan = self._clock.at(now)
        while self._chunks and self._chunks[0].step_at(plan) >= len(self._chunks[0].chunk.actions):
            self._chunks.popleft()
        if not self._chunks or now < self._chunks[-1].chunk.stamp - self.future_tolerance:
            return None
        newest = self._chunks[-1]
        step = max(0, newest.step_at(plan))
        if self._sampled is None or self._sampled[0] is not newest.chunk:
            self._open_seam(now, plan, standing)
        self._sampled = (newest.chunk, step)
        return Sample(self._values(plan) + self._seam_offset(now), newest.chunk.stamp, step)

    def _drop_other_instructions(self, instruction: str) -> None:
        if any(planned.chunk.instruction_id != instruction for planned in self._chunks):
            kept = [planned for planned in self._chunks if planned.chunk.instruction_id == instruction]
            self._chunks.clear()
            self._chunks.extend(kept)

    def _check(self, planned: _Planned, now: float) -> None:
        chunk = planned.chunk
        if chunk.contract_hash != self._contract_hash:
            raise ChunkError(
                "other_contract",
                f"a chunk is of contract {chunk.contract_hash}, but this executor was configured with "
                f"{self._contract_hash}; configure it again",
            )
        if self._instruction is not None and chunk.instruction_id != self._instruction:
            raise ChunkError("other_instruction", "a chunk is of an instruction that is no longer in force")
        ahead = chunk.stamp - now
        if ahead > self.future_tolerance:
            raise ChunkError(
                "future",
                f"a chunk is stamped {ahead:.3f} s in the future, more than {self.future_tolerance} s: "
                "are the clocks of both machines synchronised?",
            )
        if chunk.stamp < self._oldest:
            raise ChunkError("expired", "a chunk is of an observation from before the last stop, or too old to arm on")
        if planned.step_at(self._clock.at(now)) >= len(chunk.actions):
            raise ChunkError(
                "expired",
                f"a chunk arrived {-ahead:.3f} s after its observation, when its last step was over: is inference "
                "too slow?",
            )
        newest = self._newest
        # The stamp decides and the sequence breaks ties, so that a restarted policy, which counts from 0, is heard.
        if newest is not None and (chunk.stamp, chunk.sequence) <= (newest.stamp, newest.sequence):
            raise ChunkError("out_of_order", f"chunk {chunk.sequence} came after the newer chunk {newest.sequence}")

    def _values(self, plan: float) -> NDArray[np.float64]:
        if len(self._chunks) == 1 or self._mode.ensemble_decay is None:
            return self._plan_of(self._chunks[-1], plan)
        plans = np.array([self._plan_of(planned, plan) for planned in self._chunks])
        return ensemble(plans, self._mode.ensemble_decay, self._kinds.held)

    def _plan_of(self, planned: _Planned, plan: float) -> NDArray[np.float64]:
        chunk, kinds, speed = planned.chunk, self._kinds, self._mode.speed
        if kinds.all_positions:
            return chunk.position_at(planned.local(plan) + speed * self._mode.period)
        action = chunk.actions[min(max(0, planned.step_at(plan)), len(chunk.actions) - 1)]
        values = chunk.position_at(planned.local(plan) + speed * self._mode.period)
        values = np.where(kinds.held, action, values)
        # Over the whole period that the command holds: it may be longer than a step, or reach into the next one.
        here = planned.local(plan)
        rates = chunk.travel(here, here + speed * self._mode.period) / self._mode.period
        return np.where(kinds.rates, rates, values)

    def _open_seam(self, now: float, plan: float, standing: NDArray[np.float64] | None) -> None:
        """Start from where the commands stand: the difference to the new plan then fades over blend_time."""
        if standing is None or not np.isfinite(standing).all() or self._mode.blend_time <= 0.0:
            self._seam = (np.zeros(len(self._kinds.held)), -math.inf)
            return
        difference = standing - self._values(plan - self._mode.speed * self._mode.period)
        self._seam = (np.where(self._kinds.held, 0.0, difference), now)

    def _seam_offset(self, now: float) -> NDArray[np.float64]:
        difference, since = self._seam
        if since == -math.inf:
            return difference
        left = 1.0 - (now - since + self._mode.period) / self._mode.blend_time if self._mode.blend_time > 0 else 0.0
        return difference * min(1.0, max(0.0, left))


@dataclass(frozen=True, eq=False)
class _Planned:
    """A chunk and its place in plan time: start is when its first action is to be sent, s."""

    chunk: TimedChunk
    start: float

    def local(self, plan: float) -> float:
        """The chunk's own time, s, at a moment of the plan."""
        return self.chunk.stamp + (plan - self.start)

    def step_at(self, plan: float) -> int:
        return self.chunk.step_at(self.local(plan))

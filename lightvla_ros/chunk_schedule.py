"""Time-aligned execution of action chunks: which chunks are taken, and what to command at a moment. Pure; no ROS.

Limits and the decision to command at all are in safety.py. No clock here: every moment is an argument.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError

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


@dataclass(frozen=True)
class ChannelKinds:
    """How each action channel is sampled; boolean (channels,), in contract order.

    rates: end-effector deltas, which become a velocity (delta / dt) held for the step
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


@dataclass(frozen=True, eq=False)
class Sample:
    """What the policy wants commanded now.

    values: float64 (channels,); a delta channel in its unit per second, every other in its own unit
    stamp: of the observation behind it, s; step: index in the chunk
    """

    values: NDArray[np.float64]
    stamp: float
    step: int


class ChunkSchedule:
    """Holds the newest chunk and samples it by time.

    contract: names, rate and hash that chunks must have
    period: of the control loop, s: a position commanded at t is the planned one at t + period
    blend_time: over which the difference between two chunks fades at the seam, s; 0 for none
    future_tolerance: how far ahead of the clock a stamp may be, s
    """

    def __init__(
        self, contract: PolicyContract, period: float, blend_time: float = 0.0, future_tolerance: float = 0.05
    ) -> None:
        for name, value, least in (
            ("period", period, 1e-6),
            ("blend_time", blend_time, 0.0),
            ("future_tolerance", future_tolerance, 0.0),
        ):
            if not (math.isfinite(value) and value >= least):
                raise LightVLAError(f"{name} should be a finite number of at least {least} s, but is {value}")
        self._contract_hash = contract.hash
        self._kinds = ChannelKinds.of(contract)
        self._period, self._blend_time, self._future_tolerance = period, blend_time, future_tolerance
        self._instruction: str | None = None
        self.rejected: Counter[str] = Counter({reason: 0 for reason in REASONS})
        self.steps_late = 0
        self.clear()

    def clear(self) -> None:
        """Forget the chunk and the seam, as after a clock jump; counts stay."""
        self._chunk: TimedChunk | None = None
        self._newest: TimedChunk | None = None
        self._sampled: TimedChunk | None = None
        self._seam = (np.zeros(len(self._kinds.held)), -math.inf)

    def set_instruction(self, instruction_id: str | None) -> None:
        """From now on only chunks of this instruction count, the one at hand included; None accepts any."""
        self._instruction = instruction_id
        if self._chunk is not None and instruction_id not in (None, self._chunk.instruction_id):
            self._chunk = None

    def offer(self, chunk: TimedChunk, now: float) -> None:
        """Take a chunk that arrives at `now` (s, ROS clock). Raises ChunkError, and counts it, if it is not taken."""
        try:
            self._check(chunk, now)
        except ChunkError as error:
            self.count(error)
            raise
        self.steps_late += max(0, chunk.step_at(now))
        self._chunk = self._newest = chunk

    def count(self, error: ChunkError) -> None:
        """Count a chunk that was refused before it came here."""
        self.rejected[error.reason] += 1

    def sample(self, now: float, standing: NDArray[np.float64] | None) -> Sample | None:
        """What to command at `now` (s, ROS clock), or None: no executable step.

        standing: the last command, (channels,), from which the seam to a new chunk starts; None if there is none yet
        """
        chunk = self._chunk
        step = 0 if chunk is None else max(0, chunk.step_at(now))
        if chunk is None or step >= len(chunk.actions) or now < chunk.stamp - self._future_tolerance:
            return None
        if chunk is not self._sampled:
            self._open_seam(chunk, now, standing)
        self._sampled = chunk
        values = self._values(chunk, now, step) + self._seam_offset(now)
        return Sample(values, chunk.stamp, step)

    def _check(self, chunk: TimedChunk, now: float) -> None:
        if chunk.contract_hash != self._contract_hash:
            raise ChunkError(
                "other_contract",
                f"a chunk is of contract {chunk.contract_hash}, but this executor was configured with "
                f"{self._contract_hash}; configure it again",
            )
        if self._instruction is not None and chunk.instruction_id != self._instruction:
            raise ChunkError("other_instruction", "a chunk is of an instruction that is no longer in force")
        ahead = chunk.stamp - now
        if ahead > self._future_tolerance:
            raise ChunkError(
                "future",
                f"a chunk is stamped {ahead:.3f} s in the future, more than {self._future_tolerance} s: "
                "are the clocks of both machines synchronised?",
            )
        if chunk.step_at(now) >= len(chunk.actions):
            raise ChunkError(
                "expired", f"a chunk arrived {now - chunk.end:.3f} s after its last step: is inference too slow?"
            )
        newest = self._newest
        # The stamp decides and the sequence breaks ties, so that a restarted policy, which counts from 0, is heard.
        if newest is not None and (chunk.stamp, chunk.sequence) <= (newest.stamp, newest.sequence):
            raise ChunkError("out_of_order", f"chunk {chunk.sequence} came after the newer chunk {newest.sequence}")

    def _values(self, chunk: TimedChunk, now: float, step: int) -> NDArray[np.float64]:
        values = chunk.position_at(now + self._period)
        values = np.where(self._kinds.held, chunk.actions[step], values)
        return np.where(self._kinds.rates, chunk.actions[step] / chunk.dt, values)

    def _open_seam(self, chunk: TimedChunk, now: float, standing: NDArray[np.float64] | None) -> None:
        """Start from where the commands stand: the difference to the new chunk then fades over blend_time."""
        if standing is None or not np.isfinite(standing).all() or self._blend_time <= 0.0:
            self._seam = (np.zeros(len(self._kinds.held)), -math.inf)
            return
        before = now - self._period
        difference = standing - self._values(chunk, before, max(0, chunk.step_at(before)))
        self._seam = (np.where(self._kinds.held, 0.0, difference), now)

    def _seam_offset(self, now: float) -> NDArray[np.float64]:
        difference, since = self._seam
        if since == -math.inf:
            return difference
        left = 1.0 - (now - since + self._period) / self._blend_time
        return difference * min(1.0, max(0.0, left))

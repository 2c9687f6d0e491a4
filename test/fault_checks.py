"""What must hold in every run of the fault rig, one check a guarantee, and the runs themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from fault_rig import CHANNELS, CONTRACT, GATHER_LIMITS, Record, Rig, Switches
from faults import Fault

LOWER, UPPER = np.array([c.lower for c in CHANNELS]), np.array([c.upper for c in CHANNELS])
MAX_STEP, MAX_VELOCITY = np.array([c.max_step for c in CHANNELS]), np.array([c.max_velocity for c in CHANNELS])
MAX_TRACKING = 0.5
ONSET, LASTS, AFTER = 1.0, 2.6, 0.5


@dataclass(frozen=True)
class Run:
    """records[:armed] were before arming; onset: of the fault, s, steady clock; rig: goes on after the records.

    stopped: index of the first record that is stopped, None where none is
    """

    fault: Fault
    rig: Rig
    records: tuple[Record, ...]
    armed: int
    onset: float

    @property
    def stopped(self) -> int | None:
        return next((i for i, r in enumerate(self.records) if r.state.startswith("stopped")), None)


@cache
def run(fault: Fault, arm: bool = True) -> Run:
    """Half a second disarmed, armed until the onset, the fault, and everything well again."""
    rig = Rig(require_heartbeat="heartbeat" in fault.name)
    rig.run(0.5)
    armed = len(rig.records)
    if arm:
        rig.execution.arm(rig.now)
    rig.run(ONSET - 0.5)
    onset = rig.time
    fault.inject(rig)
    rig.run(LASTS)
    rig.switches = Switches()
    rig.run(AFTER)
    return Run(fault, rig, tuple(rig.records), armed, onset)


def nothing_is_commanded_unless_armed(made: Run) -> None:
    disarmed = run(made.fault, arm=False)
    assert all(r.command is None for r in disarmed.records)
    assert all(r.command is None for r in made.records[: made.armed])


def inference_only_on_fresh_observations(made: Run) -> None:
    assert made.rig.taken
    for taken in made.rig.taken:
        assert taken.age <= GATHER_LIMITS.max_age
        assert taken.silence <= GATHER_LIMITS.max_age
        assert taken.skew <= GATHER_LIMITS.max_skew


def every_command_is_finite(made: Run) -> None:
    assert all(np.isfinite(r.command).all() for r in made.records if r.command is not None)


def every_command_is_within_limits(made: Run) -> None:
    before: Record | None = None
    for record in made.records:
        if record.command is None:
            continue
        assert (record.command >= LOWER).all()
        assert (record.command <= UPPER).all()
        base, elapsed = (record.measured, math.inf) if before is None else (before.command, record.time - before.time)
        # Neither in the time since the command before, nor in that in which it is to be reached, is it too fast.
        largest = np.minimum(MAX_STEP, MAX_VELOCITY * min(elapsed, record.period)) + 1e-9
        assert (np.abs(record.command - base) <= largest).all()
        before = record
    for record, following in pairwise(made.records):
        if record.state == "armed" and following.state == "armed":
            assert following.last_error <= MAX_TRACKING + 1e-9


def steps_are_sent_at_their_time(made: Run) -> None:
    """No step is replayed late, none is early, and planned time never runs backward."""
    slowed = "parameters changed" in made.fault.name
    before = (-np.inf, 0)
    for record in made.records:
        if record.sample is None or record.state != "armed":
            continue
        planned = record.sample.stamp + record.sample.step * CONTRACT.period
        assert planned <= record.now.ros + 0.05
        # At less than full speed a step is later than it would be at full speed.
        assert slowed or record.now.ros < planned + CONTRACT.period + 1e-5
        assert (record.sample.stamp, record.sample.step) >= before
        before = (record.sample.stamp, record.sample.step)


def one_stop_in_time_that_latches_until_armed_again(made: Run) -> None:
    fault, stopped = made.fault, made.stopped
    if fault.reason is None and stopped is None:
        return
    assert stopped is not None, "it never stopped"
    if fault.reason is not None:
        assert re.search(fault.reason, made.records[stopped].state)
        assert made.records[stopped].time - made.onset <= fault.bound + 1e-9
    _nothing_but_the_target(made.records[stopped:])
    _recovers_only_by_arming(made)


def _nothing_but_the_target(records: Sequence[Record]) -> None:
    """Two periods after the detection at the latest, the target alone is sent."""
    target, reason = records[-1].command, records[-1].state
    for record in records[2:]:
        assert record.state == reason
        assert (record.command is None) == (target is None)
        assert target is None or np.array_equal(record.command, target)


def _recovers_only_by_arming(made: Run) -> None:
    rig, target = made.rig, made.records[-1].command
    rig.execution.set_emergency_stop(False, rig.now)
    rig.run(0.3)
    assert rig.execution.state.startswith("stopped")
    assert target is None or np.array_equal(rig.records[-1].command, target)
    rig.execution.arm(rig.now)
    rig.run(0.5)
    assert rig.execution.state == "armed"
    assert rig.records[-1].command is not None


def rides_through(made: Run) -> None:
    assert made.stopped is None, made.records[made.stopped or 0].state


CHECKS = {
    1: nothing_is_commanded_unless_armed,
    3: inference_only_on_fresh_observations,
    4: every_command_is_finite,
    5: every_command_is_within_limits,
    6: steps_are_sent_at_their_time,
    7: one_stop_in_time_that_latches_until_armed_again,
}


@cache
def verdict(fault: Fault, guarantee: int) -> str:
    """What broke this guarantee under this fault, or '' where it held."""
    try:
        CHECKS[guarantee](run(fault))
    except AssertionError as error:
        return str(error) or "broken"
    return ""


def applies(fault: Fault, guarantee: int) -> bool:
    """Whether the check of this guarantee says something about this fault."""
    return guarantee in CHECKS and (guarantee != 3 or fault.observations)

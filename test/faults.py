"""Every fault that the harness injects: what it disturbs, what must come of it, and within which time.

The rig that they disturb is in fault_rig.py; which of them are shown live, too, is in live_marks.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from executor_fixtures import settings
from fault_rig import ARMS, CONTRACT, HEARTBEAT_TIMEOUT, PERIOD, Rig

from lightvla_core.errors import LightVLAError
from lightvla_ros.chunk_schedule import ChunkError, TimedChunk

HORIZON, STARVATION, STATE_TIMEOUT = 1.0, 0.5, 0.2


@dataclass(frozen=True)
class Fault:
    """inject: turns the switches (or acts) at the onset

    reason: regular expression of the stop's reason; None where the executor must ride it through
    bound: s, from the onset to the detection, and bound_text the same in words
    observations: whether it disturbs what the policy observes, too
    """

    name: str
    inject: Callable[[Rig], None]
    reason: str | None
    bound: float
    bound_text: str
    observations: bool


def _chunks(becomes: Callable[[TimedChunk, float], list[TimedChunk]]) -> Callable[[Rig], None]:
    def inject(rig: Rig) -> None:
        rig.switches.chunks = becomes

    return inject


def _spoiled(value: float) -> Callable[[Rig], None]:
    """The message is built all right and cannot become a chunk, so it never reaches the schedule."""

    def becomes(made: TimedChunk, now: float) -> list[TimedChunk]:
        actions = made.actions.copy()
        actions[3, 2] = value
        try:
            return [replace(made, actions=actions)]
        except ChunkError:
            return []

    return _chunks(becomes)


def _wrong_shape(made: TimedChunk, now: float) -> list[TimedChunk]:
    try:
        return [replace(made, actions=made.actions[:, :-1])]
    except ChunkError:
        return []


def _reordered() -> Callable[[Rig], None]:
    held: list[TimedChunk] = []

    def becomes(made: TimedChunk, now: float) -> list[TimedChunk]:
        held.append(made)
        if len(held) < 2:
            return []
        pair = held[::-1]
        held.clear()
        return pair

    return _chunks(becomes)


def _frozen_chunk() -> Callable[[Rig], None]:
    first: list[TimedChunk] = []

    def becomes(made: TimedChunk, now: float) -> list[TimedChunk]:
        first.append(made)
        return [first[0]]

    return _chunks(becomes)


def _delayed_chunks(delay: float) -> Callable[[Rig], None]:
    def inject(rig: Rig) -> None:
        waiting: list[tuple[float, TimedChunk]] = []

        def becomes(made: TimedChunk, now: float) -> list[TimedChunk]:
            waiting.append((now + delay, made))
            ready = [m for when, m in waiting if when <= now]
            waiting[:] = [(when, m) for when, m in waiting if when > now]
            return ready

        rig.switches.chunks = becomes

    return inject


def _flood(rig: Rig) -> None:
    def each(rig: Rig) -> None:
        for k in range(20):
            rig.receive(rig.make_chunk(rig.ros - 0.05 + 1e-6 * k))

    rig.switches.each_period = each


def _states(becomes: Callable[[str, dict[str, float], float], list[tuple[dict[str, float], float]]]):  # type: ignore[no-untyped-def]
    def inject(rig: Rig) -> None:
        rig.switches.states = lambda arm, positions, stamp: (
            becomes(arm, positions, stamp) if arm == ARMS[0] else [(positions, stamp)]
        )

    return inject


def _frozen_state() -> Callable[[Rig], None]:
    first: list[tuple[dict[str, float], float]] = []

    def becomes(arm: str, positions: dict[str, float], stamp: float) -> list[tuple[dict[str, float], float]]:
        first.append((positions, stamp))
        return [first[0]]

    return _states(becomes)


def _reordered_states(arm: str, positions: dict[str, float], stamp: float) -> list[tuple[dict[str, float], float]]:
    return [(positions, stamp), (positions, stamp - 0.02)]


def _frames(becomes: Callable[[float, float], list[float]]) -> Callable[[Rig], None]:
    def inject(rig: Rig) -> None:
        rig.switches.frames = becomes

    return inject


def _frozen_frames() -> Callable[[Rig], None]:
    first: list[float] = []

    def becomes(stamp: float, now: float) -> list[float]:
        first.append(stamp)
        return [first[0]]

    return _frames(becomes)


def _switch(**values: bool) -> Callable[[Rig], None]:
    def inject(rig: Rig) -> None:
        for name, value in values.items():
            setattr(rig.switches, name, value)

    return inject


def _jump(seconds: float) -> Callable[[Rig], None]:
    def inject(rig: Rig) -> None:
        rig.ros += seconds

    return inject


def _coarse_clock(rig: Rig) -> None:
    """It stands for four periods and makes up for them in the fifth."""
    period = rig.execution.settings.mode.period
    count = itertools.count(1)

    def each(rig: Rig) -> None:
        rig.ros += -period if next(count) % 5 else 4 * period

    rig.switches.each_period = each


def _parameters_under_load(rig: Rig) -> None:
    """Rates from 200 to 25 Hz and back, while the waist is always on its way as fast as the limits let it."""
    modes = [
        settings(0.005, 0.0, ensemble_decay=0.01),
        settings(0.04, 0.2, speed=0.3),
        settings(0.04, 0.08, speed=0.1, ensemble_decay=1.0),
        settings(PERIOD, 0.08),
    ]
    waist = np.arange(14) == 0
    rig.switches.chunks = lambda made, now: [replace(made, actions=made.actions + 1.5 * waist * (-1) ** made.sequence)]

    def each(rig: Rig) -> None:
        rig.execution.change(modes[int(rig.time / 0.1) % len(modes)])

    rig.switches.each_period = each


def _impossible_parameters(rig: Rig) -> None:
    for bad in ({"speed": 0.0}, {"speed": math.nan}, {"state_timeout": -1.0}, {"ensemble_decay": math.nan}):
        try:
            rig.execution.change(settings(PERIOD, **bad))
        except LightVLAError:
            continue
        raise AssertionError(f"{bad} was taken")


def _stalled_loop(rig: Rig) -> None:
    rig.step(stall=0.15)


def _stalled_policy(rig: Rig) -> None:
    """No chunk for 0.8 s, then on: less than what the last chunk still plans and the timeout together."""
    until = rig.time + 0.8

    def each(rig: Rig) -> None:
        rig.switches.policy_runs = rig.time > until

    rig.switches.each_period = each


def _new_instruction(rig: Rig) -> None:
    rig.instruction = "f" * 12
    rig.execution.set_instruction(rig.instruction)
    rig.decision.forget()


def _instruction_unheard(rig: Rig) -> None:
    """The policy goes on with the old one, in the middle of whose chunk it comes."""
    old, rig.instruction = rig.instruction, "f" * 12
    rig.execution.set_instruction(rig.instruction)
    rig.switches.chunks = lambda made, now: [replace(made, instruction_id=old)]


def _everything_late(rig: Rig) -> None:
    """As over a congested network: nothing is skewed, and everything is old."""
    rig.switches.states = lambda arm, positions, stamp: [(positions, stamp - 0.5)]
    rig.switches.frames = lambda stamp, now: [stamp - 0.5]


def _blocked_arm(rig: Rig) -> None:
    """The arm stays where it is while the policy wants it a radian away."""
    rig.switches.follows = False
    rig.switches.chunks = lambda made, now: [replace(made, actions=made.actions + 0.9 * (np.arange(14) == 0))]


STARVE = HORIZON + STARVATION + 2 * PERIOD
STARVE_TEXT = "rest of the last chunk + starvation_timeout + 1 period"
STALE = STATE_TIMEOUT + 2 * PERIOD
STALE_TEXT = "state_timeout + 1 period"
AT_ONCE = PERIOD * 1.5
ONE = "1 period"
NONE_TEXT = "rides through"
# Until the next chunk is there, and 0.5 rad at the waist's fastest.
BLOCKED = 0.8

FAULTS = (
    Fault("chunks dropped", _chunks(lambda c, n: []), "starvation", STARVE, STARVE_TEXT, False),
    Fault("chunks delayed by 0.3 s", _delayed_chunks(0.3), None, 0.0, NONE_TEXT, False),
    Fault("chunks delayed beyond their horizon", _delayed_chunks(1.2), "starvation", STARVE, STARVE_TEXT, False),
    Fault("chunks duplicated", _chunks(lambda c, n: [c, c]), None, 0.0, NONE_TEXT, False),
    Fault("chunks reordered", _reordered(), None, 0.0, NONE_TEXT, False),
    Fault("one chunk repeated for ever", _frozen_chunk(), "starvation", STARVE + 0.3, STARVE_TEXT, False),
    Fault("chunks with NaN", _spoiled(math.nan), "starvation", STARVE, STARVE_TEXT, False),
    Fault("chunks with infinity", _spoiled(math.inf), "starvation", STARVE, STARVE_TEXT, False),
    Fault("chunks with huge numbers", _spoiled(1e300), None, 0.0, "limited in the same period", False),
    Fault("chunks of a wrong shape", _chunks(_wrong_shape), "starvation", STARVE, STARVE_TEXT, False),
    Fault(
        "chunks of another contract",
        _chunks(lambda c, n: [replace(c, contract_hash="0" * 12)]),
        "starvation",
        STARVE,
        STARVE_TEXT,
        False,
    ),
    Fault(
        "chunks stamped in the future",
        _chunks(lambda c, n: [replace(c, stamp=c.stamp + 5.0)]),
        "starvation",
        STARVE,
        STARVE_TEXT,
        False,
    ),
    Fault("queue filled with chunks", _flood, None, 0.0, NONE_TEXT, False),
    Fault("joint states dropped", _states(lambda a, p, s: []), "stale input", STALE, STALE_TEXT, True),
    Fault("joint states delayed", _states(lambda a, p, s: [(p, s - 0.5)]), "stale input", AT_ONCE, ONE, True),
    Fault("joint states duplicated", _states(lambda a, p, s: [(p, s), (p, s)]), None, 0.0, NONE_TEXT, True),
    Fault("joint states reordered", _states(_reordered_states), None, 0.0, NONE_TEXT, True),
    Fault("joint states frozen, stamps too", _frozen_state(), "stale input", STALE, STALE_TEXT, True),
    Fault(
        "joint states with NaN",
        _states(lambda a, p, s: [(dict.fromkeys(p, math.nan), s)]),
        "not finite",
        AT_ONCE,
        ONE,
        True,
    ),
    Fault(
        "joint states that lack a joint",
        _states(lambda a, p, s: [({k: v for k, v in p.items() if "waist" not in k}, s)]),
        "fault: no measured position",
        AT_ONCE,
        ONE,
        True,
    ),
    Fault(
        "joint states stamped in the future",
        _states(lambda a, p, s: [(p, s + 5.0)]),
        "in the future",
        AT_ONCE,
        ONE,
        True,
    ),
    Fault(
        "joint states corrupted by 1 rad",
        _states(lambda a, p, s: [({k: v + 1.0 for k, v in p.items()}, s)]),
        "tracking error",
        AT_ONCE,
        ONE,
        True,
    ),
    Fault(
        "arm blocked, or its joint states frozen under fresh stamps",
        _blocked_arm,
        "tracking error",
        BLOCKED,
        "1 period after the limit is passed",
        False,
    ),
    Fault("camera frames dropped", _frames(lambda s, n: []), "starvation", 0.4 + STARVE, STARVE_TEXT, True),
    Fault("camera frames delayed", _frames(lambda s, n: [s - 0.5]), "starvation", 0.4 + STARVE, STARVE_TEXT, True),
    Fault("camera frames duplicated", _frames(lambda s, n: [s, s]), None, 0.0, NONE_TEXT, True),
    Fault("camera frames reordered", _frames(lambda s, n: [s, s - 0.03]), None, 0.0, NONE_TEXT, True),
    Fault("camera frames skewed", _frames(lambda s, n: [s - 0.2]), "starvation", 0.4 + STARVE, STARVE_TEXT, True),
    Fault(
        "camera frames frozen, stamps too",
        _frozen_frames(),
        "starvation",
        0.4 + STARVE,
        STARVE_TEXT,
        True,
    ),
    Fault(
        "camera frames stamped in the future",
        _frames(lambda s, n: [s + 5.0]),
        "starvation",
        0.4 + STARVE,
        STARVE_TEXT,
        True,
    ),
    Fault("every input delayed", _everything_late, "stale input", AT_ONCE, ONE, True),
    Fault("policy killed", _switch(policy_runs=False), "starvation", STARVE, STARVE_TEXT, False),
    Fault("policy stalled for 0.8 s", _stalled_policy, None, 0.0, NONE_TEXT, False),
    Fault("clock jumps ahead", _jump(5.0), "leapt ahead", AT_ONCE, ONE, True),
    Fault("clock jumps back", _jump(-5.0), "went back", AT_ONCE, ONE, True),
    Fault("clock samples dropped, one in five left", _coarse_clock, None, 0.0, NONE_TEXT, True),
    Fault("clock freezes", _switch(clock_runs=False), "stood still", STALE, STALE_TEXT, True),
    Fault("parameters changed under load", _parameters_under_load, None, 0.0, NONE_TEXT, False),
    Fault("impossible parameters", _impossible_parameters, None, 0.0, "refused", False),
    Fault("instruction changed", _new_instruction, None, 0.0, NONE_TEXT, False),
    Fault(
        "instruction changed in the middle of a chunk, unheard by the policy",
        _instruction_unheard,
        "starvation",
        CONTRACT.period + STARVATION + 2 * PERIOD,
        "rest of the step + starvation_timeout + 1 period",
        False,
    ),
    Fault("control loop stalled for 0.15 s", _stalled_loop, None, 0.0, NONE_TEXT, False),
    Fault(
        "operator's heartbeat silent",
        _switch(heartbeat=False),
        "no heartbeat",
        HEARTBEAT_TIMEOUT + 2 * PERIOD,
        "heartbeat_timeout + 1 period",
        False,
    ),
    Fault(
        "emergency stop",
        lambda rig: rig.execution.set_emergency_stop(True, rig.now),
        "emergency stop",
        AT_ONCE,
        "at once",
        False,
    ),
)

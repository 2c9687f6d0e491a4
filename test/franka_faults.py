"""Faults of an arm that is commanded by velocities: the executor under a simulated clock, what disturbs it, what holds.

The same for an arm that is commanded by positions is in fault_rig.py, faults.py and fault_checks.py.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import numpy as np
from executor_fixtures import INSTRUCTION, chunk, settings
from numpy.typing import NDArray
from test_robot_franka import FACTS, ROBOT, STATES, contract

from lightvla_core.errors import LightVLAError
from lightvla_ros.chunk_schedule import ChunkError
from lightvla_ros.execution import Execution, limits_for
from lightvla_ros.robots.franka import EEF, description_for
from lightvla_ros.robots.franka_arm import ArmWay, JointDeltas, PoseTargets, Twists
from lightvla_ros.robots.pose_target import in_base
from lightvla_ros.robots.rotations import POSE_VALUES, quaternion, rotation_of
from lightvla_ros.robots.rotations import Pose as Place
from lightvla_ros.safety import Now

CONTRACT = contract()
ROBOT_OF_CONTRACT = description_for(CONTRACT, ROBOT)
LIMITS = limits_for(CONTRACT, ROBOT_OF_CONTRACT)
JOINTS = tuple(c for c in ROBOT.select(ROBOT.spaces["joint_position"]) if c.gripper is None)
SCALES = np.array([0.05] * 3 + [0.5] * 3)
EPOCH, PERIOD, HEARTBEAT_TIMEOUT = 1_795_000_000.0, 0.05, 0.3
Vector = NDArray[np.float64]
Measured = Mapping[str, float]
Way = Literal["twist", "pose", "joint_trajectory"]
# What is measured of the arm, a pose or joints, by the source that a way of commanding it reads.
GOOD: dict[str, Measured] = {"end_effector": STATES["end_effector"], "arm": {c.state_joint: c.start for c in JOINTS}}
# More speed than is allowed, now along and now against each axis, so that the workspace's edge is never reached.
WISH = np.array([1.0, -1.0, 0.4, 0.0, 0.9, -0.9, -1.0])


@dataclass
class Switches:
    """What a fault may turn; as built, nothing is wrong. state: of the arm; late: of its stamp, s"""

    state: Callable[[Measured], Measured | None] = lambda state: state
    late: float = 0.0
    fingers: bool = True
    wish: Callable[[Vector], Vector] = lambda wish: wish
    policy_runs: bool = True
    clock_runs: bool = True
    heartbeat: bool = True
    follows: bool = True


@dataclass
class Rig:
    """Time in control periods; an arm that follows its commands."""

    way_name: Way = "twist"
    require_heartbeat: bool = False
    time: float = 0.0
    ros: float = EPOCH
    sequence: int = 0
    switches: Switches = field(default_factory=Switches)
    sent: list[Vector | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        timeout = HEARTBEAT_TIMEOUT if self.require_heartbeat else None
        self.way = _way(self.way_name)
        self.measured: Measured = dict(GOOD[self.way.source])
        # As the adapter does: the state behind a velocity is the one that its way reads.
        channels = (replace(c, arm=self.way.source) if c.name in EEF else c for c in ROBOT_OF_CONTRACT.channels)
        described = replace(ROBOT_OF_CONTRACT, channels=tuple(channels))
        self.execution = Execution(CONTRACT, described, settings(PERIOD, heartbeat_timeout=timeout), self._measure)
        self.execution.set_instruction(INSTRUCTION)

    @property
    def now(self) -> Now:
        return Now(self.ros, self.time)

    def run(self, periods: int) -> Rig:
        for _ in range(periods):
            self.step()
        return self

    def step(self, stall: float = 0.0) -> None:
        self.time += PERIOD + stall
        if self.switches.clock_runs:
            self.ros += PERIOD + stall
        self._feed()
        self._think()
        command = self.execution.run_period(self.now).command
        self.sent.append(command)
        if command is not None:
            self._follow(self.message(command))

    def arm(self) -> Rig:
        self.run(1)
        self.execution.arm(self.now)
        self.way.reset()
        return self.run(10)

    def message(self, command: Vector) -> Any:
        """What the arm is sent for it, whatever is measured now."""
        holding = self.execution.state.startswith("stopped")
        return self.way.message(command[:6] * SCALES, self.execution.states, self.now, PERIOD, holding)

    def _measure(self, states: Mapping[str, Mapping[str, float]]) -> Vector:
        """As the adapter does: a velocity counts from standstill, and only where there is a pose that follows."""
        self.way.check(states, PERIOD)
        return np.array([0.0] * 6 + [1.0])

    def _feed(self) -> None:
        if self.switches.fingers:
            self.execution.feed_state("fingers", STATES["fingers"], self.ros, self.time)
        state = self.switches.state(self.measured)
        if state is not None:
            self.execution.feed_state(self.way.source, state, self.ros - self.switches.late, self.time)
        if self.switches.heartbeat:
            self.execution.feed_heartbeat(self.time)

    def _think(self) -> None:
        if not self.switches.policy_runs:
            return
        self.sequence += 1
        wish = self.switches.wish(WISH * (-1) ** (self.sequence // 10))
        with contextlib.suppress(ChunkError):
            self.execution.offer(chunk(CONTRACT, wish, self.ros, self.sequence), self.now)

    def _follow(self, message: Any) -> None:
        if not self.switches.follows or message is None:
            return
        if self.way_name == "joint_trajectory":
            self.measured = dict(zip(message.joint_names, message.points[0].positions, strict=True))
            return
        if self.way_name == "pose":
            p, q = message.pose.position, message.pose.orientation
            self.measured = dict(zip(POSE_VALUES, (p.x, p.y, p.z, q.x, q.y, q.z, q.w), strict=True))
            return
        before = Place.from_values(self.measured)
        sent = np.array([getattr(p, k) for p in (message.twist.linear, message.twist.angular) for k in "xyz"])
        step = PERIOD * in_base(sent, CONTRACT.end_effector, before.rotation)
        turned = quaternion(rotation_of(step[3:]) @ before.rotation)
        self.measured = dict(zip(POSE_VALUES, (*(before.position + step[:3]), *turned), strict=True))


def _way(name: Way) -> ArmWay:
    facts, meaning = FACTS, CONTRACT.end_effector
    if name == "joint_trajectory":
        return JointDeltas(facts, meaning, JOINTS)
    return Twists(facts, meaning) if name == "twist" else PoseTargets(facts, meaning)


@dataclass(frozen=True)
class FrankaFault:
    """inject: turns the switches (or acts) at the onset; reason: of the stop, None where it is ridden through

    periods: from the onset to the detection, and bound_text the same in words; way: how the arm is commanded
    """

    name: str
    inject: Callable[[Rig], None]
    reason: str | None
    periods: int
    bound_text: str
    way: Way = "twist"


def _switch(**values: Any) -> Callable[[Rig], None]:
    return lambda rig: [setattr(rig.switches, name, value) for name, value in values.items()] and None


def _state(**values: float) -> Callable[[Rig], None]:
    return _switch(state=lambda state: {**state, **values})


def _without(name: str) -> Callable[[Rig], None]:
    return _switch(state=lambda state: {k: v for k, v in state.items() if k != name})


def _frozen(rig: Rig) -> None:
    began = rig.time
    seen = rig.measured

    def state(measured: Measured) -> Measured:
        rig.switches.late = rig.time - began
        return seen

    rig.switches.state = state


def _jump(seconds: float) -> Callable[[Rig], None]:
    return lambda rig: setattr(rig, "ros", rig.ros + seconds)


def _blocked(rig: Rig) -> None:
    """Pushed on in one direction, that is: to and fro, an arm that stands still would be where it is told to be."""
    rig.switches.follows = False
    rig.switches.wish = lambda wish: wish * np.sign(wish[0])


_STALE, _STALE_TEXT = 5, "state_timeout + 1 period"
_STARVE, _STARVE_TEXT = 8 + 10 + 1, "rest of the last chunk + starvation_timeout + 1 period"
_BY_JOINTS: Way = "joint_trajectory"
_BLOCKED_NAME = "arm blocked, or its state frozen under fresh stamps"
_BLOCKED, _BLOCKED_TEXT = 8, "at full speed; the slower, the later, and below some speed never"
_NAN = np.array([math.nan, *[0.0] * 6])

FAULTS = (
    FrankaFault("pose with NaN", _state(y=math.nan), "finite", 1, "1 period"),
    FrankaFault("pose with infinity", _state(qz=math.inf), "finite", 1, "1 period"),
    FrankaFault("pose without an orientation", _state(qx=0.0), "fault", 1, "1 period"),
    FrankaFault("pose that lacks a number", _without("x"), "lacks x", 1, "1 period"),
    FrankaFault("poses dropped, or unreadable", _switch(state=lambda state: None), "stale input", _STALE, _STALE_TEXT),
    FrankaFault("poses frozen, stamps too", _frozen, "stale input", _STALE, _STALE_TEXT),
    FrankaFault("poses delayed", _switch(late=0.5), "stale input", 1, "1 period"),
    FrankaFault("poses stamped in the future", _switch(late=-5.0), "in the future", 1, "1 period"),
    FrankaFault("poses wrong by 0.3 m", _state(x=0.7), "tracking error", 2, "2 periods"),
    FrankaFault("poses wrong by 0.3 m", _state(x=0.7), "tracking error", 1, "1 period", "pose"),
    FrankaFault(_BLOCKED_NAME, _blocked, "tracking error", _BLOCKED, _BLOCKED_TEXT),
    FrankaFault(_BLOCKED_NAME, _blocked, None, 0, "the target stays within max_lead of the pose", "pose"),
    FrankaFault("joint states with NaN", _state(fr3_joint2=math.nan), "finite", 1, "1 period", _BY_JOINTS),
    FrankaFault("joint states that lack a joint", _without("fr3_joint4"), "lacks", 1, "1 period", _BY_JOINTS),
    FrankaFault(
        "joint states dropped", _switch(state=lambda state: None), "stale input", _STALE, _STALE_TEXT, _BY_JOINTS
    ),
    FrankaFault("joint states wrong by 0.5 rad", _state(fr3_joint1=0.5), "tracking error", 1, "1 period", _BY_JOINTS),
    FrankaFault(
        _BLOCKED_NAME, _blocked, "tracking error", 20, "1 period after a joint is max_tracking_error behind", _BY_JOINTS
    ),
    FrankaFault("finger states dropped", _switch(fingers=False), "stale input", _STALE, _STALE_TEXT),
    FrankaFault("chunks dropped, or policy killed", _switch(policy_runs=False), "starvation", _STARVE, _STARVE_TEXT),
    FrankaFault("chunks with NaN", _switch(wish=lambda wish: wish + _NAN), "starvation", _STARVE, _STARVE_TEXT),
    FrankaFault("chunks with huge numbers", _switch(wish=lambda wish: 1e300 * wish), None, 0, "limited at once"),
    FrankaFault("clock jumps ahead", _jump(5.0), "leapt ahead", 1, "1 period"),
    FrankaFault("clock jumps back", _jump(-5.0), "went back", 1, "1 period"),
    FrankaFault("clock freezes", _switch(clock_runs=False), "stood still", _STALE, _STALE_TEXT),
    FrankaFault("control loop stalled for 0.15 s", lambda rig: rig.step(stall=0.15), None, 0, "rides through"),
    FrankaFault(
        "operator's heartbeat silent", _switch(heartbeat=False), "no heartbeat", 7, "heartbeat_timeout + 1 period"
    ),
    FrankaFault(
        "emergency stop",
        lambda rig: rig.execution.set_emergency_stop(True, rig.now),
        "emergency stop",
        1,
        "at once",
    ),
)


def _rig(fault: FrankaFault) -> Rig:
    return Rig(fault.way, require_heartbeat="heartbeat" in fault.name)


def _disturbed(fault: FrankaFault) -> tuple[Rig, int]:
    """Armed, under the fault until its bound and three periods more; and how many commands were sent before it."""
    rig = _rig(fault).arm()
    before = len(rig.sent)
    fault.inject(rig)
    return rig.run(fault.periods + 3), before


def nothing_is_commanded_unless_armed(fault: FrankaFault) -> None:
    rig = _rig(fault).run(3)
    fault.inject(rig)
    assert rig.run(10).sent == [None] * len(rig.sent)


def every_command_is_finite(fault: FrankaFault) -> None:
    rig, _ = _disturbed(fault)
    assert all(np.isfinite(command).all() for command in rig.sent if command is not None)


def speed_and_its_change_stay_within_their_limits(fault: FrankaFault) -> None:
    rig, _ = _disturbed(fault)
    last = np.zeros(7)
    for command in (command for command in rig.sent if command is not None):
        assert (command >= LIMITS.lower).all()
        assert (command <= LIMITS.upper).all()
        # Standstill is commanded at once.
        change = np.where(LIMITS.rates & (command == 0.0), 0.0, np.abs(command - last))
        assert (change[:6] <= LIMITS.largest_step(PERIOD)[:6] + 1e-9).all()
        last = command


def every_stop_is_standstill_until_armed_again(fault: FrankaFault) -> None:
    rig = _rig(fault).arm()
    assert np.abs(rig.sent[-1][:6]).max() > 1.0
    fault.inject(rig)
    rig.run(fault.periods)
    if fault.reason is None:
        assert rig.run(5).execution.state == "armed"
        return
    assert rig.execution.state.startswith("stopped"), "it never stopped"
    assert fault.reason in rig.execution.state
    _stands_still(rig)
    rig.switches, rig.measured = Switches(), dict(GOOD[rig.way.source])
    rig.run(5)
    assert rig.execution.state.startswith("stopped")
    rig.execution.set_emergency_stop(False, rig.now)
    rig.execution.arm(rig.now)
    rig.way.reset()
    rig.run(5)
    assert rig.execution.state == "armed"
    assert np.abs(rig.sent[-1][:6]).max() > 0.0


def _stands_still(rig: Rig) -> None:
    """The policy comes back and changes nothing: no speed, the gripper as it was, and one and the same target."""
    rig.switches.policy_runs = True
    latched, target = rig.sent[-1], rig.message(rig.sent[-1])
    for command in rig.run(10).sent[-10:]:
        assert command is not None
        assert (command[:6] == 0.0).all()
        assert command[6] == latched[6]
        message = rig.message(command)
        if rig.way_name == "joint_trajectory":
            assert message.points[0].positions == target.points[0].positions
        elif rig.way_name == "pose":
            assert message.pose == target.pose
        else:
            parts = (message.twist.linear, message.twist.angular)
            assert all((part.x, part.y, part.z) == (0.0, 0.0, 0.0) for part in parts)


# By the numbers of fault_table.
CHECKS = {
    1: nothing_is_commanded_unless_armed,
    4: every_command_is_finite,
    5: speed_and_its_change_stay_within_their_limits,
    7: every_stop_is_standstill_until_armed_again,
}


@cache
def verdict(fault: FrankaFault, guarantee: int) -> str:
    """What broke this guarantee under this fault, or '' where it held."""
    try:
        CHECKS[guarantee](fault)
    except (AssertionError, LightVLAError) as error:
        return str(error) or "broken"
    return ""

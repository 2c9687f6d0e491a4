"""What end-effector velocities mean: their frame, the workspace, and a pose target that they move. Pure; no ROS."""

from __future__ import annotations

import math

import numpy as np

from lightvla_core.contract import EndEffector
from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.description import EndEffectorFacts
from lightvla_ros.robots.rotations import Array, Pose, rotation_of, turn

# How far ahead the workspace's edge is looked for: a velocity may not cross it within this time, s.
_WORKSPACE_HORIZON = 0.2
# Of MotionWatch, s: MoveIt Servo's filter and the arm's own lag together, and how long a shortfall is remembered.
_LAG, _MEMORY = 0.15, 2.0
# MoveIt Servo's incoming_command_timeout, s: it halts when nothing came for so long.
_SERVO_TIMEOUT = 0.1


def in_base(velocity: Array, facts: EndEffector, rotation: Array) -> Array:
    """A twist (6,) in the contract's frame -> in the base frame; rotation: of the tool, (3, 3)."""
    if facts.frame == "base":
        return velocity
    return np.concatenate((rotation @ velocity[:3], rotation @ velocity[3:]))


def motion_between(start: Pose, end: Pose, facts: EndEffector) -> Array:
    """The delta (6,), m and rad in the contract's frame, that moves the tool from one pose to the other."""
    motion = np.concatenate((end.position - start.position, turn(start.rotation, end.rotation)))
    return in_base(motion, facts, start.rotation.T)


def within_workspace(velocity: Array, position: Array, facts: EndEffectorFacts) -> Array:
    """The part of a linear velocity (3,) m/s that keeps a position (3,) m in the workspace; outside, only inwards."""
    room_up = np.maximum(np.array(facts.workspace_upper) - position, 0.0) / _WORKSPACE_HORIZON
    room_down = np.maximum(position - np.array(facts.workspace_lower), 0.0) / _WORKSPACE_HORIZON
    limited: Array = np.clip(velocity, -room_down, room_up)
    return limited


class MotionWatch:
    """Whether a tool that is commanded by velocities moves as it is told, or is blocked, or pushed.

    What is commanded and not travelled adds up and is forgotten in _MEMORY: an arm that lags, or falls a little short,
    gathers little. It is too much where it exceeds max_lead and what _LAG is worth at full speed; a tool that is
    blocked at less than that / _MEMORY is never noticed.
    """

    def __init__(self, facts: EndEffectorFacts) -> None:
        self._facts = facts
        self.reset()

    def reset(self) -> None:
        self._behind = np.zeros(6)
        self._before: tuple[Array, Pose, float] | None = None

    def advance(self, twist: Array, measured: Pose, now: float) -> None:
        """twist: (6,) m/s and rad/s, base frame, commanded now (s, steady clock), at this pose."""
        if self._before is not None:
            commanded, place, since = self._before
            turned = turn(place.rotation, measured.rotation)
            travelled = np.concatenate((measured.position - place.position, turned))
            # Where periods were missed the last velocity went on, but no longer than the servo takes it for.
            expected = min(now - since, _SERVO_TIMEOUT) * commanded
            self._behind = (self._behind + expected - travelled) * math.exp((since - now) / _MEMORY)
        self._before = twist, measured, now

    def require_followed(self) -> None:
        """Raise LightVLAError where the tool has not gone where it was told to."""
        behind = (float(np.linalg.norm(self._behind[:3])), float(np.linalg.norm(self._behind[3:])))
        for distance, allowed, unit in zip(behind, _allowed(self._facts, _LAG), ("m", "rad"), strict=True):
            if distance > allowed:
                raise LightVLAError(
                    f"tracking error: the tool is {distance:.3f} {unit} from where its commands of the last seconds "
                    f"should have moved it, more than {allowed:.3f}: is it blocked, or at the end of its reach?"
                )


class PoseTarget:
    """A pose that is moved by twists and by nothing else, and that the measured pose has to follow.

    It stays within max_lead of the measured pose: a blocked arm gathers no distance.
    """

    def __init__(self, facts: EndEffectorFacts) -> None:
        self._facts = facts
        self.pose: Pose | None = None

    def reset(self) -> None:
        self.pose = None

    def start(self, measured: Pose) -> Pose:
        """Begin at the measured pose unless there is a target; returns the target, whose frame deltas refer to."""
        if self.pose is None:
            self.pose = measured
        return self.pose

    def advance(self, twist: Array, period: float, measured: Pose) -> None:
        """twist: (6,) m/s and rad/s, base frame, applied from the left, for one period (s)."""
        assert self.pose is not None
        step = period * np.concatenate((within_workspace(twist[:3], self.pose.position, self._facts), twist[3:]))
        moved = _moved(self.pose, step)
        before, after = _distance(measured, self.pose), _distance(measured, moved)
        shares = [
            _share(before[i], after[i], float(np.linalg.norm(part)), self._facts.max_lead[i])
            for i, part in enumerate((step[:3], step[3:]))
        ]
        self.pose = _moved(self.pose, step * np.repeat(shares, 3))

    def require_followed(self, measured: Pose, period: float) -> None:
        """Raise LightVLAError where the target is further ahead of the measured pose than the arm can have got."""
        if self.pose is None:
            return
        for distance, allowed, unit in zip(
            _distance(measured, self.pose), _allowed(self._facts, period), ("m", "rad"), strict=True
        ):
            if distance > allowed:
                raise LightVLAError(
                    f"tracking error: the measured pose is {distance:.3f} {unit} from the pose target, more than "
                    f"{allowed:.3f}"
                )


def _allowed(facts: EndEffectorFacts, time: float) -> tuple[float, float]:
    """The lead and what can be travelled in this time (s): m and rad. Speed limits hold for each axis."""
    linear, angular = (
        lead + math.sqrt(3.0) * speed * time for lead, speed in zip(facts.max_lead, facts.max_speed, strict=True)
    )
    return linear, angular


def _moved(pose: Pose, step: Array) -> Pose:
    return Pose(pose.position + step[:3], rotation_of(step[3:]) @ pose.rotation)


def _distance(measured: Pose, target: Pose) -> tuple[float, float]:
    """m and rad"""
    return (
        float(np.linalg.norm(target.position - measured.position)),
        float(np.linalg.norm(turn(measured.rotation, target.rotation))),
    )


def _share(before: float, after: float, travel: float, longest: float) -> float:
    """The share of a step of this length that leads no further than `longest`, or than it already was."""
    if after <= max(before, longest):
        return 1.0
    # Both distances are metrics, so that a step adds at most its own length.
    return max(0.0, longest - before) / travel

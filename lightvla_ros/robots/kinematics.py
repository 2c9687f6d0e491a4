"""From an end effector's velocity to joint velocities: kinematics of one serial arm, and limits. Pure; no ROS.

Modified Denavit-Hartenberg parameters (Craig, Introduction to Robotics) and damped least squares, whose damping grows
near singular poses only (Nakamura and Hanafusa 1986, Chiaverini et al. 1994).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.rotations import Array, Pose, rotation_of

# Below this smallest singular value the inverse is damped, up to the damping where it is 0. Both are ours.
_NEAR_SINGULAR = 0.1
_DAMPING = 0.1


@dataclass(frozen=True)
class Kinematics:
    """An arm of revolute joints and the tool on its last link.

    links: a (m), d (m) and alpha (rad) of each joint; tool: distance along the last joint's axis (m) and turn about it
    (rad)
    """

    links: tuple[tuple[float, float, float], ...]
    tool: tuple[float, float]

    def __post_init__(self) -> None:
        numbers = [number for link in (*self.links, self.tool) for number in link]
        if not self.links or not all(math.isfinite(number) for number in numbers):
            raise LightVLAError(f"kinematics: links {self.links} and tool {self.tool} should be finite numbers")

    def forward(self, joints: Array) -> Pose:
        """The tool's pose in the base frame. joints: (joints,) rad"""
        return self._frames(joints)[-1]

    def jacobian(self, joints: Array) -> Array:
        """(6, joints): the tool's velocity in the base frame, m/s and rad/s, for 1 rad/s of a joint."""
        *frames, tool = self._frames(joints)
        axes = np.array([frame.rotation[:, 2] for frame in frames])
        arms = np.array([tool.position - frame.position for frame in frames])
        return np.vstack((np.cross(axes, arms).T, axes.T))

    def _frames(self, joints: Array) -> list[Pose]:
        """Of every joint, and of the tool, in the base frame."""
        frames = [Pose(np.zeros(3), np.eye(3))]
        for (a, d, alpha), angle in zip(self.links, joints.tolist(), strict=True):
            frames.append(frames[-1].then(_link(a, d, alpha, angle)))
        distance, turn = self.tool
        tool = Pose(np.array([0.0, 0.0, distance]), rotation_of(np.array([0.0, 0.0, turn])))
        return [*frames[1:], frames[-1].then(tool)]


@dataclass(frozen=True, eq=False)
class JointLimits:
    """Each (joints,), rad and s. max_lead: largest |target - measured|"""

    names: tuple[str, ...]
    lower: Array
    upper: Array
    max_velocity: Array
    max_step: Array
    max_lead: Array


def joint_velocity(jacobian: Array, twist: Array) -> Array:
    """(joints,) rad/s that give a twist (6,), m/s and rad/s; near a singular pose as much of it as is reasonable."""
    left, values, right = np.linalg.svd(jacobian, full_matrices=False)
    shortfall = max(0.0, 1.0 - (float(values[-1]) / _NEAR_SINGULAR) ** 2)
    damped = values / (values**2 + shortfall * _DAMPING**2 + np.finfo(np.float64).tiny)
    velocity: Array = right.T @ (damped * (left.T @ twist))
    return velocity


def limited_step(velocity: Array, joints: Array, limits: JointLimits, period: float) -> Array:
    """The positions (joints,) one period (s) later: the whole velocity is scaled until every joint keeps its limits.

    So the tool keeps its direction. A joint that is outside its limits may move inwards only.
    """
    step = velocity * period
    room = np.maximum(np.where(step > 0.0, limits.upper - joints, joints - limits.lower), 0.0)
    room = np.minimum(room, np.minimum(limits.max_step, limits.max_velocity * period))
    beyond = np.abs(step) > room
    share = float(np.min(room[beyond] / np.abs(step[beyond]), initial=1.0))
    # Rounding of the sum may leave the limits by one unit in the last place.
    return np.clip(joints + share * step, np.minimum(limits.lower, joints), np.maximum(limits.upper, joints))


class JointTarget:
    """Joint positions that are moved by twists of the tool, and that the measured joints have to follow."""

    def __init__(self, kinematics: Kinematics, limits: JointLimits) -> None:
        self._kinematics, self._limits = kinematics, limits
        self.positions: Array | None = None

    def reset(self) -> None:
        self.positions = None

    def start(self, measured: Array) -> Pose:
        """Begin at the measured joints (joints,) unless there is a target; returns the target's tool pose."""
        if self.positions is None:
            self.positions = measured
        return self._kinematics.forward(self.positions)

    def advance(self, twist: Array, period: float) -> None:
        """twist: (6,) m/s and rad/s, base frame, about the tool's own origin, for one period (s)."""
        assert self.positions is not None
        velocity = joint_velocity(self._kinematics.jacobian(self.positions), twist)
        self.positions = limited_step(velocity, self.positions, self._limits, period)

    def require_followed(self, measured: Array) -> None:
        """Raise LightVLAError where a joint is further from its target than it may be."""
        if self.positions is None:
            return
        lead = np.abs(self.positions - measured)
        for i in np.flatnonzero(lead > self._limits.max_lead):
            raise LightVLAError(
                f"tracking error: {self._limits.names[i]} is commanded to {self.positions[i]:.4f} and measured at "
                f"{measured[i]:.4f}, more than {self._limits.max_lead[i]:g} apart"
            )


def _link(a: float, d: float, alpha: float, angle: float) -> Pose:
    """Turn by alpha about x, shift by a along it, turn by the joint's angle about the new z, shift by d along it."""
    ca, sa, c, s = math.cos(alpha), math.sin(alpha), math.cos(angle), math.sin(angle)
    rotation = np.array([[c, -s, 0.0], [s * ca, c * ca, -sa], [s * sa, c * sa, ca]])
    return Pose(np.array([a, -d * sa, d * ca]), rotation)

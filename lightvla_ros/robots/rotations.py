"""Rotations and poses as arrays: quaternions (x, y, z, w), rotation matrices and axis-angle vectors. Pure; no ROS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError

Array = NDArray[np.float64]

# Of the published conversion: below this sine of the half angle there is no axis.
_NO_ANGLE = 1e-12
_UNIT_TOLERANCE = 1e-2
POSE_VALUES = ("x", "y", "z", "qx", "qy", "qz", "qw")


@dataclass(frozen=True, eq=False)
class Pose:
    """position: (3,) m; rotation: (3, 3) matrix, from the pose's own frame to the one it is given in"""

    position: Array
    rotation: Array

    @classmethod
    def from_values(cls, values: Mapping[str, float]) -> Pose:
        """Of x, y, z (m) and qx, qy, qz, qw. Raises LightVLAError for what is not finite, or no quaternion."""
        numbers = np.array([values[name] for name in POSE_VALUES])
        if not np.isfinite(numbers).all():
            broken = ", ".join(f"{name} {values[name]}" for name in POSE_VALUES if not math.isfinite(values[name]))
            raise LightVLAError(f"a pose holds numbers that are not finite: {broken}")
        return cls(numbers[:3], matrix(numbers[3:]))

    def then(self, inner: Pose) -> Pose:
        """The pose of `inner`, which is given in this pose's frame, in this pose's own reference frame."""
        return Pose(self.position + self.rotation @ inner.position, self.rotation @ inner.rotation)


def axis_angle(quaternion: Array) -> Array:
    """(x, y, z, w) -> (3,) rad, of length 0..2 pi: as robosuite and so LIBERO's recordings have it.

    The quaternion's sign is kept: q and -q give axis-angles of one rotation with lengths that sum to 2 pi.
    """
    x, y, z, w = unit(quaternion)
    w = min(1.0, max(-1.0, w))
    sine = math.sqrt(1.0 - w * w)
    if sine < _NO_ANGLE:
        return np.zeros(3)
    return np.array([x, y, z]) * 2.0 * math.acos(w) / sine


def unit(quaternion: Array) -> Array:
    """The quaternion at length 1; raises LightVLAError where it is far from that, as an unset (0, 0, 0, 0) is."""
    length = float(np.linalg.norm(quaternion))
    if not abs(length - 1.0) <= _UNIT_TOLERANCE:
        raise LightVLAError(f"a quaternion (x, y, z, w) has length {length:.3g}, expected 1; is the pose set?")
    return quaternion / length


def matrix(quaternion: Array) -> Array:
    """(x, y, z, w) -> (3, 3)"""
    x, y, z, w = unit(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion(rotation: Array) -> Array:
    """(3, 3) -> (x, y, z, w) with w >= 0"""
    # Of the four squares, the largest is divided by: none of the others may be near zero.
    m = rotation
    squares = np.array([1 + m[0, 0] - m[1, 1] - m[2, 2], 1 - m[0, 0] + m[1, 1] - m[2, 2],
                        1 - m[0, 0] - m[1, 1] + m[2, 2], 1 + m[0, 0] + m[1, 1] + m[2, 2]])  # fmt: skip
    largest = int(np.argmax(squares))
    product = np.array(
        [
            [squares[0], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[2, 1] - m[1, 2]],
            [m[0, 1] + m[1, 0], squares[1], m[1, 2] + m[2, 1], m[0, 2] - m[2, 0]],
            [m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], squares[2], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], squares[3]],
        ]
    )[largest]
    found: Array = product / np.linalg.norm(product)
    return found if found[3] >= 0 else -found


def continuous_quaternion(rotation: Array) -> Array:
    """(3, 3) -> (x, y, z, w) with the sign that Eigen gives it, and so the driver's own poses.

    w is positive where the trace is, else the largest of x, y, z: around a half turn, which is how a gripper points
    down, the sign does not flip with every small motion, and with it the axis-angle by 2 pi.
    """
    found, diagonal = quaternion(rotation), np.diag(rotation)
    if diagonal.sum() > 0 or found[int(np.argmax(diagonal))] >= 0:
        return found
    return -found


def rotation_of(vector: Array) -> Array:
    """Axis-angle (3,) rad -> (3, 3)"""
    angle = float(np.linalg.norm(vector))
    half = 0.5 * angle
    # sin(x) / x is 1 where x is 0.
    share = 0.5 * float(np.sinc(half / math.pi))
    return matrix(np.array([*(vector * share), math.cos(half)]))


def turn(start: Array, end: Array) -> Array:
    """The axis-angle (3,) rad, of length 0..pi, that turns rotation start into end when applied from the left."""
    return axis_angle(quaternion(end @ start.T))


def between(start: Pose, end: Pose, share: float) -> Pose:
    """The pose at this share of the way (0..1): straight on, at one speed about one axis."""
    position = start.position + share * (end.position - start.position)
    return Pose(position, rotation_of(share * turn(start.rotation, end.rotation)) @ start.rotation)


def shortened(vector: Array, longest: float) -> Array:
    """The vector, no longer than `longest`."""
    length = float(np.linalg.norm(vector))
    return vector if length <= longest else vector * (longest / length)

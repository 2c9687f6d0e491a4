"""The standard messages that command an arm, from numbers. What the numbers are is each robot's own module's.

The last gate before the wire: nothing here is built from a number that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import PoseStamped, TwistStamped
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.rotations import Array, Pose, quaternion
from lightvla_ros.safety import Now


def require_finite(values: Iterable[float], what: str) -> None:
    """Raise LightVLAError where one of these numbers is not finite."""
    if not all(math.isfinite(value) for value in values):
        raise LightVLAError(f"{what} holds a number that is not finite, so it is not sent")


class JointGoal:
    """Joint trajectories of one point. The same message every time, filled anew: building one costs ten times as much,
    in every control period."""

    def __init__(self) -> None:
        # Stamp 0 starts now, and positions alone leave the velocity to the controller's interpolation.
        self._point = JointTrajectoryPoint()
        self._message = JointTrajectory(points=[self._point])
        self._made_for: tuple[Sequence[str], float] = ((), 0.0)

    def message(self, names: Sequence[str], positions: Sequence[float], period: float) -> Any:
        """positions, rad, of the joints of these names, reached within the period (s) from when the message arrives.

        The message holds until the next call.
        """
        require_finite(positions, "a joint trajectory")
        if (names, period) != self._made_for:
            self._made_for = names, period
            seconds, nanoseconds = divmod(round(period * 1e9), 1_000_000_000)
            self._point.time_from_start = Duration(sec=seconds, nanosec=nanoseconds)
            self._message.joint_names = list(names)
        self._point.positions = positions
        return self._message


def twist_stamped(twist: Array, frame: str, now: Now) -> Any:
    """twist: (6,) m/s and rad/s, in the frame"""
    require_finite(twist.tolist(), "a twist")
    message = TwistStamped()
    _stamp(message, frame, now)
    for part, values in ((message.twist.linear, twist[:3]), (message.twist.angular, twist[3:])):
        part.x, part.y, part.z = values.tolist()
    return message


def pose_stamped(pose: Pose, frame: str, now: Now) -> Any:
    """pose: in the frame"""
    turned = quaternion(pose.rotation)
    require_finite(np.concatenate((pose.position, turned)).tolist(), "a pose target")
    message = PoseStamped()
    _stamp(message, frame, now)
    position, orientation = message.pose.position, message.pose.orientation
    position.x, position.y, position.z = pose.position.tolist()
    orientation.x, orientation.y, orientation.z, orientation.w = turned.tolist()
    return message


def _stamp(message: Any, frame: str, now: Now) -> None:
    seconds = math.floor(now.ros)
    message.header.frame_id = frame
    message.header.stamp.sec, message.header.stamp.nanosec = seconds, int((now.ros - seconds) * 1e9)

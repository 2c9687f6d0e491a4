"""A robot's states as they come in: the frame in which a pose counts, and the sign of its quaternion."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here")

from geometry_msgs.msg import PoseStamped
from rclpy.serialization import serialize_message

from lightvla_core.errors import LightVLAError
from lightvla_ros.inbox import RawMessage
from lightvla_ros.robots.description_file import load_robot
from lightvla_ros.robots.rotations import Pose, axis_angle, matrix, unit
from lightvla_ros.robots.state_inbox import FramedPose, LookedUpPose
from lightvla_ros.robots.transforms import StampedPose

SOURCE = next(source for source in load_robot("franka", "").sources if source.name == "end_effector")


def received(frame: str) -> FramedPose:
    message = PoseStamped()
    message.header.frame_id, message.header.stamp.sec = frame, 7
    message.pose.position.x = 0.3
    return FramedPose(RawMessage(PoseStamped, serialize_message(message), received=3.0), SOURCE)


@pytest.mark.parametrize("frame", ["fr3_link0", "/fr3_link0", "base"])
def test_a_pose_in_the_base_frame_is_taken(frame: str) -> None:
    pose = received(frame)
    assert (pose.stamp, pose.received, pose.decode().pose.position.x) == (7.0, 3.0, 0.3)


@pytest.mark.parametrize("frame", ["", "fr3_hand_tcp", "fr3_link8"])
def test_a_pose_in_another_frame_is_refused(frame: str) -> None:
    with pytest.raises(LightVLAError, match=f"given in the frame '{frame}', expected fr3_link0 or base"):
        received(frame).decode()


@pytest.mark.parametrize("axis", range(3))
def test_a_pose_from_tf_turns_by_no_full_circle_where_the_gripper_points_down(axis: int) -> None:
    turned = []
    for w in (0.002, -0.002):
        quaternion = unit(np.array([*np.eye(3)[axis], w]))
        pose = StampedPose(Pose(np.zeros(3), matrix(quaternion)), stamp=7.0)
        orientation = LookedUpPose(pose, "fr3_link0", received=3.0).decode().pose.orientation
        found = np.array([orientation.x, orientation.y, orientation.z, orientation.w])
        np.testing.assert_allclose(found, quaternion, atol=1e-12)
        turned.append(axis_angle(found))
    np.testing.assert_allclose(*turned, atol=0.01)

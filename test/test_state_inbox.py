"""A robot's states as they come in: a pose counts only in the frame in which it is expected."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here")

from geometry_msgs.msg import PoseStamped
from rclpy.serialization import serialize_message

from lightvla_core.errors import LightVLAError
from lightvla_ros.inbox import RawMessage
from lightvla_ros.robots.state_inbox import FramedPose


def received(frame: str) -> FramedPose:
    message = PoseStamped()
    message.header.frame_id, message.header.stamp.sec = frame, 7
    message.pose.position.x = 0.3
    return FramedPose(RawMessage(PoseStamped, serialize_message(message), received=3.0), "fr3_link0")


@pytest.mark.parametrize("frame", ["fr3_link0", "/fr3_link0"])
def test_a_pose_in_the_base_frame_is_taken(frame: str) -> None:
    pose = received(frame)
    assert (pose.stamp, pose.received, pose.decode().pose.position.x) == (7.0, 3.0, 0.3)


@pytest.mark.parametrize("frame", ["", "base", "fr3_link8"])
def test_a_pose_in_another_frame_is_refused(frame: str) -> None:
    with pytest.raises(LightVLAError, match=f"given in the frame '{frame}', expected fr3_link0"):
        received(frame).decode()

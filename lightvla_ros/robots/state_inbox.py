"""A robot's state topics into an inbox: whatever kind they are, they come out as joint states or stamped poses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from geometry_msgs.msg import PoseStamped
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState

from lightvla_core.errors import LightVLAError
from lightvla_ros.inbox import Inbox, RawMessage
from lightvla_ros.lifecycle import SENSOR_QOS
from lightvla_ros.robots.description import StateSource
from lightvla_ros.robots.rotations import continuous_quaternion
from lightvla_ros.robots.transforms import StampedPose, TransformTree

# tf2's own: many nodes publish on one topic, each a part of the tree.
_TF_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
_TF_STATIC_QOS = QoSProfile(
    depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


class StateMessage(Protocol):
    """stamp: s, ROS clock; received: s, steady clock; decode: to a JointState or a PoseStamped"""

    @property
    def stamp(self) -> float: ...
    @property
    def received(self) -> float: ...
    def decode(self) -> Any: ...


@dataclass(frozen=True)
class LookedUpPose:
    """A pose from tf, as if a driver had published it. received: of the transform that completed it, s."""

    pose: StampedPose
    base: str
    received: float

    @property
    def stamp(self) -> float:
        return self.pose.stamp

    def decode(self) -> Any:
        message = PoseStamped()
        message.header.frame_id = self.base
        position, orientation = message.pose.position, message.pose.orientation
        position.x, position.y, position.z = self.pose.pose.position.tolist()
        orientation.x, orientation.y, orientation.z, orientation.w = continuous_quaternion(
            self.pose.pose.rotation
        ).tolist()
        return message


@dataclass(frozen=True)
class FramedPose:
    """A driver's PoseStamped that counts only in the frame in which it is expected."""

    raw: RawMessage
    source: StateSource

    @property
    def stamp(self) -> float:
        return self.raw.stamp

    @property
    def received(self) -> float:
        return self.raw.received

    def decode(self) -> Any:
        """Raises LightVLAError for a pose in another frame."""
        message = self.raw.decode()
        self.source.require_base(message.header.frame_id, "the pose")
        return message


def subscribe_state(inbox: Inbox, source: StateSource, callback: Callable[[StateMessage], None]) -> None:
    """Call back, on the inbox's thread or the poller's, with every state. Raises LightVLAError without tf2_msgs."""
    if source.kind == "tf":
        _subscribe_transforms(inbox, source, callback)
    elif source.kind == "pose":
        inbox.subscribe(PoseStamped, source.topic, lambda raw: callback(FramedPose(raw, source)), SENSOR_QOS)
    else:
        inbox.subscribe(JointState, source.topic, callback, SENSOR_QOS)


def _subscribe_transforms(inbox: Inbox, source: StateSource, callback: Callable[[StateMessage], None]) -> None:
    try:
        from tf2_msgs.msg import TFMessage
    except ImportError:
        raise LightVLAError("pose_source tf needs the package tf2_msgs, which is not installed here") from None
    tree = TransformTree()

    def on_transforms(raw: RawMessage, static: bool) -> None:
        try:
            tree.put_stamped(raw.decode().transforms, static)
            pose = tree.lookup(source.base, source.tip)
        except LightVLAError:
            # Bytes that are no message count as none came. And until the chain is whole there is no state, and whoever
            # waits for one says so.
            return
        if not static:
            callback(LookedUpPose(pose, source.base, raw.received))

    inbox.subscribe(TFMessage, "/tf", lambda raw: on_transforms(raw, False), _TF_QOS)
    inbox.subscribe(TFMessage, "/tf_static", lambda raw: on_transforms(raw, True), _TF_STATIC_QOS)

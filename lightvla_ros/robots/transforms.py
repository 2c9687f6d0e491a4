"""A chain of transforms from one frame to another, from what /tf and /tf_static carry. Pure; tf2 is not needed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.rotations import POSE_VALUES, Pose

# Frames that are kept; anybody on the network can send more.
_MOST_FRAMES = 10_000
# A transform that is older than the one before by more than this is of a clock that jumped back, s.
_REORDERED = 0.5


@dataclass(frozen=True, eq=False)
class Link:
    """One transform: the pose of a frame in its parent. stamp: s, infinite where it is static."""

    parent: str
    pose: Pose
    stamp: float


@dataclass(frozen=True, eq=False)
class StampedPose:
    """stamp: of the oldest moving link of the chain, s"""

    pose: Pose
    stamp: float


class TransformTree:
    """The newest transform of every frame. Only frames below each other are looked up: base to tool of one arm."""

    def __init__(self) -> None:
        self._links: dict[str, Link] = {}

    def put(self, child: str, link: Link) -> None:
        """Keep a transform, unless a slightly later one is there: messages change places, and clocks jump back."""
        known = self._links.get(child)
        if known is None and len(self._links) >= _MOST_FRAMES:
            return
        if known is None or not 0.0 < known.stamp - link.stamp < _REORDERED:
            self._links[child] = link

    def put_stamped(self, transforms: Iterable[Any], static: bool) -> None:
        """geometry_msgs/TransformStamped, of one message; one that is no transform counts as not there."""
        for item in transforms:
            stamp = math.inf if static else item.header.stamp.sec + item.header.stamp.nanosec * 1e-9
            t, q = item.transform.translation, item.transform.rotation
            try:
                pose = Pose.from_values(dict(zip(POSE_VALUES, (t.x, t.y, t.z, q.x, q.y, q.z, q.w), strict=True)))
            except LightVLAError:
                continue
            self.put(item.child_frame_id.lstrip("/"), Link(item.header.frame_id.lstrip("/"), pose, stamp))

    def lookup(self, base: str, tip: str) -> StampedPose:
        """The pose of `tip` in `base`. Raises LightVLAError where no chain connects them yet."""
        pose, stamp, frame = Pose(np.zeros(3), np.eye(3)), math.inf, tip
        for _ in range(len(self._links) + 1):
            if frame == base:
                return StampedPose(pose, stamp)
            if frame not in self._links:
                break
            link = self._links[frame]
            pose, stamp, frame = link.pose.then(pose), min(stamp, link.stamp), link.parent
        raise LightVLAError(f"tf has no chain from {base} down to {tip}; it ends at {frame}")

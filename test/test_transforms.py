"""A chain of transforms, as /tf and /tf_static carry it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.rotations import Pose, rotation_of
from lightvla_ros.robots.transforms import Link, TransformTree

QUARTER = rotation_of(np.array([0.0, 0.0, math.pi / 2]))


def link(parent: str, x: float, stamp: float, rotation: np.ndarray = QUARTER) -> Link:
    return Link(parent, Pose(np.array([x, 0.0, 0.0]), rotation), stamp)


def test_chain_multiplies_and_has_the_stamp_of_its_oldest_moving_link() -> None:
    tree = TransformTree()
    tree.put("hand", link("link1", 2.0, math.inf))
    tree.put("link1", link("link0", 1.0, 5.0))
    tree.put("tip", link("hand", 1.0, 4.0))
    found = tree.lookup("link0", "tip")
    np.testing.assert_allclose(found.pose.position, [0.0, 2.0, 0.0], atol=1e-12)
    assert found.stamp == 4.0


def test_broken_chain_names_where_it_ends() -> None:
    tree = TransformTree()
    tree.put("tip", link("hand", 1.0, 4.0))
    with pytest.raises(LightVLAError, match="no chain from link0 down to tip; it ends at hand"):
        tree.lookup("link0", "tip")


def test_a_loop_ends() -> None:
    tree = TransformTree()
    tree.put("a", link("b", 1.0, 1.0))
    tree.put("b", link("a", 1.0, 1.0))
    with pytest.raises(LightVLAError, match="no chain"):
        tree.lookup("base", "a")


def test_reordered_messages_lose_and_a_clock_that_jumped_back_wins() -> None:
    tree = TransformTree()
    tree.put("tip", link("base", 1.0, 10.0))
    tree.put("tip", link("base", 2.0, 9.9))
    assert tree.lookup("base", "tip").pose.position[0] == 1.0
    tree.put("tip", link("base", 3.0, 1.0))
    assert tree.lookup("base", "tip").pose.position[0] == 3.0


def test_a_bad_transform_drops_only_itself() -> None:
    messages = pytest.importorskip("geometry_msgs.msg", reason="no ROS 2 here")

    def transform(child: str, x: float = 1.0, w: float = 1.0) -> Any:
        message = messages.TransformStamped(child_frame_id=child)
        message.header.frame_id, message.header.stamp.sec = "base", 5
        message.transform.translation.x, message.transform.rotation.w = x, w
        return message

    tree = TransformTree()
    tree.put_stamped([transform("turned", w=0.0), transform("lost", x=math.nan), transform("good")], static=False)
    assert tree.lookup("base", "good").stamp == 5.0
    for frame in ("turned", "lost"):
        with pytest.raises(LightVLAError, match=f"it ends at {frame}"):
            tree.lookup("base", frame)

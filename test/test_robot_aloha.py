"""ALOHA: joint states in and commands out."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from executor_fixtures import START, joint_positions, robot
from hypothesis import given
from hypothesis import strategies as st

from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.aloha import ArmCommands, command_topics, proprioception

CHANNELS = robot().channels
ARMS = ("follower_left", "follower_right")


def test_joint_states_are_read_by_name_whatever_their_order() -> None:
    states = {arm: joint_positions() for arm in ARMS}
    np.testing.assert_allclose(proprioception(CHANNELS, states), START)
    shuffled = {arm: dict(reversed(positions.items())) for arm, positions in states.items()}
    np.testing.assert_allclose(proprioception(CHANNELS, shuffled), START)


def test_gripper_state_comes_from_the_finger_not_the_motor() -> None:
    states = {"follower_left": joint_positions(0.0), "follower_right": joint_positions(0.5)}
    measured = proprioception(CHANNELS, states)
    np.testing.assert_allclose(measured[[6, 13]], [0.0, 0.5], atol=1e-12)


def test_missing_arm_or_joint_is_missing_never_zero() -> None:
    with pytest.raises(LightVLAError, match="no joint state of follower_right has arrived"):
        proprioception(CHANNELS, {"follower_left": joint_positions()})
    crippled = {k: v for k, v in joint_positions().items() if k != "elbow"}
    with pytest.raises(LightVLAError, match="follower_left lacks elbow; it has right_finger"):
        proprioception(CHANNELS, {"follower_left": crippled, "follower_right": joint_positions()})


@given(order=st.permutations(range(14)))
def test_commands_do_not_depend_on_the_order_of_the_contract(order: list[int]) -> None:
    action = START.copy()
    action[6] = 0.0
    permuted = ArmCommands([CHANNELS[i] for i in order]).of(action[order])
    by_arm = {c.arm: dict(zip(c.joints, c.positions, strict=True)) for c in permuted}
    assert by_arm["follower_left"] == pytest.approx(by_arm["follower_right"])
    assert by_arm["follower_left"]["shoulder"] == pytest.approx(-0.96)
    grippers = {c.arm: c.gripper for c in permuted}
    assert grippers == {"follower_left": pytest.approx(-0.6213), "follower_right": pytest.approx(1.4910)}


def test_action_of_another_width_is_refused() -> None:
    with pytest.raises(LightVLAError, match=r"shape \(13,\), expected \(14,\)"):
        ArmCommands(CHANNELS).of(START[:13])


def test_trajectory_commands_are_one_point_reached_within_the_period() -> None:
    topics = command_topics(ARMS, "joint_trajectory", 0.04)
    left = ArmCommands(CHANNELS).of(START)[0]
    messages: dict[str, Any] = {t.topic: t.build(left) for t in topics if t.arm == "follower_left"}
    arm = messages["follower_left/arm_controller/joint_trajectory"]
    gripper = messages["follower_left/gripper_controller/joint_trajectory"]
    assert list(arm.joint_names) == ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"]
    np.testing.assert_allclose(arm.points[0].positions, START[:6])
    assert (arm.header.stamp.sec, arm.points[0].time_from_start.nanosec) == (0, 40_000_000)
    assert (list(gripper.joint_names), list(gripper.points[0].positions)) == (["gripper"], [pytest.approx(1.4910)])


def test_interbotix_without_its_messages_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "interbotix_xs_msgs.msg", None)
    with pytest.raises(LightVLAError, match="needs the package interbotix_xs_msgs"):
        command_topics(ARMS, "interbotix", 0.04)

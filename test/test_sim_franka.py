"""The simulated FR3: twists, pose targets and joint goals move its tool as they say, and end when nothing comes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="the simulated robot needs mujoco")

from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.rotations import quaternion, rotation_of, turn
from lightvla_ros.sim.franka import ARM_JOINTS, START_POSE, SimulatedFranka

STEPS = 10  # of 2 ms: commands come at 50 Hz


@pytest.fixture
def franka() -> SimulatedFranka:
    return SimulatedFranka()


def test_a_twist_moves_the_tool_while_it_comes_and_no_longer(franka: SimulatedFranka) -> None:
    before, _ = franka.tool_pose()
    for _ in range(25):
        franka.command_twist([0.0, 0.1, 0.0, 0.0, 0.0, 0.0])
        franka.step(STEPS)
    moved = franka.tool_pose()[0] - before
    np.testing.assert_allclose(moved, [0.0, 0.05, 0.0], atol=0.01)
    franka.step(500)
    standing, _ = franka.tool_pose()
    franka.step(250)
    np.testing.assert_allclose(franka.tool_pose()[0], standing, atol=1e-3)


def test_a_pose_target_is_reached_with_its_orientation(franka: SimulatedFranka) -> None:
    position, _ = franka.tool_pose()
    goal = position + np.array([0.03, -0.05, 0.02])
    rotation = rotation_of(np.array([0.0, 0.0, 0.2])) @ franka.tool_rotation()
    for _ in range(75):
        franka.command_pose(goal.tolist(), quaternion(rotation).tolist())
        franka.step(STEPS)
    np.testing.assert_allclose(franka.tool_pose()[0], goal, atol=0.005)
    assert np.linalg.norm(turn(franka.tool_rotation(), rotation)) < 0.02


def test_a_joint_goal_takes_the_arm_from_a_pose_target(franka: SimulatedFranka) -> None:
    position, orientation = franka.tool_pose()
    franka.command_pose((position + np.array([0.1, 0.0, 0.0])).tolist(), orientation.tolist())
    franka.command_joints(ARM_JOINTS, START_POSE)
    franka.step(250)
    np.testing.assert_allclose(franka.tool_pose()[0], position, atol=2e-3)


@pytest.mark.parametrize("orientation", [[0.0, 0.0, 0.0, 0.0], [float("nan"), 0.0, 0.0, 1.0]])
def test_a_target_that_is_no_pose_is_refused(franka: SimulatedFranka, orientation: list[float]) -> None:
    with pytest.raises(LightVLAError, match=r"length|finite"):
        franka.command_pose([0.3, 0.0, 0.5], orientation)

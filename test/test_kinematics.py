"""The FR3's kinematics against the simulated arm and against finite differences, and the limits of joint targets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.description_file import load_robot
from lightvla_ros.robots.kinematics import JointLimits, JointTarget, Kinematics, joint_velocity, limited_step
from lightvla_ros.robots.rotations import matrix, turn

ROBOT = load_robot("franka", "")
assert ROBOT.end_effector is not None
ARM = ROBOT.end_effector.kinematics
JOINTS = ROBOT.channels[:7]
LOWER, UPPER = (np.array([getattr(c, key) for c in JOINTS]) for key in ("lower", "upper"))
LIMITS = JointLimits(
    tuple(c.name for c in JOINTS),
    LOWER,
    UPPER,
    np.array([c.max_velocity for c in JOINTS]),
    np.array([c.max_step for c in JOINTS]),
    np.full(7, 0.3),
)
READY = np.array([c.start for c in JOINTS])
PERIOD = 0.02
# At joint4 of nearly 0 the arm is stretched, and with joint6 as joint4 asks the wrist is aligned: singular poses.
STRETCHED = np.array([0.0, 0.0, 0.0, -0.1518, 0.0, 1.0, 0.0])

shares = arrays(np.float64, 7, elements=st.floats(0.0, 1.0))
twists = arrays(np.float64, 6, elements=st.floats(-1.0, 1.0))


def within(share: np.ndarray) -> np.ndarray:
    return np.clip(LOWER + share * (UPPER - LOWER), LOWER, UPPER)


@pytest.mark.parametrize("seed", range(8))
def test_forward_kinematics_is_the_simulated_arms(seed: int) -> None:
    mujoco = pytest.importorskip("mujoco")
    from lightvla_ros.sim.franka import SimulatedFranka

    sim = SimulatedFranka()
    joints = within(np.random.default_rng(seed).uniform(size=7))
    sim._data.qpos[:7] = joints
    mujoco.mj_forward(sim.model, sim._data)
    position, quaternion = sim.tool_pose()
    pose = ARM.forward(joints)
    np.testing.assert_allclose(pose.position, position, atol=1e-9)
    np.testing.assert_allclose(turn(matrix(quaternion), pose.rotation), np.zeros(3), atol=1e-7)


def test_ready_pose_is_where_frankas_tool_stands() -> None:
    pose = ARM.forward(READY)
    np.testing.assert_allclose(pose.position, [0.307, 0.0, 0.487], atol=1e-3)
    np.testing.assert_allclose(pose.rotation, np.diag([1.0, -1.0, -1.0]), atol=1e-6)


@given(share=shares)
def test_jacobian_is_the_derivative_of_the_forward_kinematics(share: np.ndarray) -> None:
    joints, small = within(share), 1e-6
    jacobian = ARM.jacobian(joints)
    for i in range(7):
        before, after = (ARM.forward(joints + side * small * np.eye(7)[i]) for side in (-1, 1))
        linear = (after.position - before.position) / (2 * small)
        angular = turn(before.rotation, after.rotation) / (2 * small)
        np.testing.assert_allclose(jacobian[:, i], [*linear, *angular], atol=1e-5)


@given(twist=twists)
def test_away_from_singular_poses_the_tool_moves_as_asked(twist: np.ndarray) -> None:
    jacobian = ARM.jacobian(READY)
    np.testing.assert_allclose(jacobian @ joint_velocity(jacobian, twist), twist, atol=1e-9)


@given(share=shares, twist=twists, stretched=st.booleans())
def test_joint_velocities_stay_bounded_near_singular_poses(
    share: np.ndarray, twist: np.ndarray, stretched: bool
) -> None:
    joints = STRETCHED if stretched else within(share)
    # The largest gain of the damped inverse, sigma / (sigma^2 + damping^2), is 1 / 0.1 at most.
    assert np.linalg.norm(joint_velocity(ARM.jacobian(joints), twist)) <= 10.0 * np.linalg.norm(twist) + 1e-9


@given(share=shares, velocity=arrays(np.float64, 7, elements=st.floats(-20.0, 20.0)))
def test_limits_scale_the_whole_velocity_and_keep_its_direction(share: np.ndarray, velocity: np.ndarray) -> None:
    joints = within(share)
    step = limited_step(velocity, joints, LIMITS, PERIOD) - joints
    length = float(np.linalg.norm(velocity))
    if length > 1e-6:
        ahead = step @ velocity / length
        np.testing.assert_allclose(step, ahead * velocity / length, atol=1e-9)
        assert -1e-12 <= ahead <= length * PERIOD + 1e-12


@given(share=shares, path=st.lists(twists, min_size=1, max_size=15), repeats=st.integers(1, 8))
def test_no_twist_breaks_a_joint_limit(share: np.ndarray, path: list[np.ndarray], repeats: int) -> None:
    target = JointTarget(ARM, LIMITS)
    target.start(within(share))
    for twist in path * repeats:
        before = target.positions
        target.advance(twist, PERIOD)
        assert before is not None
        assert target.positions is not None
        step = np.abs(target.positions - before)
        assert (step <= np.minimum(LIMITS.max_velocity * PERIOD, LIMITS.max_step) + 1e-12).all()
        assert ((target.positions >= LOWER) & (target.positions <= UPPER)).all()


def test_a_joint_outside_its_limits_may_only_come_back() -> None:
    outside = READY.copy()
    outside[0] = UPPER[0] + 0.05
    away, back = np.eye(7)[0], -np.eye(7)[0]
    np.testing.assert_array_equal(limited_step(away, outside, LIMITS, PERIOD), outside)
    assert limited_step(back, outside, LIMITS, PERIOD)[0] == pytest.approx(outside[0] - PERIOD)


def test_an_arm_that_does_not_follow_is_a_tracking_error() -> None:
    target = JointTarget(ARM, LIMITS)
    target.require_followed(READY)
    target.start(READY)
    target.require_followed(READY - 0.29)
    blocked = READY.copy()
    blocked[3] += 0.31
    with pytest.raises(
        LightVLAError, match=r"tracking error: joint4 is commanded to -2\.3562 and measured at -2\.0462"
    ):
        target.require_followed(blocked)


def test_parameters_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(LightVLAError, match="should be finite numbers"):
        Kinematics(((0.0, float("nan"), 0.0),), (0.1, 0.0))

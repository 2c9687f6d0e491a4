"""The simulated ALOHA without ROS: scene, commands, readings, reset, pictures and pacing."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mujoco", reason="the extra `sim` is not installed")

from lightvla_core.errors import LightVLAError
from lightvla_ros.sim import aloha
from lightvla_ros.sim.aloha import ARM_JOINTS, ARMS, CAMERAS, CUBE_COLOURS, JOINT_NAMES, START_POSE, SimulatedAloha
from lightvla_ros.sim.pacing import Pacer
from lightvla_ros.sim.renderer import choose_backend

GRIPPER, LEFT_FINGER, RIGHT_FINGER = (JOINT_NAMES.index(n) for n in ("gripper", "left_finger", "right_finger"))


@pytest.fixture(scope="module")
def shared() -> SimulatedAloha:
    return SimulatedAloha()


@pytest.fixture
def sim(shared: SimulatedAloha) -> SimulatedAloha:
    shared.reset(0)
    return shared


def seconds(sim: SimulatedAloha, duration: float) -> None:
    sim.step(round(duration / sim.timestep))


def cube_position(sim: SimulatedAloha, colour: str) -> np.ndarray:
    """Centre of a cube, m, world frame (z up, 0 on the table), (3,)."""
    return np.array(sim._data.joint(f"{colour}_cube").qpos[:3])


@pytest.mark.parametrize("arm", ARMS)
def test_arms_hold_the_start_pose_without_commands(sim: SimulatedAloha, arm: str) -> None:
    seconds(sim, 1.0)
    reading = sim.joint_reading(arm)
    np.testing.assert_allclose(reading.position[:6], START_POSE, atol=0.02)
    assert np.abs(reading.velocity).max() < 0.05
    assert reading.position.shape == reading.velocity.shape == reading.effort.shape == (len(JOINT_NAMES),)


def test_shoulder_carries_the_arms_weight(sim: SimulatedAloha) -> None:
    seconds(sim, 1.0)
    assert abs(sim.joint_reading("follower_left").effort[JOINT_NAMES.index("shoulder")]) > 0.1


def test_masses_and_limits_are_the_published_ones(sim: SimulatedAloha) -> None:
    for side in ("left", "right"):
        assert sim.model.body(f"vx300s_{side}/upper_arm_link").mass[0] == pytest.approx(0.792592)
        for name, low, high in (("shoulder", -1.85005, 1.25664), ("left_finger", 0.021, 0.057)):
            joint = sim.model.joint(f"vx300s_{side}/{name}")
            np.testing.assert_allclose(joint.range, (low, high))
            actuator = int(np.flatnonzero(sim.model.actuator_trnid[:, 0] == joint.id)[0])
            np.testing.assert_allclose(sim.model.actuator_ctrlrange[actuator], (low, high))


@pytest.mark.parametrize("joint", ARM_JOINTS)
def test_command_moves_the_named_joint_of_that_arm_only(sim: SimulatedAloha, joint: str) -> None:
    before = {arm: sim.joint_reading(arm).position for arm in ARMS}
    index = JOINT_NAMES.index(joint)
    sim.command_arm("follower_right", [joint], [before["follower_right"][index] + 0.2])
    seconds(sim, 1.0)
    expected = before["follower_right"].copy()
    expected[index] += 0.2
    np.testing.assert_allclose(sim.joint_reading("follower_right").position[:6], expected[:6], atol=0.03)
    np.testing.assert_allclose(sim.joint_reading("follower_left").position[:6], before["follower_left"][:6], atol=0.02)


def test_commands_go_by_name_not_by_order(sim: SimulatedAloha) -> None:
    sim.command_arm("follower_left", ["elbow", "waist"], [1.0, 0.3])
    seconds(sim, 1.0)
    position = sim.joint_reading("follower_left").position
    assert position[0] == pytest.approx(0.3, abs=0.03)
    assert position[2] == pytest.approx(1.0, abs=0.03)


def test_goal_with_a_duration_is_approached_in_a_straight_line(sim: SimulatedAloha) -> None:
    sim.command_arm("follower_left", ["wrist_rotate"], [1.0], duration=1.0)
    seconds(sim, 0.5)
    assert sim.joint_reading("follower_left").position[5] == pytest.approx(0.5, abs=0.1)
    seconds(sim, 1.0)
    assert sim.joint_reading("follower_left").position[5] == pytest.approx(1.0, abs=0.03)


def test_last_goal_is_held_for_ever(sim: SimulatedAloha) -> None:
    sim.command_arm("follower_left", ["waist"], [0.4])
    seconds(sim, 2.0)
    held = sim.joint_reading("follower_left").position[0]
    seconds(sim, 5.0)
    assert sim.joint_reading("follower_left").position[0] == pytest.approx(held, abs=0.005)


@pytest.mark.parametrize(
    ("names", "positions", "sentence"),
    [
        (["shoulders"], [0.0], "names the joint shoulders"),
        (["gripper"], [0.0], "names the joint gripper"),
        (["waist", "waist"], [0.0, 0.1], "at most once"),
        ([], [], "at least one"),
        (["waist", "elbow"], [0.1], "1 positions for 2 joints"),
        (["waist"], [math.nan], "not finite"),
        (["waist"], [math.inf], "not finite"),
    ],
)
def test_bad_arm_command_is_refused_and_changes_nothing(
    sim: SimulatedAloha, names: list[str], positions: list[float], sentence: str
) -> None:
    before = sim.joint_reading("follower_left").position
    with pytest.raises(LightVLAError, match=sentence):
        sim.command_arm("follower_left", names, positions)
    seconds(sim, 0.3)
    np.testing.assert_allclose(sim.joint_reading("follower_left").position[:6], before[:6], atol=0.02)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_gripper_command_that_is_not_finite_is_refused(sim: SimulatedAloha, value: float) -> None:
    with pytest.raises(LightVLAError, match="not finite"):
        sim.command_gripper("follower_left", value)


def test_negative_duration_is_refused(sim: SimulatedAloha) -> None:
    with pytest.raises(LightVLAError, match="0 or later"):
        sim.command_arm("follower_left", ["waist"], [0.0], duration=-0.1)


def test_gripper_closes_and_opens_as_far_as_its_fingers_go(sim: SimulatedAloha) -> None:
    low, high = 0.021, 0.057
    for motor, finger in ((aloha.GRIPPER_MOTOR_CLOSED, low), (aloha.GRIPPER_MOTOR_OPEN, high)):
        sim.command_gripper("follower_left", motor)
        seconds(sim, 2.0)
        position = sim.joint_reading("follower_left").position
        assert position[LEFT_FINGER] == pytest.approx(finger, abs=0.002)
        assert position[RIGHT_FINGER] == pytest.approx(-finger, abs=0.002)
        assert position[GRIPPER] == pytest.approx(aloha.motor_from_finger(position[LEFT_FINGER]))


def test_gripper_conversion_meets_the_published_ends() -> None:
    assert aloha.finger_from_motor(1.4910) == pytest.approx(0.0580)
    assert aloha.finger_from_motor(-0.6213) == pytest.approx(0.01844)


@given(st.floats(-3.0, 3.0))
def test_gripper_conversions_are_inverse(angle: float) -> None:
    assert aloha.motor_from_finger(aloha.finger_from_motor(angle)) == pytest.approx(angle, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=6), st.floats(-1e6, 1e6), st.floats(0.0, 1e3))
def test_no_command_drives_an_arm_beyond_its_range(goal: list[float], motor: float, duration: float) -> None:
    sim = _hypothesis_sim()
    sim.reset(0)
    sim.command_arm("follower_left", ARM_JOINTS, goal, duration)
    sim.command_gripper("follower_left", motor, duration)
    sim.step(20)
    low, high = sim.model.actuator_ctrlrange.T
    control = sim._data.ctrl
    assert np.all((control >= low - 1e-12) & (control <= high + 1e-12))
    assert np.isfinite(sim.snapshot()).all()


_SIM: list[SimulatedAloha] = []


def _hypothesis_sim() -> SimulatedAloha:
    if not _SIM:
        _SIM.append(SimulatedAloha())
    return _SIM[0]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31 - 1))
def test_every_seed_puts_the_cubes_apart_on_the_table_within_reach(seed: int) -> None:
    sim = _hypothesis_sim()
    sim.reset(seed)
    places = [cube_position(sim, colour) for colour in CUBE_COLOURS]
    for place in places:
        assert abs(place[0]) < 0.2
        assert 0.35 < place[1] < 0.65
        assert place[2] == pytest.approx(0.02)
    for i, a in enumerate(places):
        assert all(np.linalg.norm(a - b) > 0.06 for b in places[i + 1 :])


def test_same_seed_gives_the_same_scene_and_another_seed_another(sim: SimulatedAloha) -> None:
    sim.reset(5)
    first = sim.snapshot()
    seconds(sim, 0.5)
    sim.reset(6)
    assert not np.allclose(sim.snapshot(), first)
    sim.reset(5)
    np.testing.assert_array_equal(sim.snapshot(), first)


def test_reset_forgets_the_goals_but_time_goes_on(sim: SimulatedAloha) -> None:
    sim.command_arm("follower_left", ["waist"], [1.0], duration=2.0)
    seconds(sim, 0.2)
    time = sim.time
    sim.reset(0)
    assert sim.time == time
    seconds(sim, 0.5)
    np.testing.assert_allclose(sim.joint_reading("follower_left").position[:6], START_POSE, atol=0.02)


def test_cubes_rest_on_the_table(sim: SimulatedAloha) -> None:
    before = {colour: cube_position(sim, colour) for colour in CUBE_COLOURS}
    seconds(sim, 2.0)
    for colour, place in before.items():
        np.testing.assert_allclose(cube_position(sim, colour), place, atol=2e-3)


def test_gripper_grasps_and_lifts_a_cube(sim: SimulatedAloha) -> None:
    joints = ("waist", "shoulder", "elbow", "wrist_angle")
    above, around = (0.0, 0.2, -0.1, 1.5), (0.0, 0.5, -0.1, 1.2)
    for colour, place in zip(CUBE_COLOURS, ((0.007, 0.5), (0.0, 0.8), (0.1, 0.8)), strict=True):
        sim._data.joint(f"{colour}_cube").qpos[:7] = (*place, 0.02, 1.0, 0.0, 0.0, 0.0)
    for pose in (above, around):
        sim.command_arm("follower_left", joints, pose, duration=1.0)
        seconds(sim, 1.5)
    sim.command_gripper("follower_left", aloha.GRIPPER_MOTOR_CLOSED)
    seconds(sim, 2.0)
    sim.command_arm("follower_left", joints, above, duration=1.0)
    seconds(sim, 2.0)
    assert cube_position(sim, "red")[2] > 0.1


needs_gl = pytest.mark.skipif(
    subprocess.run(
        [sys.executable, "-c", "from lightvla_ros.sim.aloha import SimulatedAloha as S; S().render('cam_high', 8, 8)"],
        capture_output=True,
    ).returncode
    != 0,
    reason="no OpenGL library here (sudo apt-get install -y libegl1 libgl1-mesa-dri)",
)


@needs_gl
@pytest.mark.parametrize("camera", CAMERAS)
def test_camera_sees_a_lit_scene(sim: SimulatedAloha, camera: str) -> None:
    image = sim.render(camera, 112, 160)
    assert image.shape == (112, 160, 3)
    assert image.dtype == np.uint8
    assert 60 < image.mean() < 230
    assert image.std() > 20
    sim.close()


@needs_gl
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_high_camera_sees_every_cube_in_its_colour(sim: SimulatedAloha, seed: int) -> None:
    sim.reset(seed)
    image = sim.render("cam_high", 112, 112).astype(int)
    for channel in range(3):
        others = np.delete(image, channel, axis=2).max(axis=2)
        assert (image[..., channel] - others > 60).sum() >= 8
    sim.close()


@needs_gl
def test_high_camera_shows_the_left_arm_on_the_left(sim: SimulatedAloha) -> None:
    before = sim.render("cam_high", 112, 112).astype(int)
    sim.command_arm("follower_left", ["waist"], [0.8])
    seconds(sim, 1.5)
    moved = np.abs(sim.render("cam_high", 112, 112).astype(int) - before).sum(axis=(0, 2))
    assert moved[:56].sum() > 5 * moved[56:].sum()
    sim.close()


@needs_gl
def test_a_larger_image_may_follow_a_smaller_one(sim: SimulatedAloha) -> None:
    for height, width in ((112, 112), (480, 640), (112, 112)):
        assert sim.render("angle", height, width).shape == (height, width, 3)
    sim.close()


@needs_gl
def test_unknown_camera_is_answered_with_those_there_are(sim: SimulatedAloha) -> None:
    with pytest.raises(LightVLAError, match=r"no camera cam_low; it has .*top"):
        sim.render("cam_low", 8, 8)
    sim.close()


@needs_gl
def test_without_a_gl_device_the_sentence_holds_the_command() -> None:
    code = (
        "from lightvla_core.errors import LightVLAError\n"
        "from lightvla_ros.sim.renderer import choose_backend\n"
        "try:\n    choose_backend()\nexcept LightVLAError as error:\n    print(error)"
    )
    without = {**os.environ, "MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_FILENAMES": "/dev/null"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=without)
    assert "sudo apt-get install -y libegl1 libgl1-mesa-dri" in done.stdout
    assert not done.stderr


def test_unknown_mujoco_gl_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(LightVLAError, match="MUJOCO_GL is 'vulkan', expected egl"):
        choose_backend()


def test_import_brings_no_torch_and_no_gymnasium() -> None:
    code = (
        "import sys; from lightvla_ros.sim.aloha import SimulatedAloha; SimulatedAloha();"
        "print([m for m in ('torch', 'gymnasium', 'gym_aloha', 'dm_control') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["mujoco", "gym_aloha"])
def test_missing_package_is_one_sentence_with_the_command(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from lightvla_core.errors import LightVLAError\n"
        "try:\n    from lightvla_ros.sim.aloha import SimulatedAloha; SimulatedAloha()\n"
        "except LightVLAError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert "pip install -e '.[sim]'" in done.stdout
    assert not done.stderr


def test_pacer_keeps_absolute_deadlines_when_ticks_are_late() -> None:
    pacer = Pacer(0.01, now=0.0)
    pacer.tick(0.004)
    assert pacer.wait(0.004) == pytest.approx(0.006)
    pacer.tick(0.019)
    assert pacer.wait(0.019) == pytest.approx(0.001)


def test_pacer_gives_up_a_long_backlog() -> None:
    pacer = Pacer(0.01, now=0.0)
    pacer.tick(5.0)
    assert pacer.wait(5.0) == pytest.approx(0.01)


def test_pacer_reports_the_real_time_factor_since_the_last_report() -> None:
    pacer = Pacer(0.01, now=0.0)
    for i in range(50):
        pacer.tick(i * 0.02)
    factor, lateness = pacer.report(1.0)
    assert factor == pytest.approx(0.5)
    assert lateness > 0.09
    assert pacer.report(2.0) == (0.0, 0.0)

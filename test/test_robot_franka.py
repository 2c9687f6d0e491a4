"""Franka: limits in the contract's units, proprioception, and what is sent for a command, whatever is measured."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lightvla_core.contract import Camera, Channel, EndEffector, Gripper, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.resources import resource
from lightvla_ros.robots.description import GripperAction, check_contract
from lightvla_ros.robots.description_file import load_robot
from lightvla_ros.robots.franka import EEF, description_for, proprioception
from lightvla_ros.robots.gripper import GripperEdges, opening_of, value_of_opening
from lightvla_ros.robots.pose_target import MotionWatch, PoseTarget, in_base, within_workspace
from lightvla_ros.robots.rotations import POSE_VALUES, Pose, axis_angle, matrix, quaternion, rotation_of, turn

ROBOT = load_robot("franka", "")
FACTS = ROBOT.end_effector
assert FACTS is not None
STATES = {
    "arm": {f"fr3_joint{i}": i / 10 for i in range(1, 8)},
    "fingers": {"fr3_finger_joint1": 0.03, "fr3_finger_joint2": 0.03},
    "end_effector": {"x": 0.4, "y": 0.1, "z": 0.3, "qx": 1.0, "qy": 0.0, "qz": 0.0, "qw": 0.0},
}
numbers = st.floats(-3.0, 3.0)
vectors = arrays(np.float64, 3, elements=numbers)


def contract(**changes: object) -> PolicyContract:
    fields: dict[str, object] = {
        "robot": "franka",
        "cameras": (Camera("wrist"),),
        "proprioception": (
            *(Channel(n, "m" if n in EEF[:3] else "rad") for n in EEF),
            Channel("finger_left", "m"),
            Channel("finger_right", "m"),
        ),
        "actions": tuple(Channel(n, "normalized") for n in (*EEF, "gripper")),
        "action_space": "eef_delta",
        "chunk_length": 8,
        "control_rate": 20.0,
        "normalization": "bounds_q99",
        "statistics_key": "test",
        "end_effector": EndEffector(0.05, 0.5),
        "gripper": Gripper(("gripper",), open=1.0, closed=-1.0, binary=True),
    }
    return PolicyContract(**(fields | changes))  # type: ignore[arg-type]


def test_axis_angle_is_the_recordings_own() -> None:
    folder = os.environ.get("LIGHTVLA_PARITY")
    if folder is None:
        pytest.skip("LIGHTVLA_PARITY is not set")
    for case in json.loads((Path(folder) / "normalization" / "normalization.json").read_text())["quat2axisangle"]:
        np.testing.assert_allclose(axis_angle(np.array(case["quat_xyzw"])), case["axis_angle"], atol=1e-9)


def test_axis_angle_keeps_the_sign_of_the_quaternion() -> None:
    np.testing.assert_allclose(axis_angle(np.array([0.0, 0.0, 1.0, 0.0])), [0, 0, np.pi])
    q = np.array([0.0, 0.0, np.sin(0.2), np.cos(0.2)])
    np.testing.assert_allclose(axis_angle(q), [0, 0, 0.4])
    np.testing.assert_allclose(axis_angle(-q), [0, 0, 0.4 - 2 * np.pi])
    np.testing.assert_array_equal(axis_angle(np.array([0.0, 0.0, 0.0, 1.0])), np.zeros(3))


def test_unset_quaternion_is_refused() -> None:
    with pytest.raises(LightVLAError, match="length 0, expected 1"):
        axis_angle(np.zeros(4))


@given(vector=vectors)
def test_rotations_convert_back_and_forth(vector: np.ndarray) -> None:
    rotation = rotation_of(vector)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(matrix(quaternion(rotation)), rotation, atol=1e-9)


@given(first=vectors, second=vectors)
def test_turn_is_applied_from_the_left(first: np.ndarray, second: np.ndarray) -> None:
    start, end = rotation_of(first), rotation_of(second)
    np.testing.assert_allclose(rotation_of(turn(start, end)) @ start, end, atol=1e-7)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", POSE_VALUES)
def test_a_pose_that_is_not_finite_is_none(name: str, value: float) -> None:
    with pytest.raises(LightVLAError, match=f"not finite: {name}"):
        Pose.from_values({**STATES["end_effector"], name: value})


def test_libero_proprioception_is_pose_and_mirrored_fingers() -> None:
    values = proprioception(contract(), ROBOT, STATES)
    np.testing.assert_allclose(values, [0.4, 0.1, 0.3, np.pi, 0, 0, 0.03, -0.03], atol=1e-12)


def test_joint_proprioception_and_gripper_in_the_contracts_sign() -> None:
    wanted = (Channel("joint7", "rad"), Channel("joint1", "rad"), Channel("gripper", "normalized"))
    np.testing.assert_allclose(proprioception(contract(proprioception=wanted), ROBOT, STATES), [0.7, 0.1, 0.5])


@pytest.mark.parametrize("source", ["end_effector", "fingers"])
def test_missing_state_is_missing_never_zero(source: str) -> None:
    with pytest.raises(LightVLAError, match=f"no state of {source} has arrived"):
        proprioception(contract(), ROBOT, {k: v for k, v in STATES.items() if k != source})


def test_limits_are_in_the_contracts_units() -> None:
    channels = {c.name: c for c in description_for(contract(), ROBOT).channels}
    assert channels["eef_x"].upper * 0.05 == pytest.approx(0.3)
    assert channels["eef_rz"].upper * 0.5 == pytest.approx(0.8)
    assert channels["eef_x"].max_velocity * 0.05 == pytest.approx(2.0)
    assert (channels["gripper"].lower, channels["gripper"].upper) == (-1.0, 1.0)


def test_metres_with_a_scale_contradict_each_other() -> None:
    metres = (Channel("eef_x", "m"), *contract().actions[1:])
    with pytest.raises(LightVLAError, match=r"eef_x is in m and its scale is 0\.05"):
        description_for(contract(actions=metres), ROBOT)


def test_gripper_without_a_sign_is_refused() -> None:
    with pytest.raises(LightVLAError, match="which values of the action `gripper` are open and closed"):
        description_for(contract(gripper=None), ROBOT)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"actions": contract().actions[1:]}, "none for eef_x"),
        ({"robot": "aloha"}, "trained for robot aloha"),
        ({"actions": (*contract().actions, Channel("joint1", "rad"))}, "has no channel joint1"),
        ({"proprioception": (Channel("elbow", "rad"),)}, "no channel elbow"),
        (
            {"proprioception": (Channel("eef_rx", "m"),)},
            "proprioception eef_rx is in m, but robot franka gives it in rad",
        ),
    ],
)
def test_mismatch_with_the_contract_is_one_sentence(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(LightVLAError, match=sentence):
        check_contract(contract(**changes), ROBOT)


def test_aloha_takes_no_deltas() -> None:
    with pytest.raises(LightVLAError, match="takes joint_position actions"):
        check_contract(contract(robot="aloha"), load_robot("aloha", ""))


def test_every_published_joint_limit_stands_in_the_file() -> None:
    lower = [c.lower for c in ROBOT.channels[:7]]
    assert lower == [-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159]
    assert resource("config/robots/franka.yaml").is_file()


@given(velocity=vectors, position=vectors)
def test_a_velocity_never_leads_out_of_the_workspace(velocity: np.ndarray, position: np.ndarray) -> None:
    allowed = within_workspace(velocity, position, FACTS)
    assert (np.abs(allowed) <= np.abs(velocity)).all()
    assert (allowed * velocity >= 0).all()
    reached = position + 0.2 * allowed
    outside = np.maximum(reached - FACTS.workspace_upper, np.array(FACTS.workspace_lower) - reached)
    before = np.maximum(position - FACTS.workspace_upper, np.array(FACTS.workspace_lower) - position)
    assert (outside <= np.maximum(before, 0.0) + 1e-9).all()


def test_tool_frame_deltas_turn_with_the_tool() -> None:
    facts = EndEffector(0.05, 0.5, frame="tool")
    down = matrix(np.array([1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(in_base(np.array([0, 0, 1.0, 0, 0, 1.0]), facts, down), [0, 0, -1, 0, 0, -1], atol=1e-12)


MEASURED = Pose(np.array([0.4, 0.0, 0.3]), np.eye(3))
PERIOD = 0.05


def test_pose_target_integrates_and_turns_from_the_left() -> None:
    target = PoseTarget(FACTS)
    tilted = replace(MEASURED, rotation=rotation_of(np.array([1.0, 0.0, 0.0])))
    target.start(tilted)
    target.advance(np.array([0.1, 0, 0, 0, 0, 0.5]), 0.1, tilted)
    assert target.pose is not None
    np.testing.assert_allclose(target.pose.position, [0.41, 0, 0.3])
    np.testing.assert_allclose(target.pose.rotation, rotation_of(np.array([0, 0, 0.05])) @ tilted.rotation, atol=1e-12)


def test_pose_target_of_a_blocked_arm_stays_near_it_and_comes_back_at_once() -> None:
    target = PoseTarget(FACTS)
    target.start(MEASURED)
    down = np.array([0, 0, -0.3, 0, 0.8, 0])
    for _ in range(200):
        target.advance(down, PERIOD, MEASURED)
        assert target.pose is not None
        assert np.linalg.norm(target.pose.position - MEASURED.position) <= FACTS.max_lead[0] + 1e-9
        assert np.linalg.norm(turn(MEASURED.rotation, target.pose.rotation)) <= FACTS.max_lead[1] + 1e-9
        target.require_followed(MEASURED, PERIOD)
    deepest = target.pose.position[2]
    target.advance(-down, PERIOD, MEASURED)
    assert target.pose.position[2] == pytest.approx(deepest + 0.3 * PERIOD)


FORWARD = np.array([0.3, 0.0, 0.0, 0.0, 0.0, 0.0])
EVERY_AXIS = np.array([0.3, 0.3, -0.3, 0.8, -0.8, 0.8])


def travelled(twist: np.ndarray, seconds: float) -> Pose:
    """Where MEASURED gets with this velocity, base frame."""
    return Pose(MEASURED.position + seconds * twist[:3], rotation_of(seconds * twist[3:]) @ MEASURED.rotation)


def drive(watch: MotionWatch, twist: np.ndarray, seconds: float) -> None:
    """Of a tool that stands still."""
    for k in range(int(seconds / PERIOD)):
        watch.advance(twist, MEASURED, k * PERIOD)
        watch.require_followed()


@pytest.mark.parametrize(("twist", "unit"), [(FORWARD, "m"), (np.array([0, 0, 0, 0, 0.8, 0.0]), "rad")])
def test_a_tool_that_is_blocked_under_a_velocity_is_a_tracking_error_within_a_second(
    twist: np.ndarray, unit: str
) -> None:
    with pytest.raises(LightVLAError, match=rf"tracking error: the tool is 0\.\d+ {unit} from"):
        drive(MotionWatch(FACTS), twist, 1.0)


def test_a_tool_that_is_blocked_under_a_slow_velocity_is_not_noticed() -> None:
    drive(MotionWatch(FACTS), 0.2 * FORWARD, 20.0)


@pytest.mark.parametrize("twist", [FORWARD, EVERY_AXIS])
@pytest.mark.parametrize("lag", [0.0, 0.1, 0.15])
@pytest.mark.parametrize("skipped", [1, 3, 10])
@pytest.mark.parametrize("held", [1, 2])
def test_a_tool_that_lags_follows(twist: np.ndarray, lag: float, skipped: int, held: int) -> None:
    """Every so many periods one is missed, and the pose comes in only every so many periods."""
    watch, seen = MotionWatch(FACTS), MEASURED
    for k in range(int(5.0 / PERIOD)):
        if skipped > 1 and k % skipped == 0:
            continue
        if k % held == 0:
            seen = travelled(twist, max(0.0, k * PERIOD - lag))
        watch.advance(twist, seen, k * PERIOD)
        watch.require_followed()


def test_a_tool_that_falls_a_little_short_follows() -> None:
    watch = MotionWatch(FACTS)
    for k in range(int(5.0 / PERIOD)):
        watch.advance(FORWARD, travelled(0.9 * FORWARD, k * PERIOD), k * PERIOD)
        watch.require_followed()


def test_a_servo_that_halts_without_commands_is_expected_no_further() -> None:
    watch = MotionWatch(FACTS)
    watch.advance(FORWARD, MEASURED, 0.0)
    watch.advance(FORWARD, travelled(FORWARD, 0.1), 2.0)
    watch.require_followed()


def test_a_tool_that_moves_on_its_own_is_a_tracking_error() -> None:
    watch = MotionWatch(FACTS)
    watch.advance(np.zeros(6), MEASURED, 0.0)
    watch.advance(np.zeros(6), travelled(FORWARD, 0.7), PERIOD)
    with pytest.raises(LightVLAError, match="tracking error"):
        watch.require_followed()
    watch.reset()
    watch.require_followed()


@given(twist=arrays(np.float64, 6, elements=st.floats(-0.8, 0.8)), glitch=vectors, tilt=vectors)
def test_a_false_pose_never_moves_the_target_more_than_the_twist(
    twist: np.ndarray, glitch: np.ndarray, tilt: np.ndarray
) -> None:
    target = PoseTarget(FACTS)
    before = target.start(MEASURED)
    target.advance(twist, PERIOD, Pose(MEASURED.position + glitch, rotation_of(tilt)))
    assert target.pose is not None
    assert (np.abs(target.pose.position - before.position) <= np.abs(twist[:3]) * PERIOD + 1e-9).all()
    assert np.linalg.norm(turn(before.rotation, target.pose.rotation)) <= np.linalg.norm(twist[3:]) * PERIOD + 1e-6


@pytest.mark.parametrize(
    ("elsewhere", "sentence"),
    [
        (replace(MEASURED, position=np.array([0.5, 0.0, 0.3])), "0.100 m from the pose target"),
        (replace(MEASURED, rotation=rotation_of(np.array([0.4, 0.0, 0.0]))), "0.400 rad from the pose target"),
    ],
)
def test_an_arm_that_is_far_from_its_pose_target_is_a_tracking_error(elsewhere: Pose, sentence: str) -> None:
    target = PoseTarget(FACTS)
    target.require_followed(elsewhere, PERIOD)
    target.start(MEASURED)
    target.require_followed(MEASURED, PERIOD)
    with pytest.raises(LightVLAError, match=f"tracking error: the measured pose is {sentence}"):
        target.require_followed(elsewhere, PERIOD)


HAND = ROBOT.gripper_action
assert HAND is not None


def test_gripper_goals_are_sent_on_edges_only() -> None:
    edges = GripperEdges(HAND)
    wishes = [1.0, 0.9, 1.0, 0.5, 0.45, 0.2, 0.0, 0.5, 0.7]
    assert [edges.update(wish, float(i)) for i, wish in enumerate(wishes)] == [
        "open", None, None, None, None, "close", None, None, "open",
    ]  # fmt: skip


@given(wishes=st.lists(st.floats(-1.0, 2.0), max_size=100))
def test_gripper_goals_alternate_and_keep_their_distance(wishes: list[float]) -> None:
    edges = GripperEdges(HAND)
    sent = [(i * 0.05, motion) for i, w in enumerate(wishes) if (motion := edges.update(w, i * 0.05)) is not None]
    for (before, one), (after, other) in itertools.pairwise(sent):
        assert one != other
        assert after - before >= HAND.min_interval - 1e-9


def test_a_wish_that_lasts_is_sent_after_the_interval() -> None:
    edges = GripperEdges(HAND)
    assert edges.update(1.0, 0.0) == "open"
    assert edges.update(0.0, 0.1) is None
    assert edges.update(0.0, 0.6) == "close"


@given(opening=st.floats(-0.5, 1.5), ends=st.tuples(st.floats(-2, 2), st.floats(-2, 2)))
def test_gripper_sign_is_the_contracts(opening: float, ends: tuple[float, float]) -> None:
    if abs(ends[0] - ends[1]) < 0.1:
        return
    gripper = Gripper(("gripper",), open=ends[0], closed=ends[1])
    assert opening_of(value_of_opening(opening, gripper), gripper) == pytest.approx(opening, abs=1e-9)
    assert opening_of(gripper.open, gripper) == pytest.approx(1.0)


def test_hysteresis_that_crosses_is_refused() -> None:
    fields = {**vars(HAND), "close_below": 0.7}
    with pytest.raises(LightVLAError, match=r"close_below 0\.7 and open_above 0\.6"):
        GripperAction(**fields)

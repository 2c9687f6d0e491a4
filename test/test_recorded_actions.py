"""What was recorded, as actions: end-effector motions in the contract's frame and scale, grippers in its sign."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

pytest.importorskip("rosbags", reason="bags are read with rosbags")

from test_robot_franka import contract as franka_contract

from lightvla_core.contract import EndEffector, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.bag import TYPES, BagMessage, BagWriter, build, header, open_bag
from lightvla_ros.chunk_schedule import TimedChunk
from lightvla_ros.recorded_actions import JOINT_STATE, POSE, Recorder, require_comparable, state_topics
from lightvla_ros.robots.description_file import load_robot
from lightvla_ros.robots.pose_target import in_base, motion_between
from lightvla_ros.robots.rotations import Array, Pose, between, quaternion, rotation_of

ROBOT = load_robot("franka", "")
FINGERS, JOINTS = "/franka_gripper/joint_states", "/franka/joint_states"
POSES = "/franka_robot_state_broadcaster/current_pose"
START = Pose(np.array([0.4, 0.1, 0.3]), rotation_of(np.array([np.pi, 0.2, 0.0])))
small = arrays(np.float64, 6, elements=st.floats(-1.0, 1.0))


def moved(start: Pose, twist: Array, time: float) -> Pose:
    """At a constant velocity, m/s and rad/s in the base frame, for this long (s)."""
    return Pose(start.position + twist[:3] * time, rotation_of(twist[3:] * time) @ start.rotation)


def pose_message(pose: Pose, stamp: float) -> BagMessage:
    x, y, z, w = quaternion(pose.rotation).tolist()
    fields = build(
        "geometry_msgs/msg/Pose",
        position=build("geometry_msgs/msg/Point", **dict(zip("xyz", pose.position.tolist(), strict=True))),
        orientation=build("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w),
    )
    return stamped(POSES, POSE, stamp, pose=fields)


def joints_message(topic: str, names: list[str], positions: list[float], stamp: float) -> BagMessage:
    none = np.empty(0)
    return stamped(topic, JOINT_STATE, stamp, name=names, position=np.array(positions), velocity=none, effort=none)


def stamped(topic: str, kind: str, stamp: float, **fields: Any) -> BagMessage:
    nanoseconds = round(stamp * 1e9)
    built = build(kind, header=header(nanoseconds), **fields)
    return BagMessage(topic, kind, nanoseconds, bytes(TYPES.serialize_cdr(built, kind)))


def chunk(contract: PolicyContract, stamp: float, steps: int) -> TimedChunk:
    names = contract.action_names
    return TimedChunk(stamp, contract.period, names, np.zeros((steps, len(names))), contract.hash, "", 1)


def recorded(contract: PolicyContract, messages: list[tuple[str, BagMessage, float]], steps: int = 4) -> Array:
    """(steps, channels): what a recorder makes of (source, message, stamp), for a chunk from 100 s on."""
    recorder = Recorder(contract, ROBOT)
    for source, told, stamp in messages:
        recorder.state(source, told, stamp)
    series = recorder.series()
    return np.stack([series[n].at_steps(chunk(contract, 100.0, steps)) for n in contract.action_names], axis=-1)


def drive(twist: Array, seconds: float = 0.5, rate: float = 100.0) -> list[tuple[str, BagMessage, float]]:
    """Poses and an open hand, from a little before 100 s on."""
    stamps = [99.9 + i / rate for i in range(round(seconds * rate))]
    poses = [("end_effector", pose_message(moved(START, twist, t - 99.9), t), t) for t in stamps]
    return poses + [("fingers", joints_message(FINGERS, ["fr3_finger_joint1"], [0.04], t), t) for t in stamps]


@given(delta=small, frame=st.sampled_from(["base", "tool"]))
def test_a_motion_is_the_delta_that_made_it(delta: Array, frame: Any) -> None:
    meaning = EndEffector(1.0, 1.0, frame=frame)
    end = moved(START, in_base(delta, meaning, START.rotation), 1.0)
    np.testing.assert_allclose(motion_between(START, end, meaning), delta, atol=1e-7)


@given(twist=small, share=st.floats(0.0, 1.0))
def test_between_two_poses_lies_the_pose_at_constant_velocity(twist: Array, share: float) -> None:
    found, expected = between(START, moved(START, twist, 1.0), share), moved(START, twist, share)
    np.testing.assert_allclose(found.position, expected.position, atol=1e-9)
    np.testing.assert_allclose(found.rotation, expected.rotation, atol=1e-7)


def test_end_effector_motion_is_in_units_of_the_contracts_scales() -> None:
    contract = franka_contract()
    twist = np.array([0.1, -0.2, 0.05, 0.0, 0.4, -0.3])
    scales = np.array([0.05] * 3 + [0.5] * 3)
    found = recorded(contract, drive(twist))
    np.testing.assert_allclose(found[:, :6], np.tile(twist * contract.period / scales, (4, 1)), atol=1e-6)


def test_end_effector_motion_is_in_the_contracts_frame() -> None:
    contract = franka_contract(end_effector=EndEffector(0.05, 0.5, frame="tool"))
    # Along the tool's own axes, whichever way it points: with no turn they stay where they are.
    twist = np.concatenate((START.rotation @ [0.0, 0.0, 0.1], np.zeros(3)))
    expected = [0, 0, 0.1 * contract.period / 0.05, 0, 0, 0]
    np.testing.assert_allclose(recorded(contract, drive(twist))[0, :6], expected, atol=1e-6)


def test_what_lies_beyond_the_recording_is_not_known() -> None:
    found = recorded(franka_contract(), drive(np.zeros(6), seconds=0.25), steps=8)
    # The last pose is 0.14 s after the chunk's begin: two whole periods at 20 Hz.
    assert np.isfinite(found[:2]).all()
    assert np.isnan(found[2:]).all()


def test_without_poses_the_joint_states_tell_how_the_end_effector_moved() -> None:
    contract, facts = franka_contract(), ROBOT.end_effector
    assert facts is not None
    ready = np.array([c.start for c in ROBOT.select(ROBOT.spaces["joint_position"])[:7]])
    names = [f"fr3_joint{i}" for i in range(1, 8)]

    def joints_at(time: float) -> Array:
        return ready + 0.2 * (time - 99.9)

    stamps = [99.9 + i / 100 for i in range(50)]
    states = [("arm", joints_message(JOINTS, names, joints_at(t).tolist(), t), t) for t in stamps]
    hand = [m for m in drive(np.zeros(6)) if m[0] == "fingers"]
    begin, end = (facts.kinematics.forward(joints_at(100.0 + i * contract.period)) for i in (0, 1))
    expected = motion_between(begin, end, EndEffector(0.05, 0.5)) / np.array([0.05] * 3 + [0.5] * 3)
    np.testing.assert_allclose(recorded(contract, states + hand)[0, :6], expected, atol=1e-6)


def test_gripper_is_in_the_contracts_sign() -> None:
    assert recorded(franka_contract(), drive(np.zeros(6)))[0, 6] == pytest.approx(1.0)
    closed = [("fingers", joints_message(FINGERS, ["fr3_finger_joint1"], [0.0], t), t) for t in (99.0, 101.0)]
    poses = [m for m in drive(np.zeros(6)) if m[0] == "end_effector"]
    assert recorded(franka_contract(), poses + closed)[0, 6] == pytest.approx(-1.0)


def test_a_pose_that_was_not_set_yet_is_left_out() -> None:
    twist = np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.0])
    unset = stamped(
        POSES,
        POSE,
        99.905,
        pose=build(
            "geometry_msgs/msg/Pose",
            position=build("geometry_msgs/msg/Point", x=0.0, y=0.0, z=0.0),
            orientation=build("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=0.0),
        ),
    )
    found = recorded(franka_contract(), [*drive(twist), ("end_effector", unset, 99.905)])
    np.testing.assert_allclose(found[:, 0], 0.1 * 0.05 / 0.05, atol=1e-6)


def test_where_poses_lack_for_a_while_nothing_is_known() -> None:
    told = drive(np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.0]), seconds=1.5)
    found = recorded(franka_contract(), [m for m in told if not (m[0] == "end_effector" and 100.2 < m[2] < 100.5)], 20)
    assert np.isfinite(found[:3]).all()
    assert np.isnan(found[4:9, 0]).all()
    assert np.isfinite(found[11:20, 0]).all()


def test_poses_in_another_frame_are_refused() -> None:
    (source, told, stamp), *_ = drive(np.zeros(6))
    message = told.decode()
    message.header.frame_id = "world"
    other = BagMessage(POSES, POSE, told.received, bytes(TYPES.serialize_cdr(message, POSE)))
    with pytest.raises(LightVLAError, match=r"frame 'world', expected fr3_link0"):
        Recorder(franka_contract(), ROBOT).state(source, other, stamp)


def test_joint_states_that_are_not_finite_are_left_out() -> None:
    names = [f"fr3_joint{i}" for i in range(1, 8)]
    stamps = [99.9 + i / 100 for i in range(50)]
    states = [("arm", joints_message(JOINTS, names, [0.1 * (i + t - 99.9) for i in range(7)], t), t) for t in stamps]
    states[20] = ("arm", joints_message(JOINTS, names, [np.nan] * 7, stamps[20]), stamps[20])
    hand = [m for m in drive(np.zeros(6)) if m[0] == "fingers"]
    assert np.isfinite(recorded(franka_contract(), states + hand)).all()


def test_without_any_pose_the_actions_that_cannot_be_compared_are_named() -> None:
    hand = [m for m in drive(np.zeros(6)) if m[0] == "fingers"]
    with pytest.raises(LightVLAError, match=r"neither usable commands nor usable states of eef_x, .* eef_rz, so"):
        recorded(franka_contract(), hand)


@pytest.mark.parametrize(("held", "read"), [((POSES, JOINTS), POSES), ((JOINTS,), JOINTS)])
def test_poses_are_read_where_there_are_some_and_joint_states_otherwise(
    tmp_path: Path, held: tuple[str, ...], read: str
) -> None:
    told = [pose_message(START, 1.0), joints_message(JOINTS, ["fr3_joint1"], [0.0], 1.0)]
    told.append(joints_message(FINGERS, ["fr3_finger_joint1"], [0.0], 1.0))
    with BagWriter(tmp_path / "bag") as bag:
        for item in told:
            if item.topic in (*held, FINGERS):
                bag.write(item.topic, item.type, item.decode(), item.received)
    with open_bag(tmp_path / "bag") as opened:
        found = state_topics(franka_contract(), ROBOT, opened)
    assert set(found) == {read, FINGERS}
    require_comparable(franka_contract(), ROBOT, found, {})
    with pytest.raises(LightVLAError, match=r"usable states of gripper, so"):
        require_comparable(franka_contract(), ROBOT, {read: found[read]}, {})

"""Replay of a bag: deterministic, aligned in time with what was recorded, and one sentence for unusable bags."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags are read with rosbags")
pytest.importorskip("torch", reason="the policy needs torch")

from test_recorded_actions import FINGERS, START, joints_message, moved, pose_message, stamped

from lightvla_core.contract import FILE_NAME, Camera, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.interface import ActionChunk, Observation
from lightvla_core.policy import Policy
from lightvla_core.presets import franka_contract
from lightvla_ros.bag import BagMessage, BagWriter, build, open_bag
from lightvla_ros.chunk_message import from_message, instruction_id
from lightvla_ros.inference_timing import InferenceTiming
from lightvla_ros.replay import IMAGE, LIMITS, Replay, make_plan, replay
from lightvla_ros.replay_report import CHUNK_TOPIC, RECORDED_TOPIC, joint_errors, write_report
from lightvla_ros.robots.description_file import load_robot

BAG = Path(__file__).parent / "data" / "bags" / "aloha"
INSTRUCTION = "pick up the red cube"
JOINT_STATES = ("/follower_left/joint_states", "/follower_right/joint_states")
CAMERA = "/cam_high/camera/color/image_rect_raw/compressed"
Change = Callable[[BagMessage], "tuple[str, str, Any] | None"]


@pytest.fixture(scope="module")
def contract(tiny_checkpoint: Path) -> PolicyContract:
    return PolicyContract.from_file(tiny_checkpoint / FILE_NAME)


@pytest.fixture(scope="module")
def policy(tiny_checkpoint: Path) -> Policy:
    return Policy.from_checkpoint(tiny_checkpoint)


@dataclass
class Scripted:
    """A predictor that knows the future: at_time gives the action of a moment, s."""

    contract: PolicyContract
    at_time: Callable[[float], Any]

    def predict_action(self, observation: Observation) -> ActionChunk:
        steps = observation.stamp + np.arange(self.contract.chunk_length) * self.contract.period
        return ActionChunk(np.array([self.at_time(t) for t in steps]), {}, stamp=observation.stamp)


def run(
    path: Path, predictor: Any, contract: PolicyContract, instruction: str = INSTRUCTION, mode: Any = "open_loop"
) -> Replay:
    timing = InferenceTiming(mode, contract.period, contract.chunk_length, 5 if mode == "receding_horizon" else 0)
    with open_bag(path) as bag:
        plan = make_plan(contract, load_robot("aloha", "aloha1"), bag, instruction)
        return replay(predictor, plan, bag.messages(plan.topics), timing, instruction)


def changed(path: Path, change: Change) -> Path:
    """The shipped bag with every message passed through change: topic, type and message, or None to leave it out."""
    with open_bag(BAG) as source, BagWriter(path) as bag:
        for message in source.messages(list(source.topics)):
            if (new := change(message)) is not None:
                bag.write(*new, message.received)
    return path


def without(*topics: str) -> Change:
    return lambda m: None if m.topic in topics else (m.topic, m.type, m.decode())


def test_the_same_bag_gives_the_same_chunks(policy: Policy, contract: PolicyContract) -> None:
    first, second = (run(BAG, policy, contract) for _ in range(2))
    assert len(first.chunks) >= 3
    for a, b in zip(first.chunks, second.chunks, strict=True):
        assert (a.chunk.stamp, a.decided) == (b.chunk.stamp, b.decided)
        np.testing.assert_array_equal(a.chunk.actions, b.chunk.actions)


def test_sqlite3_gives_the_same_chunks_as_mcap(tmp_path: Path, policy: Policy, contract: PolicyContract) -> None:
    with open_bag(BAG) as source, BagWriter(tmp_path / "bag", "sqlite3") as bag:
        for message in source.messages(list(source.topics)):
            bag.write(message.topic, message.type, message.decode(), message.received)
    for a, b in zip(run(BAG, policy, contract).chunks, run(tmp_path / "bag", policy, contract).chunks, strict=True):
        assert a.chunk.stamp == b.chunk.stamp
        np.testing.assert_array_equal(a.chunk.actions, b.chunk.actions)


def test_open_loop_takes_the_next_observation_at_the_end_of_a_chunk(policy: Policy, contract: PolicyContract) -> None:
    stamps = [item.chunk.stamp for item in run(BAG, policy, contract).chunks]
    length = contract.chunk_length * contract.period
    # A look comes with a message, when the other arm's state may be one tick older.
    assert all(length - 0.011 <= gap <= length + 0.1 for gap in np.diff(stamps))


def test_receding_horizon_takes_observations_as_often_as_it_is_told(policy: Policy, contract: PolicyContract) -> None:
    stamps = [item.chunk.stamp for item in run(BAG, policy, contract, mode="receding_horizon").chunks]
    assert np.mean(np.diff(stamps)) == pytest.approx(5 * contract.period, abs=0.05)


def test_sequence_instruction_and_contract_stand_in_every_chunk(policy: Policy, contract: PolicyContract) -> None:
    chunks = [item.chunk for item in run(BAG, policy, contract).chunks]
    assert [c.sequence for c in chunks] == list(range(1, len(chunks) + 1))
    assert {c.instruction_id for c in chunks} == {instruction_id(INSTRUCTION)}
    assert {c.contract_hash for c in chunks} == {contract.hash}


def commanded_at(contract: PolicyContract, seed: int = 0) -> Callable[[float], Any]:
    """The recorder's script in the contract's units: what the command in force in the middle of a step asks for."""
    from lightvla_ros.sim.recording import _START, Motion

    motion = Motion.drawn(seed)
    grippers = {c.arm: c.gripper for c in load_robot("aloha", "aloha1").channels if c.gripper is not None}

    def at(time: float) -> Any:
        # Commands go out at ticks 1, 5, 9 ... and are received a few microseconds after them.
        tick = math.ceil((time + contract.period / 2 - _START * 1e-9) * 100 - 1e-2) - 1
        begun = (max(tick, 1) - 1) // 4 * 4 / 100
        poses = motion.at(begun + 0.04)
        for row, conversion in zip(poses, grippers.values(), strict=True):
            closed, opened = conversion.motor(0.0), conversion.motor(1.0)
            row[-1] = (row[-1] - closed) / (opened - closed)
        return poses.reshape(-1)

    return at


def test_a_policy_that_predicts_the_recorded_commands_has_no_error(contract: PolicyContract) -> None:
    pytest.importorskip("mujoco", reason="the script is the simulated robot's")
    errors = joint_errors(run(BAG, Scripted(contract, commanded_at(contract)), contract))
    assert [e.source for e in errors] == ["command"] * 14
    assert max(e.largest for e in errors) < 1e-6
    assert all(e.compared >= 70 for e in errors)


def test_an_error_is_in_the_channels_unit_and_in_its_row(contract: PolicyContract) -> None:
    pytest.importorskip("mujoco", reason="the script is the simulated robot's")
    exact, offset = commanded_at(contract), np.zeros(14)
    offset[2], offset[13] = 0.25, -0.5
    errors = joint_errors(run(BAG, Scripted(contract, lambda t: exact(t) + offset), contract))
    assert [round(e.mean, 6) for e in errors] == [0, 0, 0.25, *[0] * 10, 0.5]
    assert errors[2].rms == pytest.approx(0.25)
    assert (errors[2].unit, errors[13].unit) == ("rad", "normalized")


def test_without_commands_the_joint_states_are_compared(tmp_path: Path, contract: PolicyContract) -> None:
    bag = changed(tmp_path / "bag", lambda m: None if "controller" in m.topic else (m.topic, m.type, m.decode()))
    start = load_robot("aloha", "aloha1").select(contract.action_names)
    held = np.array([c.start for c in start])
    errors = joint_errors(run(bag, Scripted(contract, lambda t: held), contract))
    assert {e.source for e in errors} == {"joint state"}
    # The arms start where the prediction is, and move away.
    assert errors[0].first < errors[0].largest
    assert 0.0 < max(e.mean for e in errors) < 1.0


def test_interbotix_commands_are_understood(tmp_path: Path, contract: PolicyContract) -> None:
    pytest.importorskip("mujoco", reason="the script is the simulated robot's")

    def as_interbotix(m: BagMessage) -> tuple[str, str, Any] | None:
        if "controller" not in m.topic:
            return m.topic, m.type, m.decode()
        arm, goal = m.topic.split("/")[1], m.decode().points[0].positions
        if "gripper" in m.topic:
            kind = "interbotix_xs_msgs/msg/JointSingleCommand"
            return f"/{arm}/commands/joint_single", kind, build(kind, name="gripper", cmd=float(goal[0]))
        kind = "interbotix_xs_msgs/msg/JointGroupCommand"
        return f"/{arm}/commands/joint_group", kind, build(kind, name="arm", cmd=goal.astype(np.float32))

    bag = changed(tmp_path / "bag", as_interbotix)
    errors = joint_errors(run(bag, Scripted(contract, commanded_at(contract)), contract))
    assert {e.source for e in errors} == {"command"}
    assert max(e.largest for e in errors) < 1e-5  # float32 on the wire


def franka_bag(path: Path, twist: Any) -> Path:
    """3 s of an FR3 whose hand is open and whose tool moves at this velocity, (6,) m/s and rad/s, base frame."""
    image = {"height": 112, "width": 112, "encoding": "rgb8", "is_bigendian": 0, "step": 336}
    black = np.zeros(112 * 336, np.uint8)
    with BagWriter(path) as bag:
        for stamp in np.arange(100.0, 103.0, 0.02).tolist():
            told = [
                pose_message(moved(START, twist, stamp - 100.0), stamp),
                joints_message(FINGERS, ["fr3_finger_joint1", "fr3_finger_joint2"], [0.04, 0.04], stamp),
                stamped("/third_person/camera/color/image_raw", IMAGE, stamp, **image, data=black),
                stamped("/wrist/camera/color/image_raw", IMAGE, stamp, **image, data=black),
            ]
            for item in told:
                bag.write(item.topic, item.type, item.decode(), item.received)
    return path


def test_end_effector_deltas_are_compared_with_how_the_end_effector_moved(tmp_path: Path) -> None:
    contract = franka_contract((Camera("third_person", 112, 112), Camera("wrist", 112, 112)))
    twist = np.array([0.1, -0.05, 0.02, 0.0, 0.1, -0.2])
    facts = contract.end_effector
    assert facts is not None
    exact = np.append(twist * contract.period / ([facts.linear_scale] * 3 + [facts.angular_scale] * 3), 1.0)
    with open_bag(franka_bag(tmp_path / "bag", twist)) as bag:
        plan = make_plan(contract, load_robot("franka", ""), bag, INSTRUCTION)
        timing = InferenceTiming("open_loop", contract.period, contract.chunk_length, 0)
        result = replay(Scripted(contract, lambda t: exact), plan, bag.messages(plan.topics), timing, INSTRUCTION)
    errors = joint_errors(result)
    assert [e.source for e in errors] == ["motion"] * 6 + ["joint state"]
    assert min(e.compared for e in errors) > 40
    assert max(e.largest for e in errors) < 1e-5
    write_report(result, tmp_path)
    assert sorted(p.stem for p in (tmp_path / "plots").glob("*.png")) == sorted(contract.action_names)


def test_the_bags_own_instruction_is_used_unless_another_is_given(
    tmp_path: Path, policy: Policy, contract: PolicyContract
) -> None:
    text = build("std_msgs/msg/String", data="open the drawer")
    with open_bag(BAG) as source, BagWriter(tmp_path / "bag") as bag:
        for n, message in enumerate(source.messages(list(source.topics))):
            if n == 0:
                bag.write("/instruction", "std_msgs/msg/String", text, message.received)
            bag.write(message.topic, message.type, message.decode(), message.received)
    for given, expected in (("", "open the drawer"), (INSTRUCTION, INSTRUCTION)):
        chunks = run(tmp_path / "bag", policy, contract, given).chunks
        assert {item.chunk.instruction_id for item in chunks} == {instruction_id(expected)}


def test_missing_topics_are_named_with_those_that_are_there(tmp_path: Path, contract: PolicyContract) -> None:
    bag = changed(tmp_path / "bag", without(CAMERA, JOINT_STATES[1]))
    with pytest.raises(LightVLAError) as caught:
        run(bag, None, contract)
    sentence = str(caught.value)
    assert "lacks /cam_high/camera/color/image_rect_raw or " in sentence
    assert "/follower_right/joint_states (joint state of follower_right)" in sentence
    assert (
        "it holds /cam_left_wrist/camera/color/image_rect_raw/compressed (sensor_msgs/msg/CompressedImage)" in sentence
    )
    assert "\n" not in sentence


def test_topic_of_another_type_is_refused_with_both_types(tmp_path: Path, contract: PolicyContract) -> None:
    text = build("std_msgs/msg/String", data="no state")
    bag = changed(
        tmp_path / "bag",
        lambda m: (m.topic, "std_msgs/msg/String", text) if m.topic in JOINT_STATES else (m.topic, m.type, m.decode()),
    )
    with pytest.raises(LightVLAError, match=r"joint_states holds std_msgs/msg/String.*expected sensor_msgs/msg/JointS"):
        run(bag, None, contract)


def test_bag_without_instruction_asks_for_one(contract: PolicyContract) -> None:
    with pytest.raises(LightVLAError, match=r"no topic /instruction; say with --instruction"):
        run(BAG, None, contract, instruction="")


def test_bag_of_stale_messages_says_why_there_is_no_chunk(
    tmp_path: Path, policy: Policy, contract: PolicyContract
) -> None:
    with open_bag(BAG) as source, BagWriter(tmp_path / "bag") as bag:
        for message in source.messages(list(source.topics)):
            # As recorded without --use-sim-time: stamps of one clock, receipts of another.
            bag.write(message.topic, message.type, message.decode(), message.received + 3600 * 10**9)
    with pytest.raises(LightVLAError, match=r"no chunk of this bag.*3600.* s old by its stamp"):
        run(tmp_path / "bag", policy, contract)


def test_report_holds_every_chunk_as_message_and_every_step_as_row(
    tmp_path: Path, policy: Policy, contract: PolicyContract
) -> None:
    result = run(BAG, policy, contract)
    write_report(result, tmp_path)
    with open_bag(tmp_path / "chunks") as bag:
        messages = [m.decode() for m in bag.messages([CHUNK_TOPIC])]
        recorded = [m.decode() for m in bag.messages([RECORDED_TOPIC])]
    for message, item in zip(messages, result.chunks, strict=True):
        chunk = from_message(message, contract)
        assert chunk.stamp == pytest.approx(item.chunk.stamp, abs=1e-6)
        np.testing.assert_array_equal(chunk.actions, item.chunk.actions)
    assert len(recorded) == len(messages)
    with (tmp_path / "actions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result.chunks) * contract.chunk_length
    assert float(rows[0]["left_waist predicted"]) == pytest.approx(result.chunks[0].chunk.actions[0, 0], abs=1e-5)
    assert float(rows[0]["left_waist recorded"]) == pytest.approx(recorded[0].points[0].positions[0], abs=1e-5)
    assert sorted(p.stem for p in (tmp_path / "plots").glob("*.png")) == sorted(contract.action_names)


def test_command_prints_the_errors_and_writes_the_report(
    lightvla: Callable[..., Any], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    out = tmp_path / "report"
    arguments = ("replay", BAG, "--checkpoint", tiny_checkpoint, "--instruction", INSTRUCTION, "--out", out)
    result = lightvla(*arguments)
    assert result.status == 0, result.stderr
    assert "left_waist" in result.stdout
    assert "replay" not in result.stdout.splitlines()[0]
    assert {p.name for p in out.iterdir()} == {"chunks", "actions.csv", "plots"}
    assert "is not empty" in lightvla(*arguments).sentence


@pytest.mark.parametrize("bag", ["/nonexistent", "/dev/null", "."])
def test_command_refuses_what_is_no_bag_in_one_sentence(lightvla: Callable[..., Any], tmp_path: Path, bag: str) -> None:
    assert lightvla("replay", bag, "--checkpoint", "/nonexistent", "--out", tmp_path / "report").sentence


def test_replay_imports_no_ros() -> None:
    code = "import sys, lightvla_ros.replay_command; sys.exit('rclpy' in sys.modules or 'sensor_msgs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_freshness_is_judged_as_by_the_live_nodes_defaults() -> None:
    node = pytest.importorskip("lightvla_ros.policy_node", reason="no ROS 2 here")
    defaults = {parameter.name: parameter.default for parameter in node.RUN_TIME_PARAMETERS}
    assert (LIMITS.max_age, LIMITS.max_skew) == (defaults["max_age"], defaults["max_skew"])

"""Both robots in the drivers' own message types, over DDS: the executor's commands, and Franka's graph closed loop.

`make test` generates the types (test/interfaces); without them these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("franka_msgs", reason="the drivers' messages are not here; `make test` generates them")

from executor_fixtures import START, aloha_contract, chunk, joint_positions
from geometry_msgs.msg import PoseStamped, TransformStamped, TwistStamped
from interbotix_xs_msgs.msg import JointGroupCommand, JointSingleCommand
from live_node import LOADING, LiveNode, end
from rclpy.action import get_action_names_and_types
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String
from test_robot_franka import ROBOT as FR3
from test_robot_franka import contract as franka_contract
from tf2_msgs.msg import TFMessage
from trajectory_msgs.msg import JointTrajectory

from lightvla_core.checkpoint import save_checkpoint
from lightvla_core.contract import Camera, Channel, PolicyContract
from lightvla_core.presets import random_weights, tiny, tiny_tokenizer, write_tiny
from lightvla_ros import processes
from lightvla_ros.chunk_message import stamp_seconds, to_message
from lightvla_ros.inbox import Inbox
from lightvla_ros.lifecycle import LATCHED_QOS, NEWEST_QOS, SENSOR_QOS
from lightvla_ros.robots.adapter import select_sources
from lightvla_ros.robots.state_inbox import subscribe_state


class Bench(LiveNode):
    """A node beside the processes under test, which end with it."""

    def __init__(self, domain: int, logs: Path) -> None:
        super().__init__(domain)
        self._logs, self._running = logs, list[subprocess.Popen[bytes]]()

    def start(self, module: str, *parameters: str, **environment_changes: str) -> None:
        words = [word for parameter in parameters for word in ("-p", parameter)]
        command = [sys.executable, "-m", module, "--ros-args", *words]
        environment = {**os.environ, **processes.transport_environment(), **environment_changes}
        with (self._logs / module).open("wb") as log:
            self._running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))

    def situation(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-1500:]}" for p in self._logs.iterdir())

    def until(self, condition: Callable[[], bool], seconds: float = LOADING) -> None:
        super().until(condition, seconds)

    def keep(self, kind: Any, topic: str) -> list[Any]:
        received: list[Any] = []
        self.node.create_subscription(kind, topic, received.append, SENSOR_QOS)
        return received

    def close(self) -> None:
        end(*self._running)
        super().close()


@pytest.fixture
def bench(ros_domain: int, tmp_path: Path) -> Iterator[Bench]:
    logs = tmp_path / "logs"
    logs.mkdir()
    bench = Bench(ros_domain, logs)
    yield bench
    bench.close()


def feed_aloha(bench: Bench) -> None:
    """Contract, instruction and joint states of a standing ALOHA."""
    contract = bench.node.create_publisher(String, "policy/contract", LATCHED_QOS)
    contract.publish(String(data=aloha_contract().to_json()))
    arms = [bench.node.create_publisher(JointState, f"follower_{s}/joint_states", 1) for s in ("left", "right")]

    def publish() -> None:
        for arm in arms:
            positions = joint_positions(offset=0.02)
            message = JointState(name=list(positions), position=list(positions.values()))
            message.header.stamp = bench.node.get_clock().now().to_msg()
            arm.publish(message)

    bench.node.create_timer(0.02, publish)


def send_chunks(bench: Bench, contract: PolicyContract, goal: Sequence[float]) -> None:
    """Chunks whose every step is the goal, as it is when they are sent."""
    publisher = bench.node.create_publisher(JointTrajectory, "policy/action_chunk", NEWEST_QOS)
    sequence = iter(range(10**6))

    def publish() -> None:
        stamp = bench.node.get_clock().now().nanoseconds * 1e-9
        publisher.publish(to_message(chunk(contract, np.array(goal), stamp, next(sequence))))

    bench.node.create_timer(0.2, publish)


@pytest.mark.parametrize(
    ("command_type", "arm_topic", "gripper_topic", "arm_type", "gripper_type"),
    [
        ("interbotix", "commands/joint_group", "commands/joint_single", JointGroupCommand, JointSingleCommand),
        (
            "float64_multi_array",
            "arm_controller/commands",
            "gripper_controller/commands",
            Float64MultiArray,
            Float64MultiArray,
        ),
    ],
)
def test_aloha_commands_in_the_drivers_types(
    bench: Bench, command_type: str, arm_topic: str, gripper_topic: str, arm_type: Any, gripper_type: Any
) -> None:
    bench.start("lightvla_ros.executor_node", f"command_type:={command_type}", "real_time_priority:=0")
    arms = bench.keep(arm_type, f"follower_left/{arm_topic}")
    closing, staying = (bench.keep(gripper_type, f"follower_{s}/{gripper_topic}") for s in ("left", "right"))
    feed_aloha(bench)
    bench.until(lambda: bench.change(1))
    assert bench.change(3)
    bench.until(lambda: bench.trigger("arm")[0])
    send_chunks(bench, aloha_contract(), [*START[:6], 0.0, *START[7:]])
    bench.until(lambda: len(arms) > 20 and len(staying) > 20)

    def motor(message: Any) -> float:
        return float(message.cmd if command_type == "interbotix" else message.data[0])

    bench.until(lambda: abs((arms[-1].cmd if command_type == "interbotix" else arms[-1].data)[1] + 0.96) < 1e-3)
    bench.until(lambda: abs(motor(closing[-1]) + 0.6213) < 1e-3)
    assert motor(staying[-1]) == pytest.approx(1.4910, abs=1e-3)
    if command_type == "interbotix":
        assert (arms[-1].name, staying[-1].name) == ("arm", "gripper")


def test_aloha_moves_to_the_start_pose_slowly_and_on_request_only(bench: Bench) -> None:
    bench.start("lightvla_ros.executor_node", "command_type:=interbotix", "real_time_priority:=0")
    arms = bench.keep(JointGroupCommand, "follower_left/commands/joint_group")
    feed_aloha(bench)
    bench.until(lambda: bench.change(1))
    assert bench.change(3)
    assert arms == []
    bench.until(lambda: bench.trigger("move_to_start")[0])
    bench.until(lambda: bench.state == "disarmed" and len(arms) > 1 and abs(arms[-1].cmd[0]) < 1e-3)
    waist = np.array([a.cmd[0] for a in arms])
    assert np.abs(np.diff(waist)).max() <= 0.3 * 0.04 * 1.5


def bring_up_franka(bench: Bench, checkpoint: Path, *executor: str, policy: str = "torch_threads:=1") -> None:
    bench.start(
        "lightvla_ros.sim.sim_node",
        "robot:=franka",
        "cameras:=[third_person, wrist]",
        "camera_rate:=20.0",
        "seed:=1",
    )
    bench.start(
        "lightvla_ros.policy_node", "robot:=franka", f"checkpoint:={checkpoint}", "instruction:=pick up the cube",
        "max_age:=2.0", "max_skew:=1.0", policy,
    )  # fmt: skip
    bench.start(
        "lightvla_ros.executor_node", "robot:=franka", "real_time_priority:=0", "state_timeout:=2.0",
        "starvation_timeout:=10.0", *executor,
    )  # fmt: skip
    bench.until(lambda: bench.change(1, "policy"), 90.0)
    bench.until(lambda: bench.change(1))
    assert bench.change(3)
    assert bench.change(3, "policy")


def test_franka_closed_loop_by_twists_and_gripper_actions(bench: Bench, tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "tiny", robot="franka")
    twists = bench.keep(TwistStamped, "servo_node/delta_twist_cmds")
    poses = bench.keep(PoseStamped, "franka_robot_state_broadcaster/current_pose")
    fingers = bench.keep(JointState, "franka_gripper/joint_states")
    # So slow that a policy of random weights does not reach the end of the arm.
    bring_up_franka(bench, checkpoint, "speed:=0.3")
    assert twists == []
    bench.until(lambda: bench.trigger("arm")[0])
    before = poses[-1].pose.position.x, poses[-1].pose.position.y, poses[-1].pose.position.z
    bench.until(lambda: len(twists) > 60)
    linear = np.array([[t.twist.linear.x, t.twist.linear.y, t.twist.linear.z] for t in twists])
    assert {t.header.frame_id for t in twists} == {"fr3_link0"}
    assert np.abs(linear).max() <= 0.3 + 1e-9
    assert np.abs(linear).max() > 0.0
    position = poses[-1].pose.position
    assert np.linalg.norm(np.subtract(before, (position.x, position.y, position.z))) > 0.005
    assert len(fingers) > 0
    assert bench.trigger("estop")[0]
    assert bench.state.startswith("stopped: emergency stop")
    count = len(twists)
    bench.until(lambda: len(twists) > count + 5)
    assert [twists[-1].twist.linear.x, twists[-1].twist.angular.z] == [0.0, 0.0]


def test_franka_pose_targets_from_tf(bench: Bench, tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "tiny", robot="franka")
    targets = bench.keep(PoseStamped, "servo_node/pose_target_cmds")
    transforms = bench.node.create_publisher(TFMessage, "/tf", 100)
    static = bench.node.create_publisher(TFMessage, "/tf_static", LATCHED_QOS)

    def relay(message: Any) -> None:
        item = TransformStamped(header=message.header, child_frame_id="fr3_hand")
        translation, position = item.transform.translation, message.pose.position
        translation.x, translation.y, translation.z = position.x, position.y, position.z
        item.transform.rotation = message.pose.orientation
        transforms.publish(TFMessage(transforms=[item]))

    tool = TransformStamped(child_frame_id="fr3_hand_tcp")
    tool.header.frame_id = "fr3_hand"
    static.publish(TFMessage(transforms=[tool]))
    bench.node.create_subscription(PoseStamped, "franka_robot_state_broadcaster/current_pose", relay, SENSOR_QOS)
    bring_up_franka(bench, checkpoint, "pose_source:=tf", "command_type:=pose", policy="pose_source:=tf")
    bench.until(lambda: bench.trigger("arm")[0])
    bench.until(lambda: len(targets) > 20)
    assert targets[-1].header.frame_id == "fr3_link0"
    target = targets[-1].pose.position
    assert np.linalg.norm(np.subtract((target.x, target.y, target.z), (0.307, 0.0, 0.487))) < 0.3


def write_joint_policy(folder: Path) -> Path:
    """A tiny checkpoint with random weights that moves the joints a little around the ready pose."""
    joints = FR3.channels[:7]
    channels = (*(Channel(c.name, "rad") for c in joints), Channel("gripper", "normalized"))
    centre, reach = np.array([*(c.start for c in joints), 0.5]), np.array([0.2] * 7 + [0.5])
    contract = franka_contract(
        cameras=(Camera("wrist", 112, 112),), proprioception=channels, actions=channels,
        action_space="joint_position", end_effector=None, normalization="bounds",
    )  # fmt: skip
    bounds = {"min": (centre - reach).tolist(), "max": (centre + reach).tolist()}
    weights = random_weights(tiny(), contract, 0).items()
    statistics = {"test": {"action": bounds, "proprio": bounds}}
    save_checkpoint(folder, tiny(), contract, statistics, tiny_tokenizer().to_str(), weights)
    return folder


def assert_stop_repeats_the_last(bench: Bench, arms: list[Any]) -> None:
    assert bench.trigger("estop")[0]
    count = len(arms)
    bench.until(lambda: len(arms) > count + 5)
    assert bench.state.startswith("stopped: emergency stop")
    assert arms[-1].points[0].positions == arms[-2].points[0].positions


def test_franka_joint_policy_closed_loop(bench: Bench, tmp_path: Path) -> None:
    checkpoint = write_joint_policy(tmp_path / "joints")
    arms = bench.keep(JointTrajectory, "fr3_arm_controller/joint_trajectory")
    states = bench.keep(JointState, "franka/joint_states")
    bring_up_franka(bench, checkpoint)
    bench.until(lambda: bench.trigger("arm")[0])
    before = np.array(states[-1].position)
    bench.until(lambda: len(arms) > 20)
    assert [list(arms[0].joint_names), len(arms[0].points)] == [[c.joint for c in FR3.channels[:7]], 1]
    bench.until(lambda: np.abs(np.array(states[-1].position) - before).max() > 0.01)
    assert bench.state == "armed"
    assert_stop_repeats_the_last(bench, arms)


def bring_up_executor(bench: Bench, wish: list[float], *parameters: str, **environment: str) -> None:
    """Simulated Franka and executor, armed, under chunks that ask for what `wish` holds."""
    bench.start("lightvla_ros.sim.sim_node", "robot:=franka", "cameras:=[wrist]", **environment)
    bench.start(
        "lightvla_ros.executor_node", "robot:=franka", "real_time_priority:=0", "state_timeout:=2.0", *parameters,
        **environment,
    )  # fmt: skip
    publisher = bench.node.create_publisher(String, "policy/contract", LATCHED_QOS)
    publisher.publish(String(data=franka_contract().to_json()))
    send_chunks(bench, franka_contract(), wish)
    bench.until(lambda: bench.change(1))
    assert bench.change(3)
    bench.until(lambda: bench.trigger("arm")[0])


def test_franka_deltas_by_joint_trajectory_closed_loop(bench: Bench) -> None:
    arms = bench.keep(JointTrajectory, "fr3_arm_controller/joint_trajectory")
    poses = bench.keep(PoseStamped, "franka_robot_state_broadcaster/current_pose")
    # 0.2 of a full delta to the side: 0.2 m/s.
    bring_up_executor(bench, [0.0, 0.2, 0.0, 0.0, 0.0, 0.0, 1.0], "command_type:=joint_trajectory")
    bench.until(lambda: bool(poses) and poses[-1].pose.position.y > 0.1)
    position, turned = poses[-1].pose.position, poses[-1].pose.orientation
    np.testing.assert_allclose([position.x, position.z], [0.307, 0.487], atol=0.01)
    assert abs(turned.x) > 0.999
    assert_stop_repeats_the_last(bench, arms)


def test_franka_pose_targets_closed_loop(bench: Bench) -> None:
    targets = bench.keep(PoseStamped, "servo_node/pose_target_cmds")
    poses = bench.keep(PoseStamped, "franka_robot_state_broadcaster/current_pose")
    bring_up_executor(bench, [0.0, 0.2, 0.0, 0.0, 0.0, 0.0, 1.0], "command_type:=pose")
    bench.until(lambda: bool(poses) and poses[-1].pose.position.y > 0.1)
    position = poses[-1].pose.position
    np.testing.assert_allclose([position.x, position.z], [0.307, 0.487], atol=0.02)
    # It leads the moving arm, and never by more than the robot's file allows.
    moments, told = ([stamp_seconds(m.header.stamp) for m in messages] for messages in (poses, targets))
    way, wished = ([m.pose.position.y for m in messages] for messages in (poses, targets))
    assert 0.0 < np.max(np.array(wished) - np.interp(told, moments, way)) < 0.05 + 0.02
    assert bench.state == "armed"
    assert bench.trigger("estop")[0]
    count = len(targets)
    bench.until(lambda: len(targets) > count + 5)
    assert targets[-1].pose == targets[-2].pose


def without_franka_msgs(folder: Path) -> str:
    """A PYTHONPATH on which control_msgs is, and franka_msgs is not."""
    spec = importlib.util.find_spec("control_msgs")
    assert spec is not None
    assert spec.origin is not None
    folder.mkdir()
    (folder / "control_msgs").symlink_to(Path(spec.origin).parent)
    return str(folder)


def test_franka_gripper_by_control_msgs_where_there_is_no_franka_msgs(bench: Bench, tmp_path: Path) -> None:
    fingers = bench.keep(JointState, "franka_gripper/joint_states")
    wish = [0.0] * 6 + [-1.0]
    bring_up_executor(bench, wish, PYTHONPATH=without_franka_msgs(tmp_path / "packages"))
    for value, reached in ((-1.0, lambda position: position < 0.002), (1.0, lambda position: position > 0.038)):
        wish[6] = value
        bench.until(lambda reached=reached: bool(fingers) and reached(fingers[-1].position[0]))
    actions = [name for name, _ in get_action_names_and_types(bench.node)]
    assert actions == ["/franka_gripper/gripper_action"]


def test_bytes_that_are_no_transform_do_not_end_the_hearing_of_others(bench: Bench) -> None:
    (source,) = select_sources(FR3, ("end_effector",), "tf")
    inbox, heard = Inbox(bench.node), list[Any]()
    subscribe_state(inbox, source, heard.append)
    inbox.start()
    publisher = bench.node.create_publisher(TFMessage, "/tf", 100)
    item = TransformStamped(child_frame_id=source.tip)
    item.header.frame_id = source.base

    def publish() -> bool:
        publisher.publish(bytes([0, 1, 0, 0]) + b"\xff" * 40)
        publisher.publish(TFMessage(transforms=[item]))
        return len(heard) > 5

    try:
        bench.until(publish)
    finally:
        inbox.close()

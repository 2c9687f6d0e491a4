"""The policy node over real DDS with a real tiny policy: what it publishes, and when it refuses to."""

from __future__ import annotations

import array
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the policy needs torch")
pytest.importorskip("rclpy", reason="no ROS 2 here")

import cv2
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from live_marks import shows
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64, String
from trajectory_msgs.msg import JointTrajectory

from lightvla_core.contract import PolicyContract
from lightvla_core.presets import write_tiny
from lightvla_ros.chunk_message import from_message, instruction_id, stamp_seconds
from lightvla_ros.images import fill_image, image_to_rgb
from lightvla_ros.lifecycle import LATCHED_QOS, NEWEST_QOS, SENSOR_QOS
from lightvla_ros.policy_node import PolicyNode
from lightvla_ros.wire import HEADER_STAMP_END

CAMERAS = ("cam_high", "cam_left_wrist")
ARMS = ("follower_left", "follower_right")
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper", "left_finger")
POSE = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.0, 0.04)
INSTRUCTION = "pick up the red cube"
PATIENCE = 15.0


def camera_topic(camera: str) -> str:
    return f"{camera}/camera/color/image_rect_raw"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module", autouse=True)
def _ros(ros_domain: int) -> Iterator[None]:
    rclpy.init(domain_id=ros_domain)
    yield
    rclpy.try_shutdown()


def damaged(message: Any) -> bytes:
    """Its stamp, so that it counts as fresh, and then bytes that are no such message."""
    return serialize_message(message)[:HEADER_STAMP_END] + b"\xff" * 200


class Robot(Node):
    """Publishes what cameras and arms would, and keeps everything that the policy says."""

    def __init__(self) -> None:
        super().__init__("robot")
        self.silent: set[str] = set()
        self.noise: set[str] = set()
        self.encoding = "rgb8"
        self.chunks: list[Any] = []
        self.contracts: list[str] = []
        self.pictures: list[Any] = []
        self.diagnostics: list[Any] = []
        self.states_sent: set[float] = set()
        self._raw = {c: self.create_publisher(Image, camera_topic(c), SENSOR_QOS) for c in CAMERAS}
        self._jpeg = {
            c: self.create_publisher(CompressedImage, camera_topic(c) + "/compressed", SENSOR_QOS) for c in CAMERAS
        }
        self._states = {arm: self.create_publisher(JointState, f"{arm}/joint_states", SENSOR_QOS) for arm in ARMS}
        self.instructions = self.create_publisher(String, "instruction", LATCHED_QOS)
        self.transition = self.create_client(ChangeState, "policy/change_state")
        self.create_subscription(JointTrajectory, "policy/action_chunk", self.chunks.append, NEWEST_QOS)
        self.create_subscription(String, "policy/contract", lambda m: self.contracts.append(m.data), LATCHED_QOS)
        self.create_subscription(DiagnosticArray, "/diagnostics", lambda m: self.diagnostics.extend(m.status), 10)
        self.create_timer(0.05, self._publish_images)
        self.create_timer(0.02, self._publish_states)
        self._pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)

    def chunks_are_heard(self) -> bool:
        return bool(self.count_publishers("policy/action_chunk"))

    def look_at_pictures(self) -> None:
        self.create_subscription(Image, "policy/debug_image", self.pictures.append, NEWEST_QOS)

    def _publish_images(self) -> None:
        stamp = self.get_clock().now().to_msg()
        for camera in CAMERAS:
            if camera in self.silent:
                continue
            image = Image()
            fill_image(image, self._pixels)
            image.encoding, image.header.stamp = self.encoding, stamp
            self._raw[camera].publish(damaged(image) if camera in self.noise else image)
            data = array.array("B", cv2.imencode(".jpg", self._pixels)[1].tobytes())
            jpeg = CompressedImage(format="rgb8; jpeg compressed bgr8", data=data)
            jpeg.header.stamp = stamp
            self._jpeg[camera].publish(jpeg)

    def _publish_states(self) -> None:
        stamp = self.get_clock().now().to_msg()
        self.states_sent.add(stamp_seconds(stamp))
        for arm in ARMS:
            if arm not in self.silent:
                state = JointState(name=JOINTS, position=POSE)
                state.header.stamp = stamp
                self._states[arm].publish(damaged(state) if arm in self.noise else state)


class Graph:
    """A policy node that spins on a thread of its own, and a robot that is spun by waiting."""

    def __init__(self, console: Path, **parameters: Any) -> None:
        self._console = console
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.node = PolicyNode(parameter_overrides=overrides)
        self.robot = Robot()
        self._executors = [SingleThreadedExecutor(), SingleThreadedExecutor()]
        for executor, node in zip(self._executors, (self.node, self.robot), strict=True):
            executor.add_node(node)
        self._ending = False
        self._thread = threading.Thread(target=self._spin_policy)
        self._thread.start()

    def _spin_policy(self) -> None:
        while not self._ending:
            self._executors[0].spin_once(timeout_sec=0.05)

    @property
    def logs(self) -> list[str]:
        """What the node has said so far on its console; /rosout fails for a second node of one name in a process."""
        return [line for line in self._console.read_text().splitlines() if "[policy]" in line]

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._executors[1].spin_once(timeout_sec=0.01)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"{what} did not come within {PATIENCE} s; log: {self.logs}"
            self._executors[1].spin_once(timeout_sec=0.01)

    def change(self, transition: int) -> bool:
        self.wait(self.robot.transition.service_is_ready, "the lifecycle service")
        future = self.robot.transition.call_async(ChangeState.Request(transition=Transition(id=transition)))
        self.wait(future.done, "the answer to a transition")
        return bool(future.result().success)

    def start(self) -> Graph:
        assert self.change(Transition.TRANSITION_CONFIGURE), self.logs
        self.wait(self.robot.chunks_are_heard, "the match of the chunk topic")
        assert self.change(Transition.TRANSITION_ACTIVATE), self.logs
        return self

    def next_chunk(self) -> Any:
        self.robot.chunks.clear()
        self.wait(lambda: self.robot.chunks, "a chunk")
        return self.robot.chunks[-1]

    def wait_for_log(self, *words: str) -> str:
        def said() -> list[str]:
            return [line for line in self.logs if all(word in line for word in words)]

        self.wait(said, f"a sentence with {words}")
        return said()[-1]

    def no_chunk_comes(self) -> bool:
        """After whatever is under way has arrived."""
        self.spin(0.3)
        self.robot.chunks.clear()
        self.spin(0.5)
        return not self.robot.chunks

    def close(self) -> None:
        self._ending = True
        self._thread.join()
        self.node.stop()
        for executor, node in zip(self._executors, (self.node, self.robot), strict=True):
            executor.shutdown()
            node.destroy_node()


@contextmanager
def stderr_into(path: Path) -> Iterator[None]:
    """What this process writes to stderr goes into a file; capfd loses what is written while it is being read."""
    saved = os.dup(2)
    with path.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@pytest.fixture
def graph(checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., Graph]]:
    made: list[Graph] = []
    with ExitStack() as redirected:

        def make(**parameters: Any) -> Graph:
            console = tmp_path / f"stderr{len(made)}"
            # Here, and not before: pytest sets stderr anew between a test's set-up and the test.
            redirected.enter_context(stderr_into(console))
            usual = {"checkpoint": str(checkpoint), "instruction": INSTRUCTION, "torch_threads": 1}
            made.append(Graph(console, **{**usual, **parameters}))
            return made[-1]

        yield make
        for each in made:
            each.close()


def inference_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "inference"]


def test_chunks_follow_the_contract_and_the_observations_stamp(graph: Callable[..., Graph]) -> None:
    running = graph().start()
    robot = running.robot
    message = running.next_chunk()
    contract = PolicyContract.from_json(robot.contracts[-1])
    chunk = from_message(message, contract)
    assert chunk.actions.shape == (25, 14)
    assert chunk.instruction_id == instruction_id(INSTRUCTION)
    assert chunk.stamp in robot.states_sent
    later = from_message(running.next_chunk(), contract)
    assert later.sequence > chunk.sequence
    assert later.stamp > chunk.stamp


def test_diagnostics_tell_latency_and_kept_patches(graph: Callable[..., Graph]) -> None:
    running = graph().start()

    def inferring() -> list[Any]:
        return [s for s in running.robot.diagnostics if s.name == "policy" and s.message == "inferring"]

    running.wait(inferring, "diagnostics")
    values = {pair.key: pair.value for pair in inferring()[-1].values}
    assert int(values["inferences"]) > 0
    assert values["kept patches cam_high"].endswith("/64")
    assert 0.0 < float(values["inference p50 ms"]) <= float(values["image to chunk p99 ms"])


def test_inactive_node_publishes_its_contract_but_no_chunk(graph: Callable[..., Graph]) -> None:
    running = graph()
    assert running.change(Transition.TRANSITION_CONFIGURE)
    running.wait(lambda: running.robot.contracts, "the contract")
    assert running.no_chunk_comes()
    assert inference_threads() == []


def test_deactivated_node_infers_no_more_and_can_be_activated_again(graph: Callable[..., Graph]) -> None:
    running = graph().start()
    running.next_chunk()
    assert running.change(Transition.TRANSITION_DEACTIVATE)
    assert inference_threads() == []
    assert running.no_chunk_comes()
    assert running.change(Transition.TRANSITION_ACTIVATE)
    running.next_chunk()


def test_cleaned_up_node_can_be_configured_again(graph: Callable[..., Graph]) -> None:
    running = graph().start()
    assert running.change(Transition.TRANSITION_DEACTIVATE)
    assert running.change(Transition.TRANSITION_CLEANUP)
    running.start().next_chunk()


@pytest.mark.parametrize("silent", ["cam_left_wrist", "follower_right"])
def test_stale_input_stops_inference_and_is_said_once(graph: Callable[..., Graph], silent: str) -> None:
    running = graph().start()
    running.next_chunk()
    running.robot.silent.add(silent)
    running.wait_for_log("no inference", silent)
    assert running.no_chunk_comes()
    running.robot.silent.clear()
    running.next_chunk()
    running.wait_for_log("inference goes on")
    assert len([line for line in running.logs if "no inference" in line]) == 1


def test_camera_that_never_publishes_is_named_with_its_topic(graph: Callable[..., Graph]) -> None:
    running = graph()
    running.robot.silent.add("cam_left_wrist")
    running.start()
    sentence = running.wait_for_log("no inference")
    assert "camera cam_left_wrist (/cam_left_wrist/camera/color/image_rect_raw)" in sentence
    assert "cam_high" not in sentence


def test_unknown_encoding_stops_inference_with_one_sentence(graph: Callable[..., Graph]) -> None:
    running = graph()
    running.robot.encoding = "thermal9"
    running.start()
    sentence = running.wait_for_log("thermal9")
    assert "camera cam_high (/cam_high/camera/color/image_rect_raw)" in sentence
    assert "rgb8" in sentence
    assert running.no_chunk_comes()
    assert len([line for line in running.logs if "thermal9" in line]) == 1
    running.robot.encoding = "rgb8"
    running.next_chunk()


@pytest.mark.parametrize("source", ["cam_left_wrist", "follower_right"])
def test_bytes_that_are_no_message_stop_inference_with_one_sentence_until_they_end(
    graph: Callable[..., Graph], source: str
) -> None:
    running = graph().start()
    running.next_chunk()
    running.robot.noise.add(source)
    sentence = running.wait_for_log("no inference", source)
    assert "cannot be decoded" in sentence
    assert running.no_chunk_comes()
    assert len([line for line in running.logs if "no inference" in line]) == 1
    running.robot.noise.clear()
    running.next_chunk()
    running.wait_for_log("inference goes on")


@shows("policy whose chunks are not finite")
def test_chunk_that_is_not_finite_is_an_error_and_is_not_published(graph: Callable[..., Graph]) -> None:
    running = graph().start()
    running.next_chunk()
    head = running.node._policy._model.action_head
    good = {name: value.clone() for name, value in head.state_dict().items()}
    for value in head.state_dict().values():
        value.fill_(math.nan)
    assert "NaN" in running.wait_for_log("ERROR", "no inference")
    assert running.no_chunk_comes()
    running.wait(
        lambda: any(s.level == DiagnosticStatus.ERROR for s in running.robot.diagnostics), "diagnostics of an error"
    )
    head.load_state_dict(good)
    running.next_chunk()


@shows("speed of 0 or NaN from another executor")
def test_impossible_speed_is_ignored_and_said_once(graph: Callable[..., Graph]) -> None:
    running = graph(mode="open_loop").start()
    speed = running.robot.create_publisher(Float64, "executor/speed", LATCHED_QOS)
    running.wait(speed.get_subscription_count, "the match of the speed topic")
    for bad in (0.0, math.nan, -1.0, math.inf):
        speed.publish(Float64(data=bad))
        running.next_chunk()
    assert "speed should be between" in running.wait_for_log("ignored what came on executor/speed")
    assert len([line for line in running.logs if "executor/speed" in line]) == 1
    first, second = (stamp_seconds(running.next_chunk().header.stamp) for _ in range(2))
    # A chunk lasts 1 s, and an observation may be up to 0.3 s old.
    assert 0.7 < second - first < 1.5


def test_arming_ends_the_wait_of_an_open_loop_chunk(graph: Callable[..., Graph]) -> None:
    running = graph(mode="open_loop").start()
    state = running.robot.create_publisher(String, "executor/state", LATCHED_QOS)
    running.wait(state.get_subscription_count, "the match of the state topic")
    running.next_chunk()
    started = time.monotonic()
    state.publish(String(data="armed"))
    running.next_chunk()
    assert time.monotonic() - started < 0.9  # the chunk would last 1 s


def test_instruction_from_a_publisher_that_keeps_nothing_is_heard(graph: Callable[..., Graph]) -> None:
    running = graph(instruction="").start()
    terminal = running.robot.create_publisher(String, "instruction", NEWEST_QOS)
    running.wait(terminal.get_subscription_count, "the match of the instruction topic")
    terminal.publish(String(data="lift the blue cube"))
    assert running.next_chunk().header.frame_id.split(":")[1] == instruction_id("lift the blue cube")


def test_without_an_instruction_the_node_waits_for_one_and_says_so_once(graph: Callable[..., Graph]) -> None:
    running = graph(instruction="").start()
    running.wait_for_log("no instruction")
    assert running.no_chunk_comes()
    assert len([line for line in running.logs if "no instruction" in line]) == 1
    running.robot.instructions.publish(String(data="lift the blue cube"))
    message = running.next_chunk()
    assert message.header.frame_id.split(":")[1] == instruction_id("lift the blue cube")


def test_blank_instruction_on_the_topic_stops_inference(graph: Callable[..., Graph]) -> None:
    running = graph().start()
    running.next_chunk()
    running.robot.instructions.publish(String(data="  \n"))
    running.wait_for_log("no instruction")
    assert running.no_chunk_comes()


def test_new_instruction_ends_the_wait_of_an_open_loop_chunk(graph: Callable[..., Graph]) -> None:
    running = graph(mode="open_loop").start()
    running.next_chunk()
    started = time.monotonic()
    running.robot.instructions.publish(String(data="push the cube"))
    message = running.next_chunk()
    assert message.header.frame_id.split(":")[1] == instruction_id("push the cube")
    assert time.monotonic() - started < 0.9  # the chunk would last 1 s


def test_open_loop_infers_once_a_chunk(graph: Callable[..., Graph]) -> None:
    running = graph(mode="open_loop").start()
    first, second = (stamp_seconds(running.next_chunk().header.stamp) for _ in range(2))
    # A chunk lasts 1 s, and an observation may be up to 0.3 s old.
    assert 0.7 < second - first < 1.5


def test_compressed_transport_takes_the_compressed_topics(graph: Callable[..., Graph]) -> None:
    running = graph(transport="compressed")
    running.robot.encoding = "thermal9"  # the raw topics are of no use
    running.start().next_chunk()


def test_debug_image_is_drawn_for_a_listener(graph: Callable[..., Graph]) -> None:
    running = graph().start()
    running.next_chunk()
    running.robot.look_at_pictures()
    running.wait(lambda: running.robot.pictures, "a picture")
    picture = image_to_rgb(running.robot.pictures[-1], "debug_image")
    assert picture.shape[1] > 2 * 440


def test_exception_in_inference_leaves_the_node_alive_with_an_error(graph: Callable[..., Graph]) -> None:
    running = graph()
    assert running.change(Transition.TRANSITION_CONFIGURE)
    # A loaded policy that has lost a part of its network.
    del running.node._policy._model.vision_backbone
    assert running.change(Transition.TRANSITION_ACTIVATE)
    running.wait_for_log("inference stopped", "AttributeError")
    running.wait(
        lambda: any(s.level == DiagnosticStatus.ERROR for s in running.robot.diagnostics), "diagnostics of an error"
    )
    assert running.change(Transition.TRANSITION_DEACTIVATE)
    assert running.change(Transition.TRANSITION_CLEANUP)
    running.start().next_chunk()


def edited(checkpoint: Path, folder: Path, old: str, new: str) -> Path:
    """A copy of a checkpoint with another text in its contract."""
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "contract.json").unlink()
    text = (checkpoint / "contract.json").read_text()
    assert old in text
    (folder / "contract.json").write_text(text.replace(old, new))
    return folder


def refusal(capfd: pytest.CaptureFixture[str], **parameters: Any) -> str:
    """What a node prints that refuses to configure: exactly one line."""
    node = PolicyNode(parameter_overrides=[Parameter(name, value=value) for name, value in parameters.items()])
    capfd.readouterr()
    try:
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    finally:
        node.destroy_node()
    output = capfd.readouterr().err
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if "[policy]" in line]
    return line


def test_configure_without_a_checkpoint_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert "parameter checkpoint is empty" in refusal(capfd)


def test_configure_with_a_missing_checkpoint_is_refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "nowhere" in refusal(capfd, checkpoint=str(tmp_path / "nowhere"))


def test_configure_with_a_file_as_checkpoint_is_refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in refusal(capfd, checkpoint=str(tmp_path / "file"))


def test_configure_with_a_blank_instruction_is_refused(capfd: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    assert "instruction is blank" in refusal(capfd, checkpoint=str(checkpoint), instruction="  ")


def test_configure_with_too_many_replan_steps_is_refused(capfd: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    sentence = refusal(capfd, checkpoint=str(checkpoint), replan_steps=26)
    assert "replan_steps is 26" in sentence
    assert "25 steps" in sentence


def test_configure_for_another_robot_is_refused(
    capfd: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    other = edited(checkpoint, tmp_path / "other", '"robot": "aloha"', '"robot": "fr3"')
    sentence = refusal(capfd, checkpoint=str(other))
    assert "fr3" in sentence
    assert "aloha" in sentence


def test_configure_with_a_camera_the_robot_lacks_is_refused(
    capfd: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    other = edited(checkpoint, tmp_path / "other", '"cam_left_wrist"', '"cam_low"')
    assert "no camera cam_low" in refusal(capfd, checkpoint=str(other))


def test_configure_for_a_gpu_that_is_not_there_is_refused(capfd: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "CUDA" in refusal(capfd, checkpoint=str(checkpoint), device="cuda")


def test_mode_changes_while_it_runs_and_waiting_stretches_with_the_executors_speed(graph: Callable[..., Graph]) -> None:
    bench = graph(instruction=INSTRUCTION).start()
    bench.next_chunk()
    assert bench.node.set_parameters([Parameter("mode", value="open_loop")])[0].successful
    between = [stamp_seconds(bench.next_chunk().header.stamp) for _ in range(3)]
    assert between[2] - between[1] >= 1.0 - 0.05
    speed = bench.robot.create_publisher(Float64, "executor/speed", LATCHED_QOS)
    speed.publish(Float64(data=0.5))
    between = [stamp_seconds(bench.next_chunk().header.stamp) for _ in range(3)]
    assert between[2] - between[1] >= 2.0 - 0.05


def test_replan_steps_beyond_the_chunk_are_refused_while_it_runs(graph: Callable[..., Graph]) -> None:
    bench = graph(instruction=INSTRUCTION).start()
    result = bench.node.set_parameters([Parameter("replan_steps", value=400)])[0]
    assert not result.successful
    assert "0..25" in result.reason
    bench.next_chunk()


def test_unknown_mode_is_refused_at_start() -> None:
    from lightvla_core.errors import LightVLAError

    with pytest.raises(LightVLAError, match="open_loop, receding_horizon"):
        PolicyNode(parameter_overrides=[Parameter("mode", value="closed_loop")])


def test_interrupt_ends_the_process_within_three_seconds() -> None:
    command = [sys.executable, "-m", "lightvla_ros.policy_node", "--ros-args", "-r", "__node:=interrupted"]
    probe = Node("probe")
    client = probe.create_client(ChangeState, "interrupted/change_state")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert client.wait_for_service(timeout_sec=PATIENCE)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=3.0)
        assert time.monotonic() - started < 3.0
        assert process.returncode == 0
        assert "Traceback" not in errors
    finally:
        process.kill()
        probe.destroy_node()

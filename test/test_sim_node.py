"""The node `sim` as a process of its own, over real DDS: topics, stamps, commands, reset, pacing and its end."""

# ruff: noqa: E402  (ROS is imported only where it is installed)
from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

for needed in ("mujoco", "rclpy"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

import rclpy
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from lightvla_ros.sim.aloha import ARM_JOINTS, JOINT_NAMES, START_POSE

PATIENCE = 20.0
STATES = {arm: f"/{arm}/joint_states" for arm in ("follower_left", "follower_right")}
IMAGE = "/{}/camera/color/image_rect_raw"


class SimProcess:
    """The node under test and what it said on stderr."""

    def __init__(self, *parameters: str, namespace: str = "/", **environment: str) -> None:
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        arguments = [word for parameter in parameters for word in ("-p", parameter)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lightvla_ros.sim.sim_node", "--ros-args", "-r", f"__ns:={namespace}", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            env={**os.environ, **environment},
        )

    @property
    def said(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()

    def end(self, number: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.exit_status()

    def exit_status(self) -> int:
        try:
            return self.process.wait(timeout=PATIENCE)
        finally:
            self.process.kill()


class Listener:
    """A node beside the simulator. It keeps its subscriptions and publishers, because each match may take seconds."""

    def __init__(self) -> None:
        self.node = rclpy.create_node("listener")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._received: dict[str, list[Any]] = {}
        self._publishers: dict[str, Any] = {}

    def keep(self, kind: Any, topic: str) -> list[Any]:
        """What arrives on a topic from now on."""
        if topic not in self._received:
            self._received[topic] = []
            self.node.create_subscription(kind, topic, self._received[topic].append, qos_profile_sensor_data)
        self._received[topic].clear()
        return self._received[topic]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            self._executor.spin_once(timeout_sec=0.1)

    def publisher(self, topic: str) -> Any:
        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(JointTrajectory, topic, 1)
        publisher = self._publishers[topic]
        self.until(lambda: publisher.get_subscription_count() == 1)
        return publisher

    def call(self, client: Any, request: Any) -> Any:
        self.until(client.service_is_ready)
        future = client.call_async(request)
        self.until(future.done)
        return future.result()

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()


@pytest.fixture(scope="module")
def ros(ros_domain: int) -> Iterator[None]:
    rclpy.init(domain_id=ros_domain)
    yield
    rclpy.shutdown()


@pytest.fixture(scope="module")
def sim(ros: None) -> Iterator[SimProcess]:
    process = SimProcess("seed:=7", "camera_rate:=10.0", "image_width:=128")
    yield process
    assert process.end() == 0


@pytest.fixture(scope="module")
def listener(ros: None) -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


def stamp(message: Any) -> float:
    time_ = message.clock if isinstance(message, Clock) else message.header.stamp
    return float(time_.sec + time_.nanosec * 1e-9)


def trajectory(names: list[str], positions: list[float], seconds: float = 0.0) -> Any:
    reached = Duration(sec=int(seconds), nanosec=int(seconds % 1 * 1e9))
    return JointTrajectory(
        joint_names=names, points=[JointTrajectoryPoint(positions=positions, time_from_start=reached)]
    )


@pytest.mark.parametrize("arm", list(STATES))
def test_joint_states_have_the_drivers_names_and_start_pose(sim: SimProcess, listener: Listener, arm: str) -> None:
    states = listener.keep(JointState, STATES[arm])
    listener.until(lambda: len(states) >= 50)
    last = states[-1]
    assert tuple(last.name) == JOINT_NAMES
    np.testing.assert_allclose(last.position[:6], START_POSE, atol=0.02)
    assert len(last.velocity) == len(last.effort) == len(JOINT_NAMES)
    assert abs(listener.node.get_clock().now().nanoseconds * 1e-9 - stamp(last)) < 2.0


def test_images_are_rgb8_in_the_asked_size_and_stamped_as_the_joint_states(sim: SimProcess, listener: Listener) -> None:
    states = listener.keep(JointState, STATES["follower_left"])
    images = {camera: listener.keep(Image, IMAGE.format(camera)) for camera in ("cam_high", "cam_left_wrist")}
    listener.until(lambda: all(len(received) >= 5 for received in images.values()))
    newest = stamp(images["cam_high"][-1])
    listener.until(lambda: stamp(states[-1]) > newest)
    for camera, received in images.items():
        for image in received:
            assert (image.height, image.width, image.step, image.encoding) == (112, 128, 384, "rgb8")
            assert image.header.frame_id == camera
        assert np.frombuffer(received[-1].data, np.uint8).std() > 20
    assert newest in {stamp(state) for state in states}


def test_clock_never_goes_back(sim: SimProcess, listener: Listener) -> None:
    ticks = listener.keep(Clock, "/clock")
    listener.until(lambda: len(ticks) >= 50)
    assert all(a < b for a, b in zip(map(stamp, ticks), map(stamp, ticks[1:]), strict=False))


def test_diagnostics_tell_the_real_time_factor(sim: SimProcess, listener: Listener) -> None:
    arrays = listener.keep(DiagnosticArray, "/diagnostics")
    listener.until(lambda: bool(arrays))
    values = {pair.key: pair.value for pair in arrays[-1].status[0].values}
    assert float(values["real-time factor"]) > 0.0


def test_arm_trajectory_moves_the_named_joints(sim: SimProcess, listener: Listener) -> None:
    states = listener.keep(JointState, STATES["follower_right"])
    arm = listener.publisher("/follower_right/arm_controller/joint_trajectory")
    arm.publish(trajectory(["wrist_rotate", "waist"], [0.5, -0.3], 0.2))
    listener.until(lambda: bool(states) and abs(states[-1].position[0] + 0.3) < 0.03)
    listener.until(lambda: abs(states[-1].position[ARM_JOINTS.index("wrist_rotate")] - 0.5) < 0.03)
    arm.publish(trajectory(list(ARM_JOINTS), list(START_POSE)))
    listener.until(lambda: abs(states[-1].position[0]) < 0.03)


def test_gripper_trajectory_takes_motor_radians(sim: SimProcess, listener: Listener) -> None:
    states = listener.keep(JointState, STATES["follower_left"])
    gripper = listener.publisher("/follower_left/gripper_controller/joint_trajectory")
    finger = JOINT_NAMES.index("left_finger")
    gripper.publish(trajectory(["gripper"], [-0.6213]))
    listener.until(lambda: bool(states) and states[-1].position[finger] < 0.025)
    gripper.publish(trajectory(["gripper"], [1.4910]))
    listener.until(lambda: states[-1].position[finger] > 0.055)


def test_refused_command_is_told_once_and_moves_nothing(sim: SimProcess, listener: Listener) -> None:
    states = listener.keep(JointState, STATES["follower_left"])
    arm = listener.publisher("/follower_left/arm_controller/joint_trajectory")
    for _ in range(5):
        arm.publish(trajectory(["knee"], [1.0]))
        received = len(states)
        listener.until(lambda enough=received + 5: len(states) >= enough)  # type: ignore[misc]
    listener.until(lambda: "names the joint knee" in sim.said)
    assert sim.said.count("names the joint knee") == 1
    assert "Traceback" not in sim.said
    np.testing.assert_allclose(states[-1].position[:6], START_POSE, atol=0.03)


def test_trajectory_that_ended_in_the_past_is_refused(sim: SimProcess, listener: Listener) -> None:
    states = listener.keep(JointState, STATES["follower_left"])
    listener.until(lambda: bool(states))
    late = trajectory(["waist"], [1.0], 0.1)
    late.header.stamp.sec = states[-1].header.stamp.sec - 10
    listener.publisher("/follower_left/arm_controller/joint_trajectory").publish(late)
    listener.until(lambda: "expected an end in the future" in sim.said)
    assert abs(states[-1].position[0]) < 0.03


def test_trajectory_without_points_is_refused(sim: SimProcess, listener: Listener) -> None:
    gripper = listener.publisher("/follower_right/gripper_controller/joint_trajectory")
    gripper.publish(JointTrajectory(joint_names=["gripper"]))
    listener.until(lambda: "trajectory has no points" in sim.said)


def test_reset_puts_the_arms_back_and_reports_the_seed(sim: SimProcess, listener: Listener) -> None:
    states = listener.keep(JointState, STATES["follower_left"])
    arm = listener.publisher("/follower_left/arm_controller/joint_trajectory")
    arm.publish(trajectory(["waist"], [0.6]))
    listener.until(lambda: bool(states) and states[-1].position[0] > 0.5)
    answer = listener.call(listener.node.create_client(Trigger, "/sim/reset"), Trigger.Request())
    assert answer.success
    assert answer.message == "reset with seed 7"
    listener.until(lambda: abs(states[-1].position[0]) < 0.03)


@pytest.mark.skipif(
    importlib.util.find_spec("interbotix_xs_msgs") is None, reason="interbotix_xs_msgs is not in this environment"
)
def test_interbotix_commands_move_arm_and_gripper(sim: SimProcess, listener: Listener) -> None:
    from interbotix_xs_msgs.msg import JointGroupCommand, JointSingleCommand

    states = listener.keep(JointState, STATES["follower_left"])
    arm = listener.node.create_publisher(JointGroupCommand, "/follower_left/commands/joint_group", 1)
    gripper = listener.node.create_publisher(JointSingleCommand, "/follower_left/commands/joint_single", 1)
    listener.until(lambda: arm.get_subscription_count() == gripper.get_subscription_count() == 1)
    arm.publish(JointGroupCommand(name="arm", cmd=[0.3, *START_POSE[1:]]))
    gripper.publish(JointSingleCommand(name="gripper", cmd=-0.6213))
    listener.until(lambda: bool(states) and abs(states[-1].position[0] - 0.3) < 0.03)
    listener.until(lambda: states[-1].position[JOINT_NAMES.index("left_finger")] < 0.025)


def test_paced_by_clock_every_frame_is_rendered_and_stamps_are_simulated_time(ros: None, listener: Listener) -> None:
    states = listener.keep(JointState, "/paced/follower_left/joint_states")
    images = listener.keep(Image, "/paced/cam_high/camera/color/image_rect_raw")
    process = SimProcess("pace:=clock", "camera_rate:=20.0", "cameras:=[cam_high]", namespace="/paced")
    try:
        listener.until(lambda: len(states) >= 100 and len(images) >= 10)
    finally:
        assert process.end() == 0
    steps = np.diff([stamp(state) for state in states])
    np.testing.assert_allclose(steps, np.round(steps * 100) / 100, atol=1e-6)
    frames = np.diff([stamp(image) for image in images])
    np.testing.assert_allclose(frames, np.round(frames * 20) / 20, atol=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(ros: None, listener: Listener, number: int) -> None:
    states = listener.keep(JointState, f"/ended{int(number)}/follower_left/joint_states")
    process = SimProcess(namespace=f"/ended{int(number)}")
    try:
        listener.until(lambda: len(states) >= 5)
    finally:
        assert process.end(number) == 0
    assert "Traceback" not in process.said


@pytest.mark.parametrize(
    ("parameter", "environment", "sentence"),
    [
        ("cameras:=[cam_low]", {}, "no camera cam_low"),
        ("pace:=warp", {}, "pace should be one of real_time, clock"),
        ("image_width:=100000", {}, "image_width"),
        ("seed:=1", {"MUJOCO_GL": "vulkan"}, "MUJOCO_GL"),
    ],
)
def test_bad_start_is_one_sentence_and_no_traceback(
    ros_domain: int, parameter: str, environment: dict[str, str], sentence: str
) -> None:
    process = SimProcess(parameter, **environment)
    assert process.exit_status() != 0
    assert sentence in process.said
    assert "Traceback" not in process.said
    assert len(process.said.strip().splitlines()) == 1

"""`lightvla bench cameras`: how old the newest frames are and what the policy node itself costs, with real topics.

Three 640x480 rgb8 cameras at 30 Hz and two arms at 100 Hz come from a process of their own, which lives here too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lightvla_core.contract import FILE_NAME, PolicyContract
from lightvla_ros.benchmark import bench_folder, hardware, print_table
from lightvla_ros.process_group import interrupt_on_sigterm, running, write_tiny_checkpoint
from lightvla_ros.processes import Process, Value, transport_environment

CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
_HEIGHT, _WIDTH, _FRAME_RATE, _STATE_RATE = 480, 640, 30.0, 100.0
_INSTRUCTION = "pick up the red cube"
_TIMEOUT = 60.0


def run_cameras(seconds: float) -> None:
    """Measure for so long (s) without inference, then for as long with it, and print the table."""
    interrupt_on_sigterm()
    console, headline = Console(), hardware()
    with bench_folder() as folder:
        checkpoint = folder / "tiny"
        write_tiny_checkpoint(checkpoint)
        _three_cameras(checkpoint)
        with running(_graph(checkpoint), folder) as group:
            idle, inferring = _measure(group, seconds)
    rows = [
        ("frame age p99, no inference", idle["frame age p99 ms"], "ms"),
        *((f"{name}, no inference", idle[f"rate {name}"], "Hz") for name in CAMERAS),
        *((f"{name}, inferring", inferring[f"rate {name}"], "Hz") for name in CAMERAS),
        ("overhead p99 (newest message in, chunk out)", inferring["overhead p99 ms"], "ms"),
        ("inference p50, beside it", inferring["inference p50 ms"], "ms"),
    ]
    print_table(console, headline, f"3 cameras 640x480 rgb8 at 30 Hz, {seconds:g} s each", rows)


def _graph(checkpoint: Path) -> tuple[Process, ...]:
    transport = transport_environment()
    parameters: dict[str, Value] = {"checkpoint": str(checkpoint), "torch_threads": 1}
    return (
        Process("camera_source", __name__, {}, transport),
        Process("policy_node", "lightvla_ros.policy_node", parameters, {**transport, "OMP_WAIT_POLICY": "passive"}),
    )


def _measure(alive: Any, seconds: float) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The policy node's diagnostics without an instruction, and with one."""
    import rclpy
    from lifecycle_msgs.msg import Transition
    from rclpy.signals import SignalHandlerOptions
    from std_msgs.msg import String

    from lightvla_ros.graph_operator import GraphOperator
    from lightvla_ros.lifecycle import LATCHED_QOS

    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        operator = GraphOperator(alive=alive)
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            operator.change("policy", transition, _TIMEOUT)
        idle = _watch(operator, seconds)
        instruction = operator.create_publisher(String, "instruction", LATCHED_QOS)
        instruction.publish(String(data=_INSTRUCTION))
        return idle, _watch(operator, seconds)
    finally:
        rclpy.try_shutdown()


def _watch(operator: Any, seconds: float) -> Mapping[str, str]:
    """The policy's diagnostics after so long, and the rate of every camera meanwhile."""

    def counts() -> dict[str, int]:
        return {name: int(operator.values("policy")[f"messages {name}"]) for name in CAMERAS}

    operator.spin_until(
        lambda: all(operator.values("policy").get(f"messages {name}", "0") != "0" for name in CAMERAS),
        _TIMEOUT,
        "no image has arrived",
    )
    before, began = counts(), time.monotonic()
    operator.watch(seconds)
    elapsed = time.monotonic() - began
    rates = {f"rate {name}": f"{(after - before[name]) / elapsed:.1f}" for name, after in counts().items()}
    return {**operator.values("policy"), **rates}


def _three_cameras(checkpoint: Path) -> None:
    """Give the tiny preset's contract a third camera; its weights serve any number."""
    path = checkpoint / FILE_NAME
    contract = PolicyContract.from_file(path)
    cameras = tuple(replace(contract.cameras[0], name=name) for name in CAMERAS)
    path.write_text(replace(contract, cameras=cameras).to_json())


def _publish() -> None:
    """Cameras and arms, until a signal ends the process."""
    import array

    import rclpy
    from rclpy.executors import ExternalShutdownException
    from sensor_msgs.msg import Image, JointState

    from lightvla_ros.lifecycle import SENSOR_QOS
    from lightvla_ros.robots.description_file import load_robot

    rclpy.init()
    node = rclpy.create_node("camera_source")
    robot = load_robot("aloha", "aloha1")
    cameras = [node.create_publisher(Image, robot.camera_topic(name), SENSOR_QOS) for name in CAMERAS]
    arms = {
        arm: node.create_publisher(JointState, topic, SENSOR_QOS) for arm, topic in robot.joint_state_topics.items()
    }
    image = Image(height=_HEIGHT, width=_WIDTH, encoding="rgb8", step=3 * _WIDTH)
    image.data = array.array("B", bytes(range(256)) * (_HEIGHT * _WIDTH * 3 // 256))

    def show() -> None:
        for camera in cameras:
            image.header.stamp = node.get_clock().now().to_msg()
            camera.publish(image)

    def move() -> None:
        for arm, publisher in arms.items():
            channels = [c for c in robot.channels if c.arm == arm]
            state = JointState(name=[c.state_joint for c in channels], position=[c.start for c in channels])
            state.header.stamp = node.get_clock().now().to_msg()
            publisher.publish(state)

    node.create_timer(1.0 / _FRAME_RATE, show)
    node.create_timer(1.0 / _STATE_RATE, move)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)


if __name__ == "__main__":
    _publish()

"""The executor node over real DDS, in a process of its own, as a lab would run it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from executor_fixtures import START, aloha_contract, chunk, joint_positions
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from lightvla_ros.chunk_message import to_message
from lightvla_ros.lifecycle import LATCHED_QOS, NEWEST_QOS, SENSOR_QOS

CONTRACT = aloha_contract()
ARM_TOPIC = "follower_left/arm_controller/joint_trajectory"


class Bench:
    """The policy's and the drivers' side of the graph: what the executor hears, and what it says."""

    def __init__(self, domain: int) -> None:
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("bench", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.states = {
            arm: self.node.create_publisher(JointState, f"{arm}/joint_states", SENSOR_QOS)
            for arm in ("follower_left", "follower_right")
        }
        self.chunks = self.node.create_publisher(JointTrajectory, "policy/action_chunk", NEWEST_QOS)
        self.contract = self.node.create_publisher(String, "policy/contract", LATCHED_QOS)
        self.instruction = self.node.create_publisher(String, "instruction", LATCHED_QOS)
        self.state, self.commands, self.previews, self.diagnostics = "", list[Any](), list[Any](), list[Any]()
        self.node.create_subscription(String, "executor/state", self._on_state, LATCHED_QOS)
        self.node.create_subscription(JointTrajectory, ARM_TOPIC, self.commands.append, 10)
        self.node.create_subscription(JointTrajectory, "executor/preview", self.previews.append, 10)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, 10)
        self.node.create_timer(0.02, self._publish_states)
        self.feeding = False
        self.sequence = 0

    def _on_state(self, message: Any) -> None:
        self.state = message.data

    def _publish_states(self) -> None:
        if not self.feeding:
            return
        for publisher in self.states.values():
            positions = joint_positions()
            message = JointState(name=list(positions), position=list(positions.values()))
            message.header.stamp = self.node.get_clock().now().to_msg()
            publisher.publish(message)

    def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, kind: Any, service: str, request: Any) -> Any:
        client = self.node.create_client(kind, service)
        self.until(client.service_is_ready)
        future = client.call_async(request)
        self.until(future.done)
        self.node.destroy_client(client)
        return future.result()

    def change(self, transition: int) -> bool:
        request = ChangeState.Request()
        request.transition.id = transition
        return bool(self.call(ChangeState, "executor/change_state", request).success)

    def trigger(self, service: str) -> tuple[bool, str]:
        response = self.call(Trigger, f"executor/{service}", Trigger.Request())
        return response.success, response.message

    def send_chunk(self, waist: float) -> None:
        goal = START.copy()
        goal[0] = waist
        self.sequence += 1
        stamp = self.node.get_clock().now().nanoseconds * 1e-9
        self.chunks.publish(to_message(chunk(CONTRACT, goal, stamp, self.sequence)))

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def executor_process(ros_domain: int, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    arguments = ["--ros-args", "-p", "real_time_priority:=0", "-p", "starvation_timeout:=0.5"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lightvla_ros.executor_node", *arguments], stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def bench(ros_domain: int, executor_process: subprocess.Popen[bytes]) -> Iterator[Bench]:
    bench = Bench(ros_domain)
    yield bench
    bench.close()


def bring_up(bench: Bench) -> None:
    """Configured, active, and fed with joint states."""
    bench.contract.publish(String(data=CONTRACT.to_json()))
    bench.instruction.publish(String(data="pick up the cube"))
    bench.until(lambda: bench.contract.get_subscription_count() == 1)
    bench.until(lambda: bench.change(1))
    assert bench.change(3)
    bench.feeding = True
    bench.until(lambda: all(p.get_subscription_count() == 1 for p in (*bench.states.values(), bench.chunks)))
    bench.until(lambda: bench.node.count_publishers(ARM_TOPIC) == 1)


def test_configure_without_a_contract_or_with_a_foreign_one_is_refused(bench: Bench, tmp_path: Path) -> None:
    assert not bench.change(1)
    assert "no contract has arrived on /policy/contract yet" in (tmp_path / "log").read_text()
    bench.contract.publish(String(data=aloha_contract(robot="libero").to_json()))
    bench.until(lambda: bench.contract.get_subscription_count() == 1)
    bench.until(lambda: not bench.change(1) and "trained for robot libero" in (tmp_path / "log").read_text())


def test_preview_arm_command_starve_and_signal(
    bench: Bench, executor_process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert bench.trigger("arm") == (False, "the executor is not active; configure and activate it first")
    bring_up(bench)

    bench.send_chunk(0.3)
    bench.until(lambda: len(bench.previews) > 0)
    assert bench.previews[-1].points[0].positions[0] == pytest.approx(0.1)
    assert bench.commands == []

    intruder = bench.node.create_publisher(JointTrajectory, ARM_TOPIC, NEWEST_QOS)
    bench.until(lambda: "other publisher(s) on /follower_left" in bench.trigger("arm")[1])
    bench.node.destroy_publisher(intruder)
    bench.until(lambda: bench.trigger("arm")[0])
    bench.until(lambda: bench.state == "armed")

    bench.send_chunk(0.3)
    bench.until(lambda: len(bench.commands) > 8)
    waist = np.array([c.points[0].positions[0] for c in bench.commands])
    assert waist[-1] == pytest.approx(0.3)
    assert np.abs(np.diff(waist)).max() <= 0.1 + 1e-6

    bench.until(lambda: bench.state.startswith("stopped: starvation"))
    count = len(bench.commands)
    bench.until(lambda: len(bench.commands) >= count + 3)
    assert bench.commands[-1].points[0].positions[0] == pytest.approx(0.3)
    bench.until(lambda: any("starvation" in d.status[0].message for d in bench.diagnostics))

    assert bench.trigger("disarm") == (True, "disarmed")
    executor_process.send_signal(signal.SIGINT)
    assert executor_process.wait(timeout=3.0) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_signal_while_armed_ends_with_the_latched_target(bench: Bench, executor_process: Any) -> None:
    bring_up(bench)
    bench.until(lambda: bench.trigger("arm")[0])
    bench.send_chunk(0.3)
    bench.until(lambda: len(bench.commands) > 2)
    executor_process.send_signal(signal.SIGTERM)
    bench.until(lambda: executor_process.poll() is not None, 3.0)
    assert executor_process.returncode == 0
    bench.until(lambda: bench.state == "disarmed" or len(bench.commands) > 3)
    assert abs(bench.commands[-1].points[0].positions[0] - bench.commands[-2].points[0].positions[0]) <= 0.1 + 1e-6


def test_executor_needs_no_torch() -> None:
    code = "import sys, lightvla_ros.executor_node; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert output.stdout.strip() == "False"

"""The executor node in a process of its own, and the policy's and the drivers' side of its graph."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from executor_fixtures import START, aloha_contract, chunk, joint_positions
from live_node import LiveNode, end
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from lightvla_ros.chunk_message import to_message
from lightvla_ros.lifecycle import LATCHED_QOS, NEWEST_QOS, SENSOR_QOS

CONTRACT = aloha_contract()
ARM_TOPIC = "follower_left/arm_controller/joint_trajectory"


class Bench(LiveNode):
    """The policy's and the drivers' side of the graph: what the executor hears, and what it says."""

    def __init__(self, domain: int) -> None:
        super().__init__(domain)
        self.states = {
            arm: self.node.create_publisher(JointState, f"{arm}/joint_states", SENSOR_QOS)
            for arm in ("follower_left", "follower_right")
        }
        self.chunks = self.node.create_publisher(JointTrajectory, "policy/action_chunk", NEWEST_QOS)
        self.contract = self.node.create_publisher(String, "policy/contract", LATCHED_QOS)
        self.instruction = self.node.create_publisher(String, "instruction", LATCHED_QOS)
        self.commands, self.previews, self.diagnostics = list[Any](), list[Any](), list[Any]()
        self.node.create_subscription(JointTrajectory, ARM_TOPIC, self.commands.append, 10)
        self.node.create_subscription(JointTrajectory, "executor/preview", self.previews.append, 10)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, 10)
        self.node.create_timer(0.02, self._publish_states)
        self.feeding = False
        # What becomes of a joint state of an arm on its way: the messages that are sent instead.
        self.alter_state: Callable[[str, Any], list[Any]] = lambda arm, message: [message]
        self.sequence = 0

    def stamp(self) -> Any:
        """Now, on the clock that headers are stamped with."""
        return self.node.get_clock().now().to_msg()

    def _publish_states(self) -> None:
        if not self.feeding:
            return
        for arm, publisher in self.states.items():
            positions = joint_positions()
            message = JointState(name=list(positions), position=list(positions.values()))
            message.header.stamp = self.stamp()
            for altered in self.alter_state(arm, message):
                publisher.publish(altered)

    def set_parameters(self, **values: Any) -> list[str]:
        """One answer a parameter: '' where it was taken, else the reason of the refusal."""
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        request = SetParameters.Request(parameters=parameters)
        return [r.reason for r in self.call(SetParameters, "executor/set_parameters", request).results]

    def diagnosed(self, key: str) -> float:
        """A number of the newest diagnostics; NaN where there is none yet."""
        values = {p.key: p.value for d in self.diagnostics[-1:] for p in d.status[0].values}
        return float(values.get(key, "nan"))

    def send_chunk(self, waist: float, last: float | None = None) -> None:
        """Steps that hold one position of the left waist, or go evenly from it to a last one, rad."""
        goal = np.tile(START, (CONTRACT.chunk_length, 1))
        goal[:, 0] = np.linspace(waist, waist if last is None else last, len(goal))
        self.sequence += 1
        stamp = self.node.get_clock().now().nanoseconds * 1e-9
        self.chunks.publish(to_message(chunk(CONTRACT, goal, stamp, self.sequence)))


@contextmanager
def executor_process(log: Path, **parameters: object) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m lightvla_ros.executor_node` with these parameters; ended at the end."""
    given = {"real_time_priority": 0, "starvation_timeout": 0.5, **parameters}
    assignments = [part for name, value in given.items() for part in ("-p", f"{name}:={str(value).lower()}")]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lightvla_ros.executor_node", "--ros-args", *assignments],
            stdout=output,
            stderr=output,
        )
        try:
            yield process
        finally:
            end(process)


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

"""A node beside the processes under test: it waits, calls their services, hears the executor's state, and ends them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import rclpy
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from std_msgs.msg import String
from std_srvs.srv import Trigger

from lightvla_ros.lifecycle import LATCHED_QOS

# A policy loads torch before it appears, and a checkpoint in its configuration, s.
LOADING = 40.0


class LiveNode:
    """state: the executor's newest; states_heard: all of them"""

    def __init__(self, domain: int) -> None:
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("bench", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.state, self.states_heard = "", list[str]()
        self.node.create_subscription(String, "executor/state", self._on_state, LATCHED_QOS)

    def situation(self) -> str:
        """For whoever reads why a test waited in vain."""
        return f"the executor is {self.state!r}"

    def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited in vain; {self.situation()}"
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, kind: Any, service: str, request: Any) -> Any:
        """Asked again after a while: Fast DDS drops an answer to a client that the server has not discovered yet."""
        client = self.node.create_client(kind, service)
        self.until(client.service_is_ready, LOADING)
        answers: list[Any] = []
        for _ in range(3):
            future = client.call_async(request)
            future.add_done_callback(lambda done: answers.append(done.result()))
            until = time.monotonic() + LOADING / 3
            self.until(lambda until=until: bool(answers) or time.monotonic() > until, LOADING)
            if answers:
                break
        self.node.destroy_client(client)
        assert answers, f"{service} did not answer; {self.situation()}"
        return answers[0]

    def change(self, transition: int, node: str = "executor") -> bool:
        request = ChangeState.Request()
        request.transition.id = transition
        return bool(self.call(ChangeState, f"{node}/change_state", request).success)

    def trigger(self, service: str) -> tuple[bool, str]:
        response = self.call(Trigger, f"executor/{service}", Trigger.Request())
        return response.success, response.message

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def _on_state(self, message: Any) -> None:
        self.state = message.data
        self.states_heard.append(message.data)


def end(*processes: subprocess.Popen[bytes]) -> None:
    """In order: a killed process may leave shared memory half written, over which the middleware of others stumbles."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

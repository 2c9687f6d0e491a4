"""Publishers and action clients for what a robot's adapter wants sent. What is sent, and when, is the adapter's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.action import ActionClient

from lightvla_core.errors import LightVLAError
from lightvla_ros.lifecycle import NEWEST_QOS
from lightvla_ros.robots.adapter import Endpoint, RobotAdapter, States
from lightvla_ros.safety import Now


class Commanders:
    """Everything through which one node commands one robot. Sending never blocks."""

    def __init__(self, node: Any, adapter: RobotAdapter) -> None:
        self._node, self._adapter = node, adapter
        self._publishers = {
            e.name: node.create_publisher(e.message, e.name, NEWEST_QOS) for e in adapter.endpoints if e.kind == "topic"
        }
        self._actions = {e.name: _Action(node, e) for e in adapter.endpoints if e.kind == "action"}

    def refuse_competition(self) -> None:
        """Raise LightVLAError where somebody else commands this robot, or nobody could take an action's goals."""
        parts = {endpoint.name: endpoint.part for endpoint in self._adapter.endpoints}
        for name, publisher in self._publishers.items():
            others = self._node.count_publishers(publisher.topic_name) - 1
            if others > 0:
                raise LightVLAError(
                    f"cannot arm: {others} other publisher(s) on {publisher.topic_name} would command {parts[name]} too"
                )
        for name, action in self._actions.items():
            if not action.ready():
                raise LightVLAError(f"cannot arm: there is no action server {name} for {parts[name]}")

    def send(self, command: NDArray[np.float64], states: States, now: Now) -> None:
        """command: (channels,), contract order"""
        for name, message in self._adapter.messages(command, states, now):
            if name in self._publishers:
                self._publishers[name].publish(message)
            else:
                self._send_goal(name, message)

    def close(self) -> None:
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        for action in self._actions.values():
            action.close()
        self._publishers, self._actions = {}, {}

    def _send_goal(self, name: str, goal: Any) -> None:
        # A goal under way would make the next one wait, or fail with it.
        for action in self._actions.values():
            action.cancel()
        self._actions[name].send(goal)


class _Action:
    """One action client; its answers come on the node's executor."""

    def __init__(self, node: Any, endpoint: Endpoint) -> None:
        self._node, self._name = node, endpoint.name
        self._client = ActionClient(node, endpoint.message, endpoint.name)
        self._handle: Any = None

    def ready(self) -> bool:
        return bool(self._client.server_is_ready())

    def send(self, goal: Any) -> None:
        self._client.send_goal_async(goal).add_done_callback(self._on_answer)

    def cancel(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.cancel_goal_async()

    def close(self) -> None:
        self._client.destroy()

    def _on_answer(self, future: Any) -> None:
        handle = future.result()
        if not handle.accepted:
            self._node.get_logger().warning(f"{self._name} refused a goal")
            return
        self._handle = handle
        handle.get_result_async().add_done_callback(self._on_result)

    def _on_result(self, future: Any) -> None:
        self._handle = None
        result = future.result().result
        if not getattr(result, "success", True):
            self._node.get_logger().warning(f"{self._name} did not succeed: {result.error or 'no reason given'}")

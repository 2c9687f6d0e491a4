"""Publishers and action clients for what a robot's adapter wants sent. What is sent, and when, is the adapter's."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from action_msgs.msg import GoalStatus
from numpy.typing import NDArray
from rclpy.action import ActionClient

from lightvla_core.errors import LightVLAError
from lightvla_ros.lifecycle import NEWEST_QOS
from lightvla_ros.robots.adapter import Endpoint, RobotAdapter, States
from lightvla_ros.robots.messages import require_finite
from lightvla_ros.safety import Now

# How long the end of a cancelled goal is waited for; a server that is gone never tells, s.
_PATIENCE = 3.0


class Commanders:
    """Everything through which one node commands one robot. Sending never blocks."""

    def __init__(self, node: Any, adapter: RobotAdapter) -> None:
        self._node, self._adapter = node, adapter
        self._publishers = {
            e.name: node.create_publisher(e.message, e.name, NEWEST_QOS) for e in adapter.endpoints if e.kind == "topic"
        }
        self._goals = Goals(node, adapter, [e for e in adapter.endpoints if e.kind == "action"])

    def refuse_competition(self) -> None:
        """Raise LightVLAError where somebody else commands this robot, or nobody could take an action's goals."""
        parts = {endpoint.name: endpoint.part for endpoint in self._adapter.endpoints}
        for name, publisher in self._publishers.items():
            others = self._node.count_publishers(publisher.topic_name) - 1
            if others > 0:
                raise LightVLAError(
                    f"cannot arm: {others} other publisher(s) on {publisher.topic_name} would command {parts[name]} too"
                )
        for name in self._goals.without_server():
            raise LightVLAError(f"cannot arm: there is no action server {name} for {parts[name]}")

    def send(self, command: NDArray[np.float64], states: States, now: Now, holding: bool) -> None:
        """command: (channels,), contract order; holding: see RobotAdapter.messages

        Raises LightVLAError for what is not finite: then nothing of it is sent.
        """
        require_finite(command.tolist(), "a command")
        for name, message in list(self._adapter.messages(command, states, now, holding)):
            if name in self._publishers:
                self._publishers[name].publish(message)
            else:
                self._goals.request(name, message)
        if holding:
            self._goals.stop()
        self._goals.press()

    def close(self) -> None:
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        self._goals.close()
        self._publishers = {}


@dataclass(eq=False)
class _Goal:
    """handle: once it is accepted; cancelled: when that was asked for, s, steady clock"""

    name: str
    message: Any
    handle: Any = None
    cancelled: float | None = None


class Goals:
    """The actions of one gripper, one goal at a time.

    A server may run every goal on a thread of its own (franka_ros2 does) and stop the gripper when it sees a cancelled
    one, which would end the motion after it too: so the next goal goes out when the one before has its result.
    Only request, stop and press are for the control loop's thread; all else happens on the node's executor, because
    an ActionClient may not be used from two threads at once.
    """

    def __init__(self, node: Any, adapter: RobotAdapter, endpoints: list[Endpoint]) -> None:
        self._node, self._adapter = node, adapter
        self._clients = {e.name: ActionClient(node, e.message, e.name) for e in endpoints}
        self._wake = node.create_guard_condition(self._work)
        # At most one, and taken and given by single operations, which need no lock between the two threads.
        self._wanted: deque[_Goal] = deque(maxlen=1)
        self._current: _Goal | None = None
        self._stopping = False

    def without_server(self) -> list[str]:
        return [name for name, client in self._clients.items() if not client.server_is_ready()]

    def request(self, name: str, message: Any) -> None:
        """Send this goal as soon as the one under way is cancelled; a goal that still waits for that is forgotten."""
        self._stopping = False
        self._wanted.append(_Goal(name, message))

    def stop(self) -> None:
        """Forget the goal that waits, and cancel the one under way: a hand that moves stops.

        One that has its object goes on gripping, if the server has told so: until then it is under way.
        """
        self._wanted.clear()
        if not self._stopping:
            self._stopping = True
            self._wake.trigger()

    def press(self) -> None:
        """Called every period: while a goal waits, the executor looks what it waits for."""
        if self._wanted:
            self._wake.trigger()

    def close(self) -> None:
        self._wanted.clear()
        if self._current is not None:
            self._cancel(self._current)
        self._current = None
        self._node.destroy_guard_condition(self._wake)
        for client in self._clients.values():
            client.destroy()
        self._clients = {}

    def _work(self) -> None:
        if self._stopping and self._current is not None:
            self._cancel(self._current)
        if not self._wanted or not self._free():
            return
        try:
            goal = self._current = self._wanted.popleft()
        except IndexError:  # dropped a moment ago
            return
        self._clients[goal.name].send_goal_async(goal.message).add_done_callback(partial(self._on_answer, goal))

    def _free(self) -> bool:
        """Whether no goal is under way; asks one that is to end."""
        goal = self._current
        if goal is None:
            return True
        self._cancel(goal)
        return self._given_up(goal)

    def _cancel(self, goal: _Goal) -> None:
        """Once; one that is not accepted yet is cancelled when it is."""
        if goal.cancelled is None:
            goal.cancelled = time.monotonic()
            if goal.handle is not None:
                goal.handle.cancel_goal_async()

    def _given_up(self, goal: _Goal) -> bool:
        assert goal.cancelled is not None
        if time.monotonic() - goal.cancelled < _PATIENCE:
            return False
        self._node.get_logger().warning(f"{goal.name} did not end a goal within {_PATIENCE:g} s; sending the next one")
        self._current = None
        return True

    def _on_answer(self, goal: _Goal, future: Any) -> None:
        handle = future.result()
        if not handle.accepted:
            self._end(goal, "refused a goal", accepted=False)
            return
        goal.handle = handle
        if goal.cancelled is not None:
            handle.cancel_goal_async()
        handle.get_result_async().add_done_callback(partial(self._on_result, goal))

    def _on_result(self, goal: _Goal, future: Any) -> None:
        answer = future.result()
        done = answer.status == GoalStatus.STATUS_SUCCEEDED and getattr(answer.result, "success", True)
        self._end(goal, "" if done else f"did not succeed: {getattr(answer.result, 'error', '') or 'no reason given'}")

    def _end(self, goal: _Goal, trouble: str = "", accepted: bool = True) -> None:
        # A goal that was given up may still end, when another is under way.
        if goal is not self._current:
            return
        self._current = None
        if trouble and goal.cancelled is None:
            self._node.get_logger().warning(f"{goal.name} {trouble}")
            self._adapter.goal_failed(goal.message, accepted)
        self._work()

"""Goals to a gripper, over DDS against an action server that behaves as franka_ros2's: one at a time, none lost.

In the driver's message types, which `make test` generates (test/interfaces).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("franka_msgs", reason="the drivers' messages are not here; `make test` generates them")

import rclpy
from franka_msgs.action import Grasp, Move
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.context import Context
from rclpy.executors import MultiThreadedExecutor, SingleThreadedExecutor
from test_robot_franka import ROBOT, STATES, contract

from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.commanders import Commanders
from lightvla_ros.robots.franka import FrankaAdapter
from lightvla_ros.safety import Now

OPEN, CLOSED = (np.array([0.0] * 6 + [value]) for value in (1.0, -1.0))


class Hand:
    """Goals run until they are told to end; a cancelled one takes a while to stop the fingers."""

    def __init__(self, node: Any) -> None:
        self.events: list[str] = []
        self.refuse = 0
        self.abort = 0
        self.cancelled, self.finish = threading.Event(), threading.Event()
        group = ReentrantCallbackGroup()
        self._servers = [
            ActionServer(
                node, kind, f"franka_gripper/{name}", self._run(name, kind), callback_group=group,
                goal_callback=self._answer, cancel_callback=self._cancel,
            )
            for name, kind in (("move", Move), ("grasp", Grasp))
        ]  # fmt: skip

    @property
    def running(self) -> bool:
        begun, ended = (sum(event.endswith(word) for event in self.events) for word in ("begins", "ends"))
        return begun > ended

    def close(self) -> None:
        for server in self._servers:
            server.destroy()

    def _answer(self, goal: Any) -> Any:
        self.refuse -= 1
        return GoalResponse.ACCEPT if self.refuse < 0 else GoalResponse.REJECT

    def _cancel(self, goal: Any) -> Any:
        self.cancelled.set()
        return CancelResponse.ACCEPT

    def _run(self, name: str, kind: Any) -> Callable[[Any], Any]:
        def run(goal: Any) -> Any:
            self.events.append(f"{name} begins")
            while not (goal.is_cancel_requested or self.finish.is_set()):
                time.sleep(0.01)
            if goal.is_cancel_requested:
                time.sleep(0.2)
                goal.canceled()
            elif self.abort > 0:
                self.abort -= 1
                goal.abort()
            else:
                goal.succeed()
            self.events.append(f"{name} ends")
            return kind.Result(success=goal.status == 4)

        return run


class Bench:
    def __init__(self, domain: int) -> None:
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.nodes = [rclpy.create_node(name, context=self.context) for name in ("hand", "commander")]
        self.executors = [
            MultiThreadedExecutor(4, context=self.context),
            SingleThreadedExecutor(context=self.context),
        ]
        self.hand = Hand(self.nodes[0])
        self.commanders = Commanders(self.nodes[1], FrankaAdapter(contract(), ROBOT, "twist", 0.05, "broadcaster"))
        self.ending = threading.Event()
        self.threads = [threading.Thread(target=self._spin, args=(each,), daemon=True) for each in self.executors]
        for node, executor, thread in zip(self.nodes, self.executors, self.threads, strict=True):
            executor.add_node(node)
            thread.start()
        end = time.monotonic() + 20.0
        while not self._ready():
            assert time.monotonic() < end, "the action servers were not found"
            time.sleep(0.02)

    def _spin(self, executor: Any) -> None:
        while not self.ending.is_set():
            executor.spin_once(timeout_sec=0.05)

    def _ready(self) -> bool:
        try:
            self.commanders.refuse_competition()
        except LightVLAError:
            return False
        return True

    def send(self, command: Any, holding: bool = False) -> None:
        self.commanders.send(command, STATES, Now(time.time(), time.monotonic()), holding)

    def send_until(self, command: Any, condition: Callable[[], bool], holding: bool = False) -> None:
        end = time.monotonic() + 20.0
        while not condition():
            assert time.monotonic() < end, f"waited in vain; {self.hand.events}"
            self.send(command, holding)
            time.sleep(0.02)

    def close(self) -> None:
        self.hand.finish.set()
        end = time.monotonic() + 5.0
        while self.hand.running and time.monotonic() < end:
            time.sleep(0.02)
        self.ending.set()
        for executor, thread in zip(self.executors, self.threads, strict=True):
            thread.join(5.0)
            executor.shutdown(timeout_sec=5.0)
        self.commanders.close()
        self.hand.close()
        for node in self.nodes:
            node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def bench(ros_domain: int) -> Iterator[Bench]:
    bench = Bench(ros_domain)
    yield bench
    bench.close()


def test_a_goal_begins_when_the_one_before_has_ended(bench: Bench) -> None:
    bench.send_until(CLOSED, lambda: bench.hand.events == ["grasp begins"])
    bench.send_until(OPEN, lambda: "move begins" in bench.hand.events)
    assert bench.hand.events == ["grasp begins", "grasp ends", "move begins"]


def test_the_end_of_a_cancelled_goal_leaves_the_next_one_cancellable(bench: Bench) -> None:
    bench.send_until(CLOSED, lambda: bench.hand.events == ["grasp begins"])
    bench.send_until(OPEN, lambda: "move begins" in bench.hand.events)
    bench.send_until(CLOSED, lambda: bench.hand.events.count("grasp begins") == 2)
    assert bench.hand.events[-3:] == ["move begins", "move ends", "grasp begins"]


def test_a_goal_that_waits_is_dropped_by_a_stop(bench: Bench) -> None:
    bench.send_until(CLOSED, lambda: bench.hand.events == ["grasp begins"])
    bench.send_until(OPEN, lambda: bench.hand.cancelled.is_set())
    bench.send_until(OPEN, lambda: "grasp ends" in bench.hand.events, holding=True)
    end = time.monotonic() + 0.5
    bench.send_until(OPEN, lambda: time.monotonic() > end, holding=True)
    assert "move begins" not in bench.hand.events


def test_a_goal_under_way_is_cancelled_by_a_stop(bench: Bench) -> None:
    bench.send_until(CLOSED, lambda: bench.hand.events == ["grasp begins"])
    bench.send_until(CLOSED, lambda: "grasp ends" in bench.hand.events, holding=True)
    assert bench.hand.cancelled.is_set()


def test_a_grasp_that_has_its_object_is_not_let_go_by_a_stop(bench: Bench) -> None:
    bench.hand.finish.set()
    bench.send_until(CLOSED, lambda: "grasp ends" in bench.hand.events)
    end = time.monotonic() + 0.5
    bench.send_until(CLOSED, lambda: time.monotonic() > end)
    bench.send_until(CLOSED, lambda: time.monotonic() > end + 0.5, holding=True)
    assert not bench.hand.cancelled.is_set()


def test_a_refused_and_a_failed_goal_are_sent_again(bench: Bench) -> None:
    bench.hand.refuse, bench.hand.abort = 1, 1
    bench.hand.finish.set()
    bench.send_until(OPEN, lambda: bench.hand.events.count("move ends") == 2)
    end = time.monotonic() + 1.0
    bench.send_until(OPEN, lambda: time.monotonic() > end)
    assert bench.hand.events == ["move begins", "move ends"] * 2


def test_a_command_that_is_not_finite_is_not_sent(bench: Bench) -> None:
    with pytest.raises(LightVLAError, match="a command holds a number that is not finite"):
        bench.send(np.full(7, np.nan))

"""Live and offline give the same chunks for the same messages: a bag played into the real policy node over DDS.

The live loop looks at its inputs whenever an image comes and every 20 ms, offline replay after every message. Both
take the same observations when the player gives the node time to look between two messages; so it waits for that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags are read with rosbags")
pytest.importorskip("torch", reason="the policy needs torch")
pytest.importorskip("rclpy", reason="no ROS 2 here")

import rclpy
from builtin_interfaces.msg import Time
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, JointState
from trajectory_msgs.msg import JointTrajectory

from lightvla_core.policy import Policy
from lightvla_ros.bag import BagMessage, open_bag
from lightvla_ros.chunk_message import from_message
from lightvla_ros.inference_timing import InferenceTiming
from lightvla_ros.lifecycle import NEWEST_QOS, SENSOR_QOS
from lightvla_ros.observation import Limits
from lightvla_ros.policy_node import PolicyNode
from lightvla_ros.replay import make_plan, replay
from lightvla_ros.robots.description_file import load_robot

BAG = Path(__file__).parent / "data" / "bags" / "aloha"
INSTRUCTION = "pick up the red cube"
# Played slower than recorded, messages look old to the steady clock.
LIMITS = Limits(max_age=5.0, max_skew=0.15)
TYPES = {"sensor_msgs/msg/JointState": JointState, "sensor_msgs/msg/CompressedImage": CompressedImage}
PATIENCE = 20.0


class Player(Node):
    """Publishes a bag's messages as they were recorded, and /clock at the time the bag received them."""

    def __init__(self, topics: dict[str, str]) -> None:
        super().__init__("player")
        self.chunks: list[Any] = []
        self._clock = self.create_publisher(Clock, "/clock", 10)
        self.streams = {t: self.create_publisher(TYPES[kind], t, SENSOR_QOS) for t, kind in topics.items()}
        self.create_subscription(JointTrajectory, "policy/action_chunk", self.chunks.append, NEWEST_QOS)

    def matched(self) -> bool:
        everyone = [self._clock, *self.streams.values()]
        return all(p.get_subscription_count() for p in everyone) and bool(self.count_publishers("policy/action_chunk"))

    def send(self, message: BagMessage) -> None:
        self.streams[message.topic].publish(deserialize_message(message.data, TYPES[message.type]))

    def set_clock(self, nanoseconds: int) -> None:
        seconds, rest = divmod(nanoseconds, 10**9)
        self._clock.publish(Clock(clock=Time(sec=seconds, nanosec=rest)))


@pytest.fixture
def graph(ros_domain: int, tiny_checkpoint: Path) -> Iterator[tuple[PolicyNode, Player]]:
    rclpy.init(domain_id=ros_domain)
    parameters = {
        "use_sim_time": True,
        "checkpoint": str(tiny_checkpoint),
        "instruction": INSTRUCTION,
        "mode": "open_loop",
        "transport": "compressed",
        "max_age": LIMITS.max_age,
        "max_skew": LIMITS.max_skew,
    }
    node = PolicyNode(parameter_overrides=[Parameter(name, value=value) for name, value in parameters.items()])
    with open_bag(BAG) as bag:
        player = Player({t: kind for t, kind in bag.topics.items() if kind in TYPES})
    executor, ending = SingleThreadedExecutor(), threading.Event()
    executor.add_node(node)
    executor.add_node(player)

    def spin() -> None:
        while not ending.is_set():
            executor.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=spin)
    thread.start()
    yield node, player
    ending.set()
    thread.join()
    node.stop()
    executor.shutdown()
    node.destroy_node()
    player.destroy_node()
    rclpy.try_shutdown()


def wait(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {PATIENCE} s"
        time.sleep(0.0005)


class Looks:
    """Counts how often the loop of a node has begun to look at its inputs, and finished with the look before."""

    def __init__(self, node: PolicyNode) -> None:
        self.count = 0
        gatherer = node._gatherer
        assert gatherer is not None
        self._gather = gatherer.gather
        gatherer.gather = self._counted  # type: ignore[method-assign]

    def _counted(self, now_ros: float, now_steady: float) -> Any:
        self.count += 1
        return self._gather(now_ros, now_steady)


def play(node: PolicyNode, player: Player, messages: list[BagMessage]) -> None:
    looks, gatherer, loop = Looks(node), node._gatherer, node._loop
    assert gatherer is not None
    assert loop is not None
    for message in messages:
        # The message first: were the clock first, a look between the two would decide without the message.
        received = sum(gatherer.received().values())
        player.send(message)
        wait(lambda before=received: sum(gatherer.received().values()) > before, f"receipt on {message.topic}")
        player.set_clock(message.received)
        wait(lambda now=message.received: node.get_clock().now().nanoseconds == now, "the clock")
        # The look after the next one can only begin when the next one, and its inference, is done.
        seen = looks.count
        while looks.count < seen + 2:
            loop.wake()
            time.sleep(0.0005)


@pytest.mark.timeout(180)
def test_live_node_and_offline_replay_give_the_same_chunks(
    graph: tuple[PolicyNode, Player], tiny_checkpoint: Path
) -> None:
    node, player = graph
    policy = Policy.from_checkpoint(tiny_checkpoint)
    contract = policy.contract
    with open_bag(BAG) as bag:
        plan = make_plan(contract, load_robot("aloha", "aloha1"), bag, INSTRUCTION)
        timing = InferenceTiming("open_loop", contract.period, contract.chunk_length)
        offline = replay(policy, plan, bag.messages(plan.topics), timing, INSTRUCTION, LIMITS)
        streams = list(bag.messages([stream.topic for stream in plan.streams]))

    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    wait(player.matched, "the match of all topics")
    player.set_clock(streams[0].received - 1)
    wait(lambda: node.get_clock().now().nanoseconds == streams[0].received - 1, "simulated time")
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    play(node, player, streams)

    wait(lambda: len(player.chunks) >= len(offline.chunks), "the last chunk")
    live = [from_message(message, contract) for message in player.chunks]
    assert [c.stamp for c in live] == pytest.approx([item.chunk.stamp for item in offline.chunks], abs=1e-9)
    assert len(live) >= 3
    for chunk, item in zip(live, offline.chunks, strict=True):
        np.testing.assert_allclose(chunk.actions, item.chunk.actions, rtol=0, atol=1e-9)
        assert (chunk.sequence, chunk.instruction_id) == (item.chunk.sequence, item.chunk.instruction_id)


@pytest.mark.timeout(180)
def test_the_bag_played_again_jumps_the_clock_back_and_gives_the_same_chunks_again(
    graph: tuple[PolicyNode, Player],
) -> None:
    node, player = graph
    topics = list(player.streams)
    with open_bag(BAG) as bag:
        messages = [m for m in bag.messages(topics) if m.received < 1_700_000_000_400_000_000]
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    wait(player.matched, "the match of all topics")
    player.set_clock(messages[0].received - 1)
    wait(lambda: node.get_clock().now().nanoseconds == messages[0].received - 1, "simulated time")
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    chunks = []
    for _ in range(2):
        play(node, player, messages)
        wait(lambda: player.chunks, "a chunk")
        chunks.append([(m.header.stamp, [list(p.positions) for p in m.points]) for m in player.chunks])
        player.chunks.clear()
    assert len(chunks[0]) == 1
    assert chunks[0] == chunks[1]

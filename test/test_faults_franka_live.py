"""Faults of an arm that is commanded by velocities, once over real DDS on a real executor process.

In the drivers' message types, which `make test` generates (test/interfaces); exhaustively, under a simulated clock, in
test_faults_franka.py.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("franka_msgs", reason="the drivers' messages are not here; `make test` generates them")

from builtin_interfaces.msg import Time
from executor_fixtures import chunk
from geometry_msgs.msg import PoseStamped, TransformStamped, TwistStamped
from live_executor import executor_process
from live_marks import LIVE_FRANKA, cases, shows
from live_node import LiveNode
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from test_commanders import Hand
from test_robot_franka import contract
from tf2_msgs.msg import TFMessage
from trajectory_msgs.msg import JointTrajectory

from lightvla_ros.chunk_message import stamp_seconds, to_message
from lightvla_ros.domain import reserve_domain
from lightvla_ros.lifecycle import LATCHED_QOS, NEWEST_QOS, SENSOR_QOS

CONTRACT = contract()
PERIOD = CONTRACT.period
TWISTS = "servo_node/delta_twist_cmds"
# m/s and m/s per period: of config/robots/franka.yaml
MAX_SPEED, MAX_CHANGE = 0.3, 2.0 * PERIOD
STARVED, STALE = "starvation", "stale input"

Alter = Callable[[Any], list[Any]]
NOISE = b"\x00\x01\x00\x00" + b"\xff" * 200


def same(message: Any) -> list[Any]:
    return [message]


class Graph(LiveNode):
    """An FR3 that follows its twists, its hand, and a policy that sends it to and fro."""

    def __init__(self, domain: int, by_tf: bool = False) -> None:
        super().__init__(domain)
        topic = ("/tf", TFMessage) if by_tf else ("franka_robot_state_broadcaster/current_pose", PoseStamped)
        self.by_tf, self.poses = by_tf, self.node.create_publisher(topic[1], topic[0], 100 if by_tf else SENSOR_QOS)
        self.fingers = self.node.create_publisher(JointState, "franka_gripper/joint_states", SENSOR_QOS)
        self.chunks = self.node.create_publisher(JointTrajectory, "policy/action_chunk", NEWEST_QOS)
        self.contract = self.node.create_publisher(String, "policy/contract", LATCHED_QOS)
        self.instruction = self.node.create_publisher(String, "instruction", LATCHED_QOS)
        self.estop = self.node.create_publisher(Bool, "estop", LATCHED_QOS)
        self.hand = Hand(self.node)
        self.hand.finish.set()
        self.sequence, self.position, self.twists = 0, np.array([0.4, 0.1, 0.3]), list[Any]()
        self.heal()
        self.node.create_subscription(TwistStamped, TWISTS, self._follow, 10)
        self.node.create_timer(0.02, self._publish_states)
        self.node.create_timer(0.1, self._publish_chunk)

    def heal(self) -> None:
        self.alter_pose = self.alter_fingers = self.alter_chunk = same
        self.follows, self.turns = True, True

    def bring_up(self) -> None:
        self.contract.publish(String(data=CONTRACT.to_json()))
        self.instruction.publish(String(data="pick up the cube"))
        self.until(lambda: self.contract.get_subscription_count() == 1)
        self.until(lambda: self.change(1))
        assert self.change(3)
        self.until(lambda: all(p.get_subscription_count() for p in (self.poses, self.fingers, self.chunks)))
        self.until(lambda: self.node.count_publishers(TWISTS) == 1)

    def armed(self) -> None:
        """Everything is well, armed, and moving."""
        # Where it is armed still: an arm that leaps does not follow.
        self.trigger("disarm")
        self.heal()
        self.position = np.array([0.4, 0.1, 0.3])
        self.until(lambda: self.trigger("arm")[0] or self.state == "armed")
        self.until(lambda: self.state == "armed")
        self.twists.clear()
        self.until(lambda: len(self.twists) > 3 and bool(velocities(self)[-1].any()))

    def _follow(self, message: Any) -> None:
        self.twists.append(message)
        if self.follows:
            linear = message.twist.linear
            self.position = self.position + PERIOD * np.array([linear.x, linear.y, linear.z])

    def _publish_states(self) -> None:
        stamp = self.node.get_clock().now().to_msg()
        fingers = JointState(name=["fr3_finger_joint1", "fr3_finger_joint2"], position=[0.03, 0.03])
        fingers.header.stamp = stamp
        for altered in self.alter_fingers(fingers):
            self.fingers.publish(altered)
        pose = PoseStamped()
        pose.header.stamp, pose.header.frame_id = stamp, "fr3_link0"
        pose.pose.position.x, pose.pose.position.y, pose.pose.position.z = self.position.tolist()
        pose.pose.orientation.x, pose.pose.orientation.w = 1.0, 0.0
        for altered in self.alter_pose(pose):
            self.poses.publish(transform_of(altered) if self.by_tf else altered)

    def _publish_chunk(self) -> None:
        stamp = self.node.get_clock().now().nanoseconds * 1e-9
        self.sequence += 1
        forward = 0.3 if not self.turns or int(stamp * 2) % 2 else -0.3
        wish = np.array([forward, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
        for altered in self.alter_chunk(to_message(chunk(CONTRACT, wish, stamp, self.sequence))):
            self.chunks.publish(altered)


def transform_of(pose: Any) -> Any:
    item = TransformStamped(header=pose.header, child_frame_id="fr3_hand_tcp")
    position, item.transform.rotation = pose.pose.position, pose.pose.orientation
    moved = item.transform.translation
    moved.x, moved.y, moved.z = position.x, position.y, position.z
    return TFMessage(transforms=[item])


def velocities(graph: Graph) -> np.ndarray[Any, Any]:
    parts = [(t.twist.linear, t.twist.angular) for t in graph.twists]
    return np.array([[a.x, a.y, a.z, b.x, b.y, b.z] for a, b in parts])


def check_limits(graph: Graph) -> None:
    sent = velocities(graph)
    assert np.isfinite(sent).all()
    assert np.abs(sent[:, :3]).max() <= MAX_SPEED + 1e-9
    change = np.abs(np.diff(sent[:, :3], axis=0))
    # Standstill is commanded at once.
    assert (change[sent[1:, :3] != 0.0] <= MAX_CHANGE + 1e-9).all()


def more_twists(graph: Graph, count: int) -> None:
    seen = len(graph.twists)
    graph.until(lambda: len(graph.twists) >= seen + count)


def check_stop(graph: Graph, reason: str, heal: Callable[[], None]) -> None:
    """It stops for this reason, stands still, goes on with that when all is well, until armed."""
    graph.until(lambda: re.search(f"stopped: .*{reason}", graph.state) is not None, 4.0)
    stopped = graph.state
    # The periods under way when the state was heard.
    more_twists(graph, 2)
    still = len(graph.twists)
    more_twists(graph, 3)
    heal()
    more_twists(graph, 8)
    assert graph.state == stopped
    assert not velocities(graph)[still:].any()
    check_limits(graph)
    graph.armed()


@pytest.fixture(scope="module")
def graph(ros_domain: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    log = tmp_path_factory.mktemp("executor") / "log"
    with executor_process(log, robot="franka", starvation_timeout=0.3, state_timeout=0.2):
        graph = Graph(ros_domain)
        graph.bring_up()
        yield graph
        graph.hand.close()
        graph.close()


def altered_position(message: Any, **values: float) -> list[Any]:
    for name, value in values.items():
        setattr(message.pose.position, name, value)
    return [message]


def no_orientation(message: Any) -> list[Any]:
    message.pose.orientation.x = 0.0
    return [message]


def infinite(message: Any) -> list[Any]:
    message.pose.orientation.z = math.inf
    return [message]


def late(message: Any, seconds: float) -> list[Any]:
    stamp = stamp_seconds(message.header.stamp) - seconds
    message.header.stamp = Time(sec=int(stamp), nanosec=int(stamp % 1.0 * 1e9))
    return [message]


def first_of(seen: list[Any], message: Any) -> list[Any]:
    seen.append(copy.deepcopy(message))
    return [seen[0]]


def in_another_frame(message: Any) -> list[Any]:
    message.header.frame_id = "camera_link"
    return [message]


POSE_FAULTS: dict[str, tuple[Callable[[], Alter], str]] = {
    "pose with NaN": (lambda: lambda m: altered_position(m, y=math.nan), "finite"),
    "pose with infinity": (lambda: infinite, "finite"),
    "pose without an orientation": (lambda: no_orientation, "fault"),
    "poses dropped, or unreadable (dropped)": (lambda: lambda m: [], STALE),
    "poses dropped, or unreadable (noise)": (lambda: lambda m: [NOISE], STALE),
    "poses frozen, stamps too": (lambda: lambda m, seen=[]: first_of(seen, m), STALE),
    "poses delayed": (lambda: lambda m: late(m, 0.5), STALE),
    "poses stamped in the future": (lambda: lambda m: late(m, -5.0), "in the future"),
    "poses wrong by 0.3 m": (lambda: lambda m: altered_position(m, z=0.6), "tracking error"),
    "poses in another frame": (lambda: in_another_frame, STALE),
}


@pytest.mark.parametrize("name", cases(POSE_FAULTS, LIVE_FRANKA))
def test_poses(graph: Graph, name: str) -> None:
    make, reason = POSE_FAULTS[name]
    graph.armed()
    graph.alter_pose = make()
    check_stop(graph, reason, graph.heal)


def spoiled(message: Any, value: float) -> list[Any]:
    for point in message.points:
        point.positions[1] = value
    return [message]


CHUNK_FAULTS: dict[str, tuple[Alter, str | None]] = {
    "chunks dropped, or policy killed": (lambda m: [], STARVED),
    "chunks with NaN": (lambda m: spoiled(m, math.nan), STARVED),
    "chunks with huge numbers": (lambda m: spoiled(m, 1e300 * (-1) ** int(m.header.frame_id[-1], 16)), None),
}


@pytest.mark.parametrize("name", cases(CHUNK_FAULTS, LIVE_FRANKA))
def test_chunks(graph: Graph, name: str) -> None:
    graph.armed()
    graph.alter_chunk, reason = CHUNK_FAULTS[name]
    if reason is not None:
        check_stop(graph, reason, graph.heal)
        return
    more_twists(graph, 10)
    assert np.abs(velocities(graph)[:, 1]).max() > 0.0
    check_limits(graph)


@shows("arm blocked, or its state frozen under fresh stamps", of=LIVE_FRANKA)
def test_arm_that_is_blocked(graph: Graph) -> None:
    graph.armed()
    graph.follows = graph.turns = False
    check_stop(graph, "tracking error", graph.heal)


@shows("finger states dropped", of=LIVE_FRANKA)
def test_fingers_that_are_silent(graph: Graph) -> None:
    graph.armed()
    graph.alter_fingers = lambda message: []
    check_stop(graph, STALE, graph.heal)


@shows("emergency stop", of=LIVE_FRANKA)
def test_emergency_stop(graph: Graph) -> None:
    graph.armed()
    graph.estop.publish(Bool(data=True))
    check_stop(graph, "emergency stop", lambda: graph.estop.publish(Bool(data=False)))


@shows("gripper's action server gone", of=LIVE_FRANKA)
def test_a_gripper_that_is_gone_is_no_danger_and_no_arming(graph: Graph) -> None:
    def refused() -> bool:
        graph.trigger("disarm")
        return "there is no action server" in graph.trigger("arm")[1]

    graph.armed()
    graph.hand.close()
    try:
        more_twists(graph, 10)
        assert graph.state == "armed"
        check_limits(graph)
        graph.until(refused)
    finally:
        graph.hand = Hand(graph.node)
        graph.hand.finish.set()
    graph.armed()


@shows("transforms dropped, where the pose is from tf", of=LIVE_FRANKA)
def test_transforms_that_stop(tmp_path_factory: pytest.TempPathFactory) -> None:
    log = tmp_path_factory.mktemp("by_tf") / "log"
    with reserve_domain() as domain, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", str(domain))
        with executor_process(log, robot="franka", pose_source="tf", starvation_timeout=0.3, state_timeout=0.2):
            graph = Graph(domain, by_tf=True)
            graph.bring_up()
            graph.armed()
            graph.alter_pose = lambda message: []
            check_stop(graph, STALE, graph.heal)
            graph.hand.close()
            graph.close()

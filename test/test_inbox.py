"""Fast streams arrive as bytes, with their stamp readable, on a thread of their own or on the poller's."""

from __future__ import annotations

import threading
import time

import pytest
import rclpy
from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, JointState

from lightvla_core.errors import LightVLAError
from lightvla_ros.inbox import Inbox, RawMessage
from lightvla_ros.lifecycle import NEWEST_QOS


@pytest.fixture
def node(ros_domain):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    made = Node("owner", context=context, namespace="/somewhere")
    yield made
    made.destroy_node()
    context.shutdown()


@pytest.mark.parametrize("kind", [JointState, Image])
def test_the_stamp_is_read_without_decoding_the_rest(kind):
    message = kind()
    message.header.stamp = Time(sec=1_700_000_000, nanosec=250_000_000)
    message.header.frame_id = "somewhere"
    raw = RawMessage(kind, serialize_message(message), received=1.0)
    assert raw.stamp == 1_700_000_000.25
    assert raw.decode() == message


@pytest.mark.parametrize("data", [b"\x00\x01\x00\x00" + b"\xff" * 200, b"\x00\x01\x00\x00" + bytes(9)])
def test_bytes_that_are_no_message_are_refused_in_one_sentence(data):
    with pytest.raises(LightVLAError, match=f"{len(data)} bytes are no JointState"):
        RawMessage(JointState, data, received=1.0).decode()


def test_a_message_reaches_the_callback_although_nobody_spins_the_node(node):
    inbox, arrived = Inbox(node), threading.Event()
    received: list[RawMessage] = []

    def on_message(message: RawMessage) -> None:
        received.append(message)
        arrived.set()

    inbox.subscribe(JointState, "joint_states", on_message, NEWEST_QOS)
    inbox.start()
    publisher = node.create_publisher(JointState, "joint_states", NEWEST_QOS)
    while not publisher.get_subscription_count():
        time.sleep(0.01)
    before = time.monotonic()
    publisher.publish(JointState(name=["waist"], position=[0.5]))
    assert arrived.wait(10.0)
    inbox.close()
    assert received[0].decode().position.tolist() == [0.5]
    assert before <= received[0].received <= time.monotonic()


def test_after_closing_nothing_is_subscribed_any_more(node):
    inbox = Inbox(node)
    inbox.subscribe(JointState, "joint_states", lambda message: None, NEWEST_QOS)
    inbox.start()
    inbox.close()
    while node.count_subscribers("/somewhere/joint_states"):
        time.sleep(0.01)


def test_closing_an_inbox_that_never_started_is_fine(node):
    Inbox(node).close()


def test_polled_it_hands_over_the_newest_on_the_callers_thread(node):
    inbox, heard = Inbox(node), []
    inbox.subscribe(JointState, "joint_states", lambda m: heard.append((threading.get_ident(), m)), NEWEST_QOS)
    publisher = node.create_publisher(JointState, "joint_states", NEWEST_QOS)
    while not publisher.get_subscription_count():
        time.sleep(0.01)
    inbox.poll()
    assert heard == []
    for position in (0.25, 0.5):
        publisher.publish(JointState(name=["waist"], position=[position]))
    deadline = time.monotonic() + 10.0
    positions = []
    while positions != [0.5] and time.monotonic() < deadline:
        time.sleep(0.05)
        inbox.poll()
        positions = [m.decode().position[0] for _, m in heard[-1:]]
    assert positions == [0.5]
    assert {thread for thread, _ in heard} == {threading.get_ident()}
    inbox.close()
    inbox.poll()


def test_one_poll_ends_although_messages_keep_coming(node):
    inbox, heard = Inbox(node), []
    publisher = node.create_publisher(JointState, "joint_states", NEWEST_QOS)

    def answer(message: RawMessage) -> None:
        heard.append(message)
        publisher.publish(JointState())
        time.sleep(0.01)

    inbox.subscribe(JointState, "joint_states", answer, NEWEST_QOS)
    while not publisher.get_subscription_count():
        time.sleep(0.01)
    publisher.publish(JointState())
    while not heard:
        inbox.poll()
    assert len(heard) == 1
    inbox.close()

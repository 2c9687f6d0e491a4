"""Fast streams into a node: received apart from its executor, kept as bytes, decoded only when somebody looks.

rclpy's executor builds its wait set anew, in Python, for every message, over everything that a node has; with the
dozen services of a lifecycle node that costs more than a 100 Hz joint state carries. Here the streams are alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message

from lightvla_core.errors import LightVLAError
from lightvla_ros.wire import HEADER_STAMP_END, header_stamp

_POLL = 0.1  # s, the longest that stopping waits


@dataclass(frozen=True)
class RawMessage:
    """A message with a header, as it came over the wire.

    stamp: of the header, s, ROS clock; received: s, steady clock
    """

    kind: Any
    data: bytes
    received: float

    @property
    def stamp(self) -> float:
        """The stamp alone, without decoding the rest."""
        return header_stamp(self.data)

    def decode(self) -> Any:
        """The message; raises LightVLAError for bytes that are no such thing, which anybody on the network can send."""
        try:
            return deserialize_message(self.data, self.kind)
        except Exception as error:  # rclpy's C layer and the converters each have their own
            raise LightVLAError(f"{len(self.data)} bytes are no {self.kind.__name__} ({error})") from None


class Inbox:
    """Subscriptions that belong to a node but bypass its executor.

    Callbacks run on the inbox's own thread as messages come, after `start`; or without one on whatever thread polls.
    """

    def __init__(self, node: Node) -> None:
        """node: resolves (and so remaps) the topic names"""
        self._owner = node
        # Global arguments would give this node the owner's name, and its parameters.
        self._node = Node(
            f"{node.get_name()}_inbox",
            context=node.context,
            namespace=node.get_namespace(),
            use_global_arguments=False,
            enable_rosout=False,
            start_parameter_services=False,
        )
        self._subscriptions: list[tuple[Any, int]] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def subscribe(self, kind: Any, topic: str, callback: Callable[[RawMessage], None], qos: Any) -> None:
        """kind: a message type whose first field is a std_msgs/Header"""

        def on_data(data: bytes) -> None:
            # Anybody on the network can send bytes that are no message; one such must not end the thread.
            if len(data) >= HEADER_STAMP_END:
                callback(RawMessage(kind, data, time.monotonic()))

        name = self._owner.resolve_topic_name(topic)
        subscription = self._node.create_subscription(kind, name, on_data, qos, raw=True)
        self._subscriptions.append((subscription, qos.depth))

    def start(self) -> None:
        self._thread = threading.Thread(target=self._spin, name="inbox", daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Hand over what came since the last time, as received now; at most a queue's depth of each topic.

        For a loop that looks once a period: a thread that wakes for every message would be in its way.
        """
        for subscription, depth in self._subscriptions:
            with subscription.handle:
                for _ in range(depth):
                    taken = subscription.handle.take_message(subscription.msg_type, True)
                    if taken is None:
                        break
                    subscription.callback(taken[0])

    def close(self) -> None:
        """Stop the thread and give the subscriptions back; nothing is called afterwards."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self._subscriptions.clear()
        self._node.destroy_node()

    def _spin(self) -> None:
        executor = SingleThreadedExecutor(context=self._node.context)
        executor.add_node(self._node)
        try:
            while not self._stopping.is_set():
                executor.spin_once(timeout_sec=_POLL)
        except ExternalShutdownException:
            return
        finally:
            executor.shutdown()

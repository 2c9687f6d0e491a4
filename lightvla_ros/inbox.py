"""Fast streams into a node: received on a thread of their own, kept as bytes, decoded only when somebody looks.

rclpy's executor builds its wait set anew, in Python, for every message, over everything that a node has; with the
dozen services of a lifecycle node that costs more than a 100 Hz joint state carries. Here the streams are alone.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message

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
        """The stamp alone: the header is the first field, so it stands right behind CDR's four bytes."""
        little_endian = self.data[1] & 1
        seconds, nanoseconds = struct.unpack_from("<iI" if little_endian else ">iI", self.data, 4)
        return float(seconds) + float(nanoseconds) * 1e-9

    def decode(self) -> Any:
        return deserialize_message(self.data, self.kind)


class Inbox:
    """Subscriptions that belong to a node but bypass its executor. Callbacks run on the inbox's thread."""

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
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(self._node)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="inbox", daemon=True)

    def subscribe(self, kind: Any, topic: str, callback: Callable[[RawMessage], None], qos: Any) -> None:
        """kind: a message type whose first field is a std_msgs/Header"""

        def on_data(data: bytes) -> None:
            callback(RawMessage(kind, data, time.monotonic()))

        self._node.create_subscription(kind, self._owner.resolve_topic_name(topic), on_data, qos, raw=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and give the subscriptions back; nothing is called afterwards."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()

    def _spin(self) -> None:
        try:
            while not self._stopping.is_set():
                self._executor.spin_once(timeout_sec=_POLL)
        except ExternalShutdownException:
            return

"""Bags (mcap or sqlite3) in and out, without a ROS installation; every failure is one sentence.

What the messages of a bag are good for is not known here: replay reads them, the simulated robot's recorder writes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightvla_core.errors import LightVLAError

try:
    from rosbags.interfaces import Connection
    from rosbags.rosbag2 import Reader, StoragePlugin, Writer
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore
except ImportError as error:
    raise LightVLAError(
        f"bags are read and written with the package rosbags ({error}); install it with: pip install -e '.[replay]'"
    ) from None

Storage = Literal["mcap", "sqlite3"]
_PLUGINS = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
# Read by `ros2 bag` from Iron on; the next one only from Jazzy on.
_FORMAT_VERSION: Literal[8] = 8

# Source: interbotix_ros_core, interbotix_xs_msgs/msg. Bags written up to Iron carry no definitions themselves.
_INTERBOTIX = {
    "interbotix_xs_msgs/msg/JointGroupCommand": "string name\nfloat32[] cmd\n",
    "interbotix_xs_msgs/msg/JointSingleCommand": "string name\nfloat32 cmd\n",
}


def _message_types() -> Any:
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, definition in _INTERBOTIX.items():
        store.register(get_types_from_msg(definition, name))
    return store


# Classes by message type name, and (de)serialization. The layout of the standard ones is the same in every ROS 2.
TYPES: Any = _message_types()


@dataclass(frozen=True)
class BagMessage:
    """One recorded message. received: when the bag received it, ns; data: as it came over the wire (CDR)."""

    topic: str
    type: str
    received: int
    data: bytes

    @property
    def time(self) -> float:
        """When the bag received it, s."""
        return self.received * 1e-9

    def decode(self) -> Any:
        """The message, with NumPy arrays for number sequences. Raises LightVLAError for data that are no such thing."""
        try:
            return TYPES.deserialize_cdr(self.data, self.type)
        except Exception as error:  # whatever damaged bytes make of a deserializer
            raise LightVLAError(f"a message of {self.topic} in the bag is no {self.type} ({error})") from None


class Bag:
    """An open bag. topics: topic -> message type, of those that hold a message; made by `open_bag`."""

    def __init__(self, path: Path, reader: Reader) -> None:
        self.path = path
        self._reader = reader
        self.topics: dict[str, str] = {c.topic: c.msgtype for c in reader.connections if c.msgcount}

    def count(self, topics: Collection[str]) -> int:
        """How many messages these topics hold."""
        return sum(c.msgcount for c in self._reader.connections if c.topic in topics)

    def messages(self, topics: Collection[str]) -> Iterator[BagMessage]:
        """Their messages in the order in which the bag received them."""
        wanted = [connection for connection in self._reader.connections if connection.topic in topics]
        if not wanted:
            return
        source = self._reader.messages(connections=wanted)
        while True:
            try:
                connection, received, data = next(source)
            except StopIteration:
                return
            except Exception as error:  # rosbags, sqlite3, zstd and struct each have their own
                raise _damaged(self.path, error) from None
            yield BagMessage(connection.topic, connection.msgtype, received, bytes(data))


@contextmanager
def open_bag(path: Path) -> Iterator[Bag]:
    """A bag's folder, or its single .mcap or .db3 file. Raises LightVLAError where that cannot be read."""
    if not path.exists():
        raise LightVLAError(f"there is no bag at {path}; give the folder that `ros2 bag record` made")
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        raise LightVLAError(
            f"{path} has no metadata.yaml, so it is no bag or its recording did not end properly; "
            f"in the latter case `ros2 bag reindex {path}` mends it"
        )
    try:
        reader = Reader(path)
        reader.open()
    except Exception as error:
        raise _damaged(path, error) from None
    try:
        yield Bag(path, reader)
    finally:
        reader.close()


class BagWriter:
    """A new bag. Use as a context manager; the folder must not exist yet."""

    def __init__(self, path: Path, storage: Storage = "mcap") -> None:
        if storage not in _PLUGINS:
            raise LightVLAError(f"the bag format is '{storage}'; expected one of {', '.join(_PLUGINS)}")
        if path.exists():
            raise LightVLAError(f"{path} exists already; a bag is never overwritten, so give another name")
        self._writer = Writer(path, version=_FORMAT_VERSION, storage_plugin=_PLUGINS[storage])
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> BagWriter:
        self._writer.open()
        return self

    def write(self, topic: str, kind: str, message: Any, received: int) -> None:
        """kind: message type name; message: built from TYPES; received: ns"""
        connection = self._connections.get(topic)
        if connection is None:
            connection = self._connections[topic] = self._writer.add_connection(topic, kind, typestore=TYPES)
        self._writer.write(connection, received, TYPES.serialize_cdr(message, kind))

    def __exit__(self, *exception: Any) -> None:
        self._writer.__exit__(*exception)


def build(kind: str, **fields: Any) -> Any:
    """A message of this type name; fields that are not given must have been."""
    return TYPES.types[kind](**fields)


def header(stamp: int, frame_id: str = "") -> Any:
    """std_msgs/Header. stamp: ns"""
    return build("std_msgs/msg/Header", stamp=time_message(stamp), frame_id=frame_id)


def time_message(nanoseconds: int) -> Any:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return build("builtin_interfaces/msg/Time", sec=seconds, nanosec=rest)


def list_topics(topics: Mapping[str, str]) -> str:
    """For error sentences."""
    return ", ".join(f"{topic} ({kind})" for topic, kind in sorted(topics.items())) or "no message at all"


def _damaged(path: Path, error: Exception) -> LightVLAError:
    reason = " ".join(f"{type(error).__name__}: {error}".split()) or type(error).__name__
    return LightVLAError(f"cannot read the bag {path}, which is damaged, cut off or of another kind ({reason})")

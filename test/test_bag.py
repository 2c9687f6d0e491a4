"""Bags in and out, and one sentence for every bag that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags are read with rosbags")

from lightvla_core.errors import LightVLAError
from lightvla_ros.bag import BagMessage, BagWriter, build, header, open_bag
from lightvla_ros.wire import header_stamp

JOINT_STATE = "sensor_msgs/msg/JointState"
START = 1_700_000_000_123_456_789


def joint_state(stamp: int) -> object:
    none = np.empty(0)
    return build(
        JOINT_STATE, header=header(stamp), name=["a", "b"], position=np.array([0.5, 1.5]), velocity=none, effort=none
    )


def write(path: Path, storage: str = "mcap", messages: int = 50) -> Path:
    with BagWriter(path, storage) as bag:  # type: ignore[arg-type]
        for n in range(messages):
            bag.write("/left/joint_states", JOINT_STATE, joint_state(START + n), START + n)
            bag.write("/instruction", "std_msgs/msg/String", build("std_msgs/msg/String", data=f"go {n}"), START + n)
    return path


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_what_was_written_is_read_back_in_order(tmp_path: Path, storage: str) -> None:
    with open_bag(write(tmp_path / "bag", storage)) as bag:
        assert bag.topics == {"/left/joint_states": JOINT_STATE, "/instruction": "std_msgs/msg/String"}
        assert bag.count(["/left/joint_states"]) == 50
        messages = list(bag.messages(["/left/joint_states"]))
    assert [m.received for m in messages] == [START + n for n in range(50)]
    state = messages[0].decode()
    assert state.name == ["a", "b"]
    np.testing.assert_array_equal(state.position, [0.5, 1.5])
    assert header_stamp(messages[0].data) == pytest.approx(START * 1e-9, abs=1e-6)


def test_single_storage_file_is_a_bag_too(tmp_path: Path) -> None:
    with open_bag(write(tmp_path / "bag") / "bag.mcap") as bag:
        assert bag.count(["/instruction"]) == 50


def test_missing_bag_is_named() -> None:
    with pytest.raises(LightVLAError, match="no bag at /nonexistent"), open_bag(Path("/nonexistent")):
        pass


def test_folder_without_metadata_says_how_to_mend_it(tmp_path: Path) -> None:
    path = write(tmp_path / "bag")
    (path / "metadata.yaml").unlink()
    with pytest.raises(LightVLAError, match=r"no metadata.yaml.*ros2 bag reindex"), open_bag(path):
        pass


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
@pytest.mark.parametrize(("storage", "name"), [("mcap", "bag.mcap"), ("sqlite3", "bag.db3")])
def test_truncated_bag_is_one_sentence(tmp_path: Path, storage: str, name: str, share: float) -> None:
    path = write(tmp_path / "bag", storage, messages=2000)
    file = path / name
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(LightVLAError, match=r"cannot read the bag .*cut off") as caught, open_bag(path) as bag:
        list(bag.messages(["/left/joint_states", "/instruction"]))
    assert "\n" not in str(caught.value)


def test_file_that_is_no_bag_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(LightVLAError, match="cannot read the bag"), open_bag(tmp_path / "notes.txt"):
        pass


def test_bytes_that_are_no_message_are_named_with_their_topic() -> None:
    with pytest.raises(LightVLAError, match=r"/left/joint_states .* is no sensor_msgs/msg/JointState"):
        BagMessage("/left/joint_states", JOINT_STATE, 0, b"\x00\x01\x00\x00\xff\xff").decode()


def test_bag_is_never_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path / "bag")
    with pytest.raises(LightVLAError, match="exists already"):
        BagWriter(path)


def test_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(LightVLAError, match="mcap, sqlite3"):
        BagWriter(tmp_path / "bag", "csv")  # type: ignore[arg-type]

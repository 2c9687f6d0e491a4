"""The simulated ALOHA in a bag: the driver's topics and messages, and the same bag for the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags are written with rosbags")
pytest.importorskip("mujoco", reason="the simulated robot needs MuJoCo")

from lightvla_core.errors import LightVLAError
from lightvla_ros.bag import open_bag
from lightvla_ros.images import compressed_to_rgb, image_to_rgb
from lightvla_ros.robots.description_file import load_robot
from lightvla_ros.sim.aloha import ARMS, JOINT_NAMES, START_POSE
from lightvla_ros.sim.recording import Motion, record_bag
from lightvla_ros.wire import header_stamp


def everything(path: Path) -> list[tuple[str, int, bytes]]:
    with open_bag(path) as bag:
        return [(m.topic, m.received, m.data) for m in bag.messages(list(bag.topics))]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "raw"
    record_bag(path, 1.0, seed=3)
    return path


def test_the_drivers_topics_at_the_drivers_rates(recorded: Path) -> None:
    with open_bag(recorded) as bag:
        types = dict(bag.topics)
        counts = Counter(m.topic for m in bag.messages(list(types)))
    assert counts["/clock"] == 100
    for arm in ARMS:
        assert counts[f"/{arm}/joint_states"] == 100
        assert counts[f"/{arm}/arm_controller/joint_trajectory"] == 25
        assert counts[f"/{arm}/gripper_controller/joint_trajectory"] == 25
    for camera in ("cam_high", "cam_left_wrist"):
        assert counts[f"/{camera}/camera/color/image_rect_raw"] == 15
        assert types[f"/{camera}/camera/color/image_rect_raw"] == "sensor_msgs/msg/Image"


def test_stamps_are_simulated_time_and_order_is_kept(recorded: Path) -> None:
    with open_bag(recorded) as bag:
        messages = list(bag.messages(["/follower_left/joint_states", "/cam_high/camera/color/image_rect_raw"]))
    times = [m.received for m in messages]
    assert times == sorted(times)
    assert all(0.0 <= m.time - header_stamp(m.data) < 1e-4 for m in messages)


def test_joint_states_follow_the_commands_within_the_robots_limits(recorded: Path) -> None:
    robot = load_robot("aloha", "aloha1")
    limits = {c.joint: c for c in robot.channels if c.arm == "follower_left" and c.gripper is None}
    with open_bag(recorded) as bag:
        states = [m.decode() for m in bag.messages(["/follower_left/joint_states"])]
        goals = [m.decode() for m in bag.messages(["/follower_left/arm_controller/joint_trajectory"])]
    assert tuple(states[0].name) == JOINT_NAMES
    for goal in goals:
        for name, position in zip(goal.joint_names, goal.points[0].positions, strict=True):
            assert limits[name].lower < position < limits[name].upper
    moved = np.ptp([s.position[:6] for s in states], axis=0)
    assert (moved > 0.01).any()
    # An arm is about one command behind its goal.
    assert np.abs(states[-1].position[:6] - goals[-1].points[0].positions).max() < 0.1


def test_same_seed_gives_the_same_bytes_in_both_formats(tmp_path: Path) -> None:
    for name, storage in (("a", "mcap"), ("b", "sqlite3")):
        record_bag(tmp_path / name, 0.3, seed=5, storage=storage)  # type: ignore[arg-type]
    assert everything(tmp_path / "a") == everything(tmp_path / "b")


def test_other_seed_moves_otherwise() -> None:
    assert np.abs(Motion.drawn(0).at(1.0) - Motion.drawn(1).at(1.0)).max() > 0.01


def test_motion_begins_at_the_start_pose() -> None:
    np.testing.assert_allclose(Motion.drawn(7).at(0.0)[:, :6], [START_POSE, START_POSE], atol=1e-12)


def test_compressed_transport_shows_the_same_picture(tmp_path: Path) -> None:
    topic = "/cam_high/camera/color/image_rect_raw"
    record_bag(tmp_path / "raw", 0.1, seed=1)
    record_bag(tmp_path / "jpeg", 0.1, seed=1, transport="compressed")
    with open_bag(tmp_path / "raw") as raw, open_bag(tmp_path / "jpeg") as jpeg:
        picture = image_to_rgb(next(raw.messages([topic])).decode(), topic)
        decoded = compressed_to_rgb(next(jpeg.messages([f"{topic}/compressed"])).decode(), topic)
    assert picture.std() > 10
    assert np.abs(picture.astype(int) - decoded).mean() < 5


def test_unknown_transport_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LightVLAError, match="raw or compressed"):
        record_bag(tmp_path / "bag", 0.1, transport="smoke")  # type: ignore[arg-type]

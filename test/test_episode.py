"""The witness of commands, the video, and the words about an episode."""

import imageio.v2 as imageio
import numpy as np
import pytest

from lightvla_ros.episode import CommandWitness, Video, add_banner, status_line, summary
from lightvla_ros.robots.description_file import load_robot

ROBOT = load_robot("aloha", "aloha1")
ARM = "follower_left"
JOINTS = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"]
START = [0.0, -0.96, 1.16, 0.0, -0.3, 0.0]


def moved(index, by):
    return [value + (by if i == index else 0.0) for i, value in enumerate(START)]


def test_commands_within_limits_are_counted_and_not_complained_about():
    witness = CommandWitness(ROBOT.channels)
    for positions in (START, moved(0, 0.1), moved(0, 0.2)):
        witness.see(ARM, JOINTS, positions)
    witness.see(ARM, ["gripper"], [1.4910])
    assert (witness.commands, witness.outside) == (4, 0)


@pytest.mark.parametrize(
    ("names", "positions"),
    [
        (JOINTS, moved(0, 0.11)),  # a step too far
        (JOINTS, moved(2, 3.0)),  # beyond the joint's limit
        (JOINTS, moved(1, float("nan"))),
        (JOINTS, START[:5]),
        (["knee"], [0.0]),
        (["gripper"], [1.6]),
    ],
)
def test_a_command_outside_limits_is_noticed(names, positions):
    witness = CommandWitness(ROBOT.channels)
    witness.see(ARM, JOINTS, START)
    witness.see(ARM, names, positions)
    assert (witness.commands, witness.outside) == (2, 1)


def test_the_arms_are_judged_apart():
    witness = CommandWitness(ROBOT.channels)
    witness.see("follower_left", JOINTS, START)
    witness.see("follower_right", JOINTS, moved(0, 1.0))
    assert witness.outside == 0


def test_a_video_has_the_frames_that_were_added(tmp_path):
    path = tmp_path / "episode.mp4"
    with Video(path, rate=10.0) as video:
        for level in (0, 120, 250):
            video.add(np.full((64, 96, 3), level, np.uint8))
    frames = list(imageio.mimread(path))
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 3
    assert [abs(int(f.mean()) - level) <= 3 for f, level in zip(frames, (0, 120, 250), strict=True)] == [True] * 3


def test_an_interrupted_video_leaves_nothing(tmp_path):
    def interrupted():
        with Video(tmp_path / "episode.mp4", rate=10.0) as video:
            video.add(np.zeros((64, 96, 3), np.uint8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("height", [48, 49])
def test_the_banner_leaves_the_picture_as_it_is_and_the_height_even(height):
    picture = np.random.default_rng(0).integers(0, 256, (height, 200, 3), dtype=np.uint8)
    shown = add_banner(picture, "t = 1.0 s")
    assert shown.shape[0] % 2 == 0
    assert np.array_equal(shown[-height:], picture)
    assert (shown[:-height] > 200).any()


def test_the_status_line_and_the_summary_tell_what_the_diagnostics_say():
    policy = {"image to chunk p50 ms": "61.2", "kept patches cam_high": "9/64", "kept patches cam_left_wrist": "4/64"}
    executor = {"control rate (Hz)": "25", "interventions: step": "3", "interventions: position": "2"}
    line = status_line(policy, executor, "armed", 3.21)
    for part in ("3.2 s", "armed", "25 Hz", "61.2 ms", "9/64 4/64", "interventions 5"):
        assert part in line
    table = summary(policy, executor, {}, CommandWitness(ROBOT.channels, commands=100, outside=1))
    assert "100 / 1" in list(table.columns[1].cells)

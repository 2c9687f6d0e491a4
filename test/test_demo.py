"""The demo as a user runs it: real processes, real DDS, a real video; and Ctrl-C at any moment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v2 as imageio
import pytest

from lightvla_core.errors import LightVLAError
from lightvla_ros import demo

pytestmark = pytest.mark.timeout(240)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "lightvla_core.cli", "demo", *arguments]
    # The name marks the demo's processes, which sit in sessions of their own.
    environment = {**os.environ, "LIGHTVLA_TEST_MARK": str(folder)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def left_over(folder: Path) -> list[int]:
    """Processes that carry the mark in their environment, but for this one."""
    mark = f"LIGHTVLA_TEST_MARK={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    pytest.fail(f"{text!r} never came: {''.join(seen)}")


def test_the_demo_moves_the_arm_within_limits_and_leaves_a_video(tmp_path, tiny_checkpoint):
    process = start(tmp_path, "--seconds", "4", "--checkpoint", str(tiny_checkpoint))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert re.search(r"armed and moving [\d.]+ s after", output)
    seen, outside = map(int, re.search(r"seen / outside limits\W+(\d+) / (\d+)", output).groups())
    assert seen > 4 * 4 * 10, "four topics at 25 Hz"
    assert outside == 0
    frames = imageio.mimread(tmp_path / "demo.mp4", memtest=False)
    assert len(frames) > 10
    assert frames[0].shape[1] > 2 * 448, "two cameras side by side"
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(("given", "moment"), [(False, "no checkpoint given"), (True, "armed and moving")])
def test_ctrl_c_ends_every_process_within_three_seconds(tmp_path, tiny_checkpoint, given, moment):
    process = start(tmp_path, "--seconds", "60", *(["--checkpoint", str(tiny_checkpoint)] if given else []))
    wait_for_line(process, moment)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - asked < 3.0
    assert process.returncode == 130
    assert "Traceback" not in output
    assert left_over(tmp_path) == []
    assert not (tmp_path / "demo.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"instruction": "  "}, "the instruction is empty"),
        ({"video": Path("/nonexistent/demo.mp4")}, "the folder of the video"),
        ({"checkpoint": Path("/nonexistent")}, "does not exist"),
        ({"checkpoint": Path(__file__)}, "is a file"),
        ({"pace": "slow"}, "expected real_time or clock"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(arguments, sentence):
    given = {"checkpoint": None, "instruction": "go", "seconds": 1.0, "video": Path("demo.mp4"), **arguments}
    with pytest.raises(LightVLAError, match=sentence):
        demo.run(**given)

"""What an episode on a robot looked like from outside: a check of every command, a video, a summary. No ROS here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from lightvla_ros.robots.description import RobotChannel

RGB = NDArray[np.uint8]

_BANNER = 36  # px, height of the strip above the cameras
_BACKGROUND = (18, 20, 24)
_TEXT = (235, 238, 242)
_ROUNDING = 1e-6  # commands travel through unit conversions


@dataclass
class CommandWitness:
    """Looks at every published command, with the robot's limits and nothing of the executor's.

    counts what it saw, and what broke a position limit or the limit of a step between two commands
    """

    channels: Sequence[RobotChannel]
    commands: int = 0
    outside: int = 0
    _last: dict[tuple[str, str], float] = field(default_factory=dict)

    def see(self, arm: str, names: Sequence[str], positions: Sequence[float]) -> None:
        """One command of one arm, driver's names and units (rad; a gripper's motor angle)."""
        self.commands += 1
        by_joint = {c.joint: c for c in self.channels if c.arm == arm}
        within = len(names) == len(positions) and all(
            name in by_joint and self._within(by_joint[name], value)
            for name, value in zip(names, positions, strict=True)
        )
        self.outside += not within

    def _within(self, channel: RobotChannel, value: float) -> bool:
        lower, upper, step = channel.lower, channel.upper, channel.max_step
        if channel.gripper is not None:
            closed, opened = channel.gripper.motor(0.0), channel.gripper.motor(1.0)
            lower, upper = sorted((closed, opened))
            step *= abs(opened - closed)
        last = self._last.get((channel.arm, channel.joint), value)
        self._last[channel.arm, channel.joint] = value
        return (
            math.isfinite(value)
            and lower - _ROUNDING <= value <= upper + _ROUNDING
            and abs(value - last) <= step + _ROUNDING
        )


class Video:
    """An H.264 file that appears under its name when it is complete. Use as a context manager."""

    def __init__(self, path: Path, rate: float) -> None:
        """rate: frames/s"""
        self._path, self._rate = path, rate
        self._partial = path.with_name(f".{path.stem}.partial.mp4")
        self._writer: Any = None
        self.frames = 0

    def __enter__(self) -> Video:
        return self

    def add(self, frame: RGB) -> None:
        """uint8 (height, width, 3) RGB, both sides even"""
        if self._writer is None:
            import imageio.v2 as imageio

            # One thread at the fastest preset: encoding runs beside the robot's control loop.
            options = ["-threads", "1", "-preset", "ultrafast", "-crf", "20"]
            self._writer = imageio.get_writer(
                self._partial, fps=self._rate, codec="libx264", macro_block_size=2, output_params=options
            )
        self._writer.append_data(frame)
        self.frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)


def add_banner(picture: RGB, text: str) -> RGB:
    """The picture under a strip of text: uint8 (height + banner, width, 3), height rounded to an even number."""
    banner = np.full((_BANNER + picture.shape[0] % 2, picture.shape[1], 3), _BACKGROUND, np.uint8)
    cv2.putText(banner, text, (8, _BANNER - 12), cv2.FONT_HERSHEY_SIMPLEX, 0.6, _TEXT, 1, cv2.LINE_AA)
    return np.concatenate((banner, picture))


def status_line(policy: Mapping[str, str], executor: Mapping[str, str], state: str, elapsed: float) -> str:
    """The episode in one line, from the nodes' diagnostics."""
    rate, latency = executor.get("control rate (Hz)", "-"), policy.get("image to chunk p50 ms", "-")
    return (
        f"{elapsed:5.1f} s  {state:8.8}  control {_known(rate):>5} Hz  "
        f"chunk latency {_known(latency):>5} ms  kept {_kept(policy):9}  "
        f"interventions {_total(executor, 'interventions')}"
    )


def _known(value: str) -> str:
    return "-" if value == "nan" else value


def _kept(policy: Mapping[str, str]) -> str:
    return " ".join(value for key, value in policy.items() if key.startswith("kept patches")) or "-"


def _total(executor: Mapping[str, str], what: str) -> int:
    return sum(int(value) for key, value in executor.items() if key.startswith(f"{what}: "))


def summary(
    policy: Mapping[str, str], executor: Mapping[str, str], simulator: Mapping[str, str], witness: CommandWitness
) -> Table:
    """What was measured, as a table: the nodes' own diagnostics, and the witness's count."""
    rows = (
        ("control rate", f"{executor.get('control rate (Hz)', '-')} Hz"),
        ("command lateness p50 / p99 / max", _several(executor, "lateness {} (ms)", ("p50", "p99", "max"))),
        ("control periods missed", executor.get("periods missed", "-")),
        ("command messages seen / outside limits", f"{witness.commands} / {witness.outside}"),
        ("interventions of the safety layer", str(_total(executor, "interventions"))),
        ("chunks rejected", str(_total(executor, "chunks rejected"))),
        ("inferences", policy.get("inferences", "-")),
        ("inference p50 / p99", _several(policy, "inference {} ms", ("p50", "p99"))),
        ("image stamp to chunk p50 / p99", _several(policy, "image to chunk {} ms", ("p50", "p99"))),
        ("image stamp to first command p50 / p99", _several(executor, "latency {} (ms)", ("p50", "p99"))),
        ("patches kept, last inference", _kept(policy)),
        ("simulator's real-time factor", simulator.get("real-time factor", "-")),
        ("real-time scheduling", executor.get("real-time", "-")),
    )
    table = Table("measured in this episode", "", show_header=True)
    for row in rows:
        table.add_row(*row)
    return table


def _several(values: Mapping[str, str], key: str, names: Sequence[str]) -> str:
    return " / ".join(values.get(key.format(name), "-") for name in names) + " ms"

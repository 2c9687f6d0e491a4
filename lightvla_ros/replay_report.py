"""What is left of a replay: a bag of chunks, a CSV, a plot per joint and a table of errors. No inference here."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from lightvla_core.errors import LightVLAError
from lightvla_ros.bag import BagWriter, build, time_message
from lightvla_ros.chunk_message import chunk_fields
from lightvla_ros.chunk_schedule import TimedChunk
from lightvla_ros.recorded_actions import TRAJECTORY
from lightvla_ros.replay import Replay

CHUNK_TOPIC, RECORDED_TOPIC = "/policy/action_chunk", "/recorded/action_chunk"


@dataclass(frozen=True)
class JointError:
    """Predicted minus recorded of one channel, in its unit. first, last: mean |error| of a chunk's first and last step.

    source: what was recorded; compared: how many steps had a recorded counterpart
    """

    name: str
    unit: str
    source: str
    compared: int
    mean: float
    rms: float
    largest: float
    first: float
    last: float


def joint_errors(replay: Replay) -> tuple[JointError, ...]:
    """One entry a channel, in the contract's order; NaN where nothing could be compared."""
    chunks = [item.chunk for item in replay.chunks]
    # (chunks, steps, channels)
    error = np.abs(np.stack([c.actions for c in chunks]) - np.stack([replay.recorded_steps(c) for c in chunks]))
    return tuple(
        JointError(
            name=channel.name,
            unit=channel.unit,
            source=replay.recorded[channel.name].source,
            compared=int(np.isfinite(error[..., i]).sum()),
            mean=_mean(error[..., i]),
            rms=_mean(error[..., i] ** 2) ** 0.5,
            largest=float(np.nanmax(error[..., i])) if np.isfinite(error[..., i]).any() else float("nan"),
            first=_mean(error[:, 0, i]),
            last=_mean(error[:, -1, i]),
        )
        for i, channel in enumerate(replay.contract.actions)
    )


def error_table(replay: Replay) -> Table:
    table = Table(title=f"predicted against recorded actions, {len(replay.chunks)} chunks")
    table.add_column("action")
    for heading in ("unit", "recorded", "steps", "mean |error|", "RMS", "largest", "first step", "last step"):
        table.add_column(heading, justify="right")
    for e in joint_errors(replay):
        numbers = (f"{value:.4f}" for value in (e.mean, e.rms, e.largest, e.first, e.last))
        table.add_row(e.name, e.unit, e.source, str(e.compared), *numbers)
    return table


def write_report(replay: Replay, folder: Path) -> None:
    """Write `chunks/` (a bag), `actions.csv` and `plots/<joint>.png` into a folder that exists."""
    _write_bag(replay, folder / "chunks")
    _write_csv(replay, folder / "actions.csv")
    _write_plots(replay, folder / "plots")


def require_free(folder: Path) -> None:
    """Raises LightVLAError if something is where a report shall go."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LightVLAError(f"{folder} exists already and is not empty; give another folder with --out")


def make_folder(folder: Path) -> None:
    """Make the folder of a report. Raises LightVLAError if something is there already."""
    require_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LightVLAError(f"the folder {folder} cannot be made ({error.strerror})") from None


def _write_bag(replay: Replay, path: Path) -> None:
    """The chunks as the live node publishes them, and what was recorded for their steps in the same form."""
    with BagWriter(path) as bag:
        for item in replay.chunks:
            predicted, recorded = item.chunk, replay.recorded_steps(item.chunk)
            bag.write(CHUNK_TOPIC, TRAJECTORY, _message(predicted, predicted.actions), item.decided)
            # Only the steps before the recording's end: no message of ours carries a NaN.
            count = int(np.cumprod(np.isfinite(recorded).all(axis=1)).sum())
            if count:
                bag.write(RECORDED_TOPIC, TRAJECTORY, _message(predicted, recorded[:count]), item.decided)


def _message(chunk: TimedChunk, actions: NDArray[np.float64]) -> Any:
    fields, none = chunk_fields(chunk), np.empty(0)
    points = [
        build(
            "trajectory_msgs/msg/JointTrajectoryPoint",
            positions=np.array(action),
            velocities=none,
            accelerations=none,
            effort=none,
            time_from_start=build("builtin_interfaces/msg/Duration", sec=seconds, nanosec=nanoseconds),
        )
        for action, (seconds, nanoseconds) in zip(actions, fields.times_from_start, strict=False)
    ]
    stamp = time_message(fields.stamp[0] * 1_000_000_000 + fields.stamp[1])
    header = build("std_msgs/msg/Header", stamp=stamp, frame_id=fields.frame_id)
    return build(TRAJECTORY, header=header, joint_names=list(fields.joint_names), points=points)


def _write_csv(replay: Replay, path: Path) -> None:
    """A row a step: which chunk, when it is sent (s), and each joint's predicted and recorded value (rad, or 0..1)."""
    names = replay.contract.action_names
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = [f"{name} {what}" for name in names for what in ("predicted", "recorded")]
        writer.writerow(["chunk", "step", "time", *columns])
        for item in replay.chunks:
            chunk, recorded = item.chunk, replay.recorded_steps(item.chunk)
            for step, (action, known) in enumerate(zip(chunk.actions, recorded, strict=True)):
                pairs = [_text(value) for pair in zip(action, known, strict=True) for value in pair]
                writer.writerow([chunk.sequence, step, f"{chunk.stamp + step * chunk.dt:.6f}", *pairs])


def _write_plots(replay: Replay, folder: Path) -> None:
    folder.mkdir()
    start = min(item.chunk.stamp for item in replay.chunks)
    for i, channel in enumerate(replay.contract.actions):
        figure = _plot(replay, i, start)
        figure.savefig(folder / f"{channel.name}.png", dpi=100)


def _plot(replay: Replay, i: int, start: float) -> Any:
    try:
        # A figure without pyplot draws with Agg, opens no window and is freed with its last reference.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LightVLAError(
            f"plots are drawn with matplotlib ({error}); install it with: pip install -e '.[replay]'"
        ) from None
    channel = replay.contract.actions[i]
    figure = Figure(figsize=(9.0, 3.5), layout="constrained")
    axes = figure.subplots()
    recorded = replay.recorded[channel.name]
    drawstyle = "steps-post" if recorded.source == "command" else "default"
    label = f"recorded ({recorded.source})"
    axes.plot(recorded.times - start, recorded.values, "k", linewidth=1.2, label=label, drawstyle=drawstyle)
    for n, item in enumerate(replay.chunks):
        times = item.chunk.stamp - start + np.arange(len(item.chunk.actions)) * item.chunk.dt
        label = "predicted chunks" if n == 0 else ""
        axes.plot(times, item.chunk.actions[:, i], color=f"C{n % 2}", linewidth=0.9, label=label)
        axes.plot(times[0], item.chunk.actions[0, i], color=f"C{n % 2}", marker="o", markersize=3)
    gripper, unit = replay.contract.gripper, str(channel.unit)
    if gripper is not None and channel.name in gripper.channels:
        unit = f"{gripper.closed:g} closed, {gripper.open:g} open"
    axes.set(xlabel="time since the first chunk (s)", ylabel=f"{channel.name} ({unit})")
    axes.legend(loc="upper right", fontsize="small")
    axes.grid(alpha=0.3)
    return figure


def _mean(values: NDArray[np.float64]) -> float:
    finite: Sequence[float] = values[np.isfinite(values)].tolist()
    return float(np.mean(finite)) if finite else float("nan")


def _text(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"

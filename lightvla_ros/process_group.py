"""Starts the processes of a graph without a launch system, notices when one dies, and ends them in order.

Which processes with which parameters is decided in processes.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from lightvla_core.contract import FILE_NAME, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.processes import Process

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE = 1.5  # s, between asking processes to end and ending them
# Inference first, then the commands, then the robot.
_STOP_ORDER = ("policy_node", "executor_node", "sim_node")


@dataclass(frozen=True)
class _Started:
    process: Process
    popen: subprocess.Popen[bytes]
    log: Path


class ProcessGroup:
    """Running processes; called, it raises LightVLAError when one of them has ended by itself."""

    def __init__(self) -> None:
        self._started: list[_Started] = []

    def start(self, process: Process, logs: Path) -> None:
        log = logs / f"{process.executable}.log"
        with log.open("wb") as output, _signals_later():
            # A session of its own: Ctrl-C reaches only this process, which ends the others in order.
            popen = subprocess.Popen(
                process.command(),
                env={**os.environ, **process.environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._started.append(_Started(process, popen, log))

    def pid(self, executable: str) -> int:
        return next(s.popen.pid for s in self._started if s.process.executable == executable)

    def __call__(self) -> None:
        for started in self._started:
            status = started.popen.poll()
            if status is not None:
                lines = started.log.read_text(errors="replace").strip().splitlines()
                raise LightVLAError(
                    f"{started.process.executable} ended with status {status}: {lines[-1] if lines else 'no output'}"
                )

    def ask_to_end(self) -> list[subprocess.Popen[bytes]]:
        """Send SIGINT to those that run, in the order of stopping, and return them; waits for nothing."""
        ordered = [s.popen for s in sorted(self._started, key=_stop_rank) if s.popen.poll() is None]
        for popen in ordered:
            popen.send_signal(signal.SIGINT)
        return ordered

    def end(self) -> None:
        """End them, whatever happens, within a little more than the grace."""
        ordered = self.ask_to_end()
        deadline = time.monotonic() + _GRACE
        for popen in ordered:
            try:
                popen.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()


@contextmanager
def running(processes: Sequence[Process], logs: Path) -> Iterator[ProcessGroup]:
    """Start the processes, their output in files of the folder `logs`, and end them when the block is left."""
    group = ProcessGroup()
    try:
        for process in processes:
            group.start(process, logs)
        _pass_signals_on(group)
        yield group
    finally:
        group.end()


def _pass_signals_on(group: ProcessGroup) -> None:
    """Signals reach the group before anything is unwound here, so that it ends while this process does."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        group.ask_to_end()
        raise KeyboardInterrupt

    for number in _SIGNALS:
        signal.signal(number, on_signal)


def run_to_end(command: Sequence[str]) -> None:
    """Run a command that prints one sentence when it fails; raises LightVLAError with that sentence."""
    popen = None
    try:
        with _signals_later():
            popen = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        _, errors = popen.communicate()
    finally:
        if popen is not None and popen.poll() is None:
            popen.kill()
            popen.wait()
    if popen.returncode:
        raise LightVLAError((errors.strip().splitlines() or [f"{command[0]} failed without a word"])[-1])


@contextmanager
def _signals_later() -> Iterator[None]:
    """What would interrupt this block does so at its end: a process half started would be left behind."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, frame: came.append(n)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> None:
    """A tiny checkpoint with random weights, in a process of its own: loading torch here would take seconds."""
    run_to_end([sys.executable, "-m", "lightvla_core.cli", "init", str(folder), "--seed", str(seed)])


@dataclass(frozen=True)
class SimulatedPolicy:
    """A checkpoint for the simulated robot. note: for whoever watches; cameras, image_size (px): what it needs"""

    checkpoint: Path
    note: str
    cameras: tuple[str, ...]
    image_size: int


def simulated_policy(
    checkpoint: Path | str | None, instruction: str, folder: Path, seed: int, say: Callable[[str], None]
) -> SimulatedPolicy:
    """This checkpoint, or where there is none a tiny one with random weights in `folder`, and then all shown says so.

    Raises LightVLAError for a blank instruction or a folder that is no checkpoint.
    """
    if not instruction.strip():
        raise LightVLAError("the instruction is empty; say what the robot should do, such as 'pick up the red cube'")
    note = instruction
    if not checkpoint:
        checkpoint = folder / "tiny"
        note = f"untrained policy, random weights: the motion means nothing | {instruction}"
        say("no checkpoint given: a tiny policy with random weights, which has learnt nothing")
        write_tiny_checkpoint(checkpoint, seed)
    return SimulatedPolicy(Path(checkpoint), note, *camera_settings(Path(checkpoint)))


def camera_settings(checkpoint: Path) -> tuple[tuple[str, ...], int]:
    """Names and image size (px) that the simulated robot must render: asked of the contract before anything starts."""
    from lightvla_core.checkpoint import require_folder

    require_folder(checkpoint)
    contract = PolicyContract.from_file(checkpoint / FILE_NAME)
    return contract.camera_names, max(camera.height for camera in contract.cameras)


def interrupt_on_sigterm() -> None:
    """Let SIGTERM, and SIGHUP of a closed terminal, take the same way out as Ctrl-C.

    SIGINT too: a script's background job is born ignoring it, and would leave its processes behind.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in _SIGNALS:
        signal.signal(number, on_signal)


def _stop_rank(started: _Started) -> int:
    name = started.process.executable
    return _STOP_ORDER.index(name) if name in _STOP_ORDER else len(_STOP_ORDER)

"""`lightvla demo`: the simulation's processes without a launch system, and one episode on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from lightvla_core.contract import FILE_NAME, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.domain import reserve_domain
from lightvla_ros.processes import Pace, Process, local_only_environment, simulation

_GRACE = 2.0  # s, between asking processes to end and ending them


def run(
    checkpoint: Path | None, instruction: str, seconds: float, video: Path, seed: int = 0, pace: Pace = "real_time"
) -> None:
    """One episode. Without a checkpoint, of a tiny policy with random weights, and everything shown says so."""
    if not instruction.strip():
        raise LightVLAError("the instruction is empty; say what the robot should do, such as 'pick up the red cube'")
    if not video.absolute().parent.is_dir():
        raise LightVLAError(f"the folder of the video {video} does not exist; make it first")
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lightvla_demo_") as folder, reserve_domain() as domain:
        os.environ.update({"ROS_DOMAIN_ID": str(domain), **local_only_environment()})
        note = instruction
        if checkpoint is None:
            checkpoint = Path(folder) / "tiny"
            note = f"untrained policy, random weights: the motion means nothing | {instruction}"
            console.print(
                "no checkpoint given: a tiny policy with [bold]random weights[/bold], which has learnt nothing"
            )
            _run_to_end([sys.executable, "-m", "lightvla_core.cli", "init", str(checkpoint), "--seed", str(seed)])
        cameras, size = _camera_settings(checkpoint)
        processes = simulation(checkpoint, instruction, seed, cameras, size, pace)
        with _running(processes, Path(folder)) as alive:
            _operate(seconds, video, note, console, alive)


def _camera_settings(checkpoint: Path) -> tuple[tuple[str, ...], int]:
    """What the simulated robot must render: asked of the contract before anything starts."""
    from lightvla_core.checkpoint import require_folder

    require_folder(checkpoint)
    contract = PolicyContract.from_file(checkpoint / FILE_NAME)
    return contract.camera_names, max(camera.height for camera in contract.cameras)


def _run_to_end(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LightVLAError((result.stderr.strip().splitlines() or ["the checkpoint could not be made"])[-1])


class _Alive:
    """Callable that raises when one of the processes has ended by itself."""

    def __init__(self, running: Sequence[tuple[Process, subprocess.Popen[bytes], Path]]) -> None:
        self._running = running

    def __call__(self) -> None:
        for process, popen, log in self._running:
            if popen.poll() is not None:
                lines = log.read_text(errors="replace").strip().splitlines()
                raise LightVLAError(
                    f"{process.executable} ended with status {popen.returncode}: {lines[-1] if lines else 'no output'}"
                )


@contextmanager
def _running(processes: Sequence[Process], logs: Path) -> Iterator[_Alive]:
    """Start the processes; end them, whatever happens, within a little more than the grace."""
    running: list[tuple[Process, subprocess.Popen[bytes], Path]] = []
    try:
        for process in processes:
            log = logs / f"{process.executable}.log"
            with log.open("wb") as output:
                # A session of its own: Ctrl-C reaches only this process, which ends the others in order.
                popen = subprocess.Popen(
                    process.command(),
                    env={**os.environ, **process.environment},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            running.append((process, popen, log))
        yield _Alive(running)
    finally:
        # Inference first, then the commands, then the robot.
        order = {"policy_node": 0, "executor_node": 1, "sim_node": 2}
        _end([popen for _, popen, _ in sorted(running, key=lambda item: order[item[0].executable])])


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for popen in running:
        if popen.poll() is None:
            popen.send_signal(signal.SIGINT)
    deadline = time.monotonic() + _GRACE
    for popen in running:
        try:
            popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def _operate(seconds: float, video: Path, note: str, console: Console, alive: _Alive) -> None:
    # Only now: importing ROS takes longer than starting the processes, which load at the same time.
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from lightvla_ros.demo_operator import DemoOperator, interrupt_on_sigterm, run_episode

    interrupt_on_sigterm()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        run_episode(DemoOperator(alive), seconds, video, note, console)
    finally:
        rclpy.try_shutdown()

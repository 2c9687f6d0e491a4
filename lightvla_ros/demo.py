"""`lightvla demo`: the simulation's processes without a launch system, and one episode on them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from rich.console import Console

from lightvla_core.errors import LightVLAError
from lightvla_ros.domain import reserve_domain
from lightvla_ros.process_group import interrupt_on_sigterm, running, simulated_policy
from lightvla_ros.processes import Pace, local_only_environment, simulation


def run(
    checkpoint: Path | None, instruction: str, seconds: float, video: Path, seed: int = 0, pace: Pace = "real_time"
) -> None:
    """One episode. Without a checkpoint, of a tiny policy with random weights, and everything shown says so."""
    if not video.absolute().parent.is_dir():
        raise LightVLAError(f"the folder of the video {video} does not exist; make it first")
    if pace not in get_args(Pace):
        raise LightVLAError(f"pace is {pace!r}; expected {' or '.join(get_args(Pace))}")
    interrupt_on_sigterm()
    console = Console()
    try:
        _episode(checkpoint, instruction, seconds, video, seed, pace, console)
    except KeyboardInterrupt:
        # All is ended and removed; taking an interpreter with ROS down would take another second.
        console.print("interrupted")
        sys.stdout.flush()
        os._exit(130)


def _episode(
    checkpoint: Path | None, instruction: str, seconds: float, video: Path, seed: int, pace: Pace, console: Console
) -> None:
    with tempfile.TemporaryDirectory(prefix="lightvla_demo_") as folder, reserve_domain() as domain:
        os.environ.update({"ROS_DOMAIN_ID": str(domain), **local_only_environment()})
        policy = simulated_policy(checkpoint, instruction, Path(folder), seed, console.print)
        processes = simulation(policy.checkpoint, instruction, seed, policy.cameras, policy.image_size, pace)
        console.print("starting the simulated robot, the policy and the executor ...")
        with running(processes, Path(folder)) as alive:
            _operate(seconds, video, policy.note, console, alive)


def _operate(seconds: float, video: Path, note: str, console: Console, alive: Callable[[], None]) -> None:
    # Only now: importing ROS takes longer than starting the processes, which load at the same time.
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from lightvla_ros.demo_operator import DemoOperator, run_episode

    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        run_episode(DemoOperator(alive), seconds, video, note, console)
    finally:
        rclpy.try_shutdown()

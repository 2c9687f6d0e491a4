"""The node that stands in for a person in the simulation: configure, activate, arm, watch, disarm, report.

What it measures and draws is in episode.py; which processes it talks to, in processes.py.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from lightvla_core.errors import LightVLAError

# First of all that imports ROS: it refuses a mixture of two installations.
from lightvla_ros.lifecycle import NEWEST_QOS, Parameter  # isort: split

import rclpy
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from trajectory_msgs.msg import JointTrajectory

from lightvla_ros.episode import CommandWitness, Video, add_banner, status_line, summary
from lightvla_ros.graph_operator import GraphOperator
from lightvla_ros.images import image_to_rgb
from lightvla_ros.process_group import interrupt_on_sigterm
from lightvla_ros.robots.aloha import command_topics
from lightvla_ros.robots.description_file import load_robot

VIDEO_RATE = 10.0
_PLAIN_STATUS_PERIOD = 5.0  # s, between status lines where the output is not a terminal

PARAMETERS = (
    Parameter("seconds", 20.0, "Length of the episode, s.", 1.0, 3600.0),
    Parameter("video", "demo.mp4", "Where the video goes."),
    Parameter("note", "", "What the video's banner says besides the instruction."),
)


class DemoOperator(GraphOperator):
    """Runs one episode on a graph of sim, policy and executor. alive: raises when a process of the graph has died."""

    def __init__(self, alive: Callable[[], None] = lambda: None) -> None:
        super().__init__("demo_operator", alive)
        robot = load_robot("aloha", "aloha1")
        self._witness = CommandWitness(robot.channels)
        self._picture: Any = None
        self.create_subscription(Image, "policy/debug_image", self._on_picture, NEWEST_QOS)
        for topic in command_topics(tuple(robot.joint_state_topics), "joint_trajectory", 0.04):
            self.create_subscription(JointTrajectory, topic.topic, self._witness_of(topic.arm), QoSProfile(depth=100))

    def run(self, seconds: float, video: Video, note: str, show: Callable[[str], None]) -> None:
        """Watch for this long; ends early, with the reason, when the executor stops."""
        began = time.monotonic()
        frames = 0
        while (elapsed := time.monotonic() - began) < seconds:
            self.spin_for(0.02)
            self._alive()
            if self.state.startswith("stopped"):
                raise LightVLAError(f"the executor {self.state}")
            if elapsed * VIDEO_RATE >= frames and self._picture is not None:
                frames = math.floor(elapsed * VIDEO_RATE) + 1
                text = " | ".join(part for part in (note, f"t = {elapsed:4.1f} s") if part)
                video.add(add_banner(image_to_rgb(self._picture, "policy/debug_image"), text))
            show(status_line(self.values("policy"), self.values("executor"), self.state, elapsed))

    def summary(self) -> Any:
        return summary(self.values("policy"), self.values("executor"), self.values("sim"), self._witness)

    def _on_picture(self, message: Any) -> None:
        self._picture = message

    def _witness_of(self, arm: str) -> Callable[[Any], None]:
        def see(message: Any) -> None:
            self._witness.see(arm, message.joint_names, message.points[-1].positions)

        return see


def run_episode(operator: DemoOperator, seconds: float, video_path: Path, note: str, console: Console) -> None:
    """Bring up, arm, run, disarm, report. The video and the summary come also when Ctrl-C ends the episode early."""
    began = time.monotonic()
    operator.bring_up()
    operator.arm()
    console.print(f"armed and moving {time.monotonic() - began:.1f} s after the processes started")
    with Video(video_path, VIDEO_RATE) as video:
        operator.run(seconds, video, note, status_printer(console))
    operator.disarm()
    console.print()
    console.print(operator.summary())
    console.print(f"video: {video_path} ({video.frames} frames at {VIDEO_RATE:g} Hz)")


def status_printer(console: Console) -> Callable[[str], None]:
    """One line that is rewritten in place on a terminal; elsewhere a line every few seconds."""
    last = -math.inf

    def show(line: str) -> None:
        nonlocal last
        period = 0.1 if console.is_terminal else _PLAIN_STATUS_PERIOD
        if time.monotonic() - last < period:
            return
        last = time.monotonic()
        if console.is_terminal:
            print(f"\r\x1b[2K{line[: console.width - 1]}", end="", flush=True)
        else:
            print(line, flush=True)

    return show


def main() -> int:
    """Entry point of the launch file's last process, which runs the episode."""
    interrupt_on_sigterm()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        operator = DemoOperator()
        for parameter in PARAMETERS:
            operator.declare_parameter(parameter.name, parameter.default, parameter.descriptor())
        seconds, video, note = (operator.get_parameter(parameter.name).value for parameter in PARAMETERS)
        run_episode(operator, seconds, Path(video), note, Console())
    except LightVLAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

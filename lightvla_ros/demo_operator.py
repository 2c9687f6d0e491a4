"""The node that stands in for a person in the simulation: configure, activate, arm, watch, disarm, report.

What it measures and draws is in episode.py; which processes it talks to, in processes.py.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError

# First of all that imports ROS: it refuses a mixture of two installations.
from lightvla_ros.lifecycle import LATCHED_QOS, NEWEST_QOS, Parameter  # isort: split

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Log
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from lightvla_ros.episode import CommandWitness, Video, add_banner, status_line, summary
from lightvla_ros.images import image_to_rgb
from lightvla_ros.robots.aloha import command_topics
from lightvla_ros.robots.description import load_robot

VIDEO_RATE = 10.0
_ERROR_LEVEL = 40  # rcl_interfaces/Log.ERROR, whose Python type differs between distributions
_SERVICE_TIMEOUT = 20.0  # s, for a node to come up; DDS discovery alone takes up to 2.3 s
_CONFIGURE_TIMEOUT = 120.0  # s, for the policy to load and warm up
_PLAIN_STATUS_PERIOD = 5.0  # s, between status lines where the output is not a terminal

PARAMETERS = (
    Parameter("seconds", 20.0, "Length of the episode, s.", 1.0, 3600.0),
    Parameter("video", "demo.mp4", "Where the video goes."),
    Parameter("note", "", "What the video's banner says besides the instruction."),
)


class DemoOperator(Node):
    """Runs one episode on a graph of sim, policy and executor. alive: raises when a process of the graph has died."""

    def __init__(self, alive: Callable[[], None] = lambda: None) -> None:
        super().__init__("demo_operator")
        self._alive = alive
        robot = load_robot("aloha", "aloha1")
        self._witness = CommandWitness(robot.channels)
        self._diagnostics: dict[str, dict[str, str]] = {}
        self._errors: list[str] = []
        self._picture: Any = None
        self._state = ""
        self._contract: PolicyContract | None = None
        self.instruction = ""
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.create_subscription(Log, "/rosout", self._on_log, QoSProfile(depth=100))
        self.create_subscription(Image, "policy/debug_image", self._on_picture, NEWEST_QOS)
        self.create_subscription(String, "executor/state", self._on_state, LATCHED_QOS)
        self.create_subscription(String, "policy/contract", self._on_contract, LATCHED_QOS)
        for topic in command_topics(tuple(robot.joint_state_topics), "joint_trajectory", 0.04):
            self.create_subscription(JointTrajectory, topic.topic, self._witness_of(topic.arm), QoSProfile(depth=100))

    # -- the episode

    def bring_up(self) -> None:
        """Configure and activate policy, then executor. Raises LightVLAError with the node's own sentence."""
        self._change("policy", Transition.TRANSITION_CONFIGURE, _CONFIGURE_TIMEOUT)
        self.spin_until(lambda: self._contract is not None, _SERVICE_TIMEOUT, "the policy's contract has not arrived")
        # The executor's own subscription may match a little later than this one's.
        self._change("executor", Transition.TRANSITION_CONFIGURE, _SERVICE_TIMEOUT, retries=5)
        self._change("policy", Transition.TRANSITION_ACTIVATE, _SERVICE_TIMEOUT)
        self._change("executor", Transition.TRANSITION_ACTIVATE, _SERVICE_TIMEOUT)

    def arm(self) -> None:
        """Arm, as soon as joint states and a chunk are there."""
        deadline = time.monotonic() + _SERVICE_TIMEOUT
        while not (answer := self._call(Trigger, "executor/arm", Trigger.Request(), _SERVICE_TIMEOUT)).success:
            if time.monotonic() > deadline:
                raise LightVLAError(f"the executor does not arm: {answer.message}")
            self.spin_for(0.2)

    def disarm(self) -> None:
        self._call(Trigger, "executor/disarm", Trigger.Request(), 2.0)

    def run(self, seconds: float, video: Video, note: str, show: Callable[[str], None]) -> None:
        """Watch for this long; ends early, with the reason, when the executor stops."""
        began = time.monotonic()
        frames = 0
        while (elapsed := time.monotonic() - began) < seconds:
            self.spin_for(0.02)
            self._alive()
            if self._state.startswith("stopped"):
                raise LightVLAError(f"the executor {self._state}")
            if elapsed * VIDEO_RATE >= frames and self._picture is not None:
                frames = math.floor(elapsed * VIDEO_RATE) + 1
                text = " | ".join(part for part in (note, f"t = {elapsed:4.1f} s") if part)
                video.add(add_banner(image_to_rgb(self._picture, "policy/debug_image"), text))
            show(status_line(self._values("policy"), self._values("executor"), self._state, elapsed))

    def summary(self) -> Any:
        return summary(self._values("policy"), self._values("executor"), self._values("sim"), self._witness)

    # -- waiting

    def spin_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left)

    def spin_until(self, done: Callable[[], bool], timeout: float, otherwise: str) -> None:
        deadline = time.monotonic() + timeout
        while not done():
            self._alive()
            if time.monotonic() > deadline:
                raise LightVLAError(f"{otherwise} after {timeout:g} s")
            rclpy.spin_once(self, timeout_sec=0.1)

    def _call(self, kind: Any, name: str, request: Any, timeout: float) -> Any:
        client = self.create_client(kind, name)
        try:
            self.spin_until(client.service_is_ready, timeout, f"the service {name} has not appeared")
            future = client.call_async(request)
            self.spin_until(future.done, timeout, f"the service {name} has not answered")
            return future.result()
        finally:
            self.destroy_client(client)

    def _change(self, node: str, transition: int, timeout: float, retries: int = 0) -> None:
        request = ChangeState.Request(transition=Transition(id=transition))
        for _ in range(1 + retries):
            self._errors.clear()
            if self._call(ChangeState, f"{node}/change_state", request, timeout).success:
                return
            self.spin_for(0.5)
        raise LightVLAError(self._errors[-1] if self._errors else f"the node {node} refused transition {transition}")

    # -- what the graph says

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            name = status.name.split(":")[0].strip("/ ")
            self._diagnostics[name] = {pair.key: pair.value for pair in status.values}

    def _values(self, node: str) -> dict[str, str]:
        return self._diagnostics.get(node, {})

    def _on_log(self, message: Any) -> None:
        if message.level >= _ERROR_LEVEL:
            self._errors.append(message.msg)

    def _on_picture(self, message: Any) -> None:
        self._picture = message

    def _on_state(self, message: Any) -> None:
        self._state = message.data

    def _on_contract(self, message: Any) -> None:
        self._contract = PolicyContract.from_json(message.data, "the policy's contract")

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


def interrupt_on_sigterm() -> None:
    """Let SIGTERM take the same way out as Ctrl-C."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, on_signal)


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

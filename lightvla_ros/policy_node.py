"""The node `policy`: cameras, joint states and an instruction in, action chunks out. It never commands a robot.

Only topics, parameters and messages are here; the inference thread is lightvla_ros.inference_loop.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lightvla_ros.lifecycle import (
    LATCHED_QOS,
    NEWEST_QOS,
    SENSOR_QOS,
    ManagedNode,
    Parameter,
    diagnostic_status,
    hear_everybody,
    run,
)

# isort: split
# Only now, when lightvla_ros.lifecycle has refused a mixture of two ROS 2s, does ROS come in.
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64, String
from trajectory_msgs.msg import JointTrajectory

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.interface import ActionChunk, Observation
from lightvla_ros.chunk_message import timed_chunk, to_message
from lightvla_ros.images import fill_image
from lightvla_ros.inbox import Inbox
from lightvla_ros.inference_loop import InferenceLoop, LoopStatus
from lightvla_ros.inference_timing import MODES, InferenceTiming
from lightvla_ros.observation import EdgeLog, Limits, NotReady, ObservationGatherer, Reason, Stream
from lightvla_ros.overlay import draw_overlay
from lightvla_ros.plan_clock import check_speed
from lightvla_ros.robots.adapter import POSE_SOURCES, proprioception, proprioception_sources
from lightvla_ros.robots.description import RobotDescription, check_contract
from lightvla_ros.robots.description_file import load_robot
from lightvla_ros.robots.state_inbox import StateMessage, subscribe_state

if TYPE_CHECKING:
    from lightvla_core.policy import Policy

CONFIGURATION_PARAMETERS = (
    Parameter("checkpoint", "", "folder of the checkpoint, as made by `lightvla import`, `lightvla init` or training"),
    Parameter("robot", "aloha", "name of a file in config/robots, or the path of one"),
    Parameter("gripper", "", "gripper variant of the robot, as named in its file; empty: the first there"),
    Parameter("pose_source", "broadcaster", "where the end effector's pose comes from", choices=POSE_SOURCES),
    Parameter("device", "cpu", "where the policy runs: cpu, cuda or cuda:N"),
    Parameter("instruction", "", "first instruction; empty: wait for one on the topic `instruction`"),
    Parameter("torch_threads", 0, "CPU threads for the policy; 0: as many as torch wants", low=0, high=256),
    Parameter("transport", "raw", "camera topics: raw, or `<topic>/compressed`", choices=("raw", "compressed")),
)
RUN_TIME_PARAMETERS = (
    Parameter(
        "mode",
        "receding_horizon",
        "when to infer: after a chunk's end, every replan_steps, or just in time for the end",
        choices=MODES,
    ),
    Parameter("replan_steps", 0, "receding_horizon: steps between observations; 0: no waiting", low=0, high=1000),
    Parameter("max_age", 0.3, "oldest message to infer on, s, by header stamp and by receipt", low=0.001, high=10.0),
    Parameter("max_skew", 0.15, "largest time between the stamps of one observation, s", low=0.001, high=10.0),
    Parameter("debug_image_rate", 5.0, "highest rate of ~/debug_image, Hz", low=0.1, high=60.0),
)
# How long a stream may be missing after activation before it is said, s: DDS discovery takes up to 2.3 s.
_GRACE = 3.0
_WARM_UP_RUNS = 3


class PolicyNode(ManagedNode):
    """Loads in configure, infers between activate and deactivate, and gives ~/contract to whoever executes chunks."""

    def __init__(self, **kwargs: Any) -> None:
        self._policy: Policy | None = None
        self._loop: InferenceLoop | None = None
        self._streams: tuple[Stream, ...] = ()
        self._gatherer: ObservationGatherer | None = None
        self._instruction = ""
        self._active = False
        self._speed, self._speed_is_bad = 1.0, False
        self._executing = False
        self._sequence = 0
        self._drawn = 0.0
        self._edges = EdgeLog({})
        self._owned: list[Callable[[], object]] = []
        super().__init__("policy", CONFIGURATION_PARAMETERS, RUN_TIME_PARAMETERS, **kwargs)

    def configure_node(self) -> None:
        self._instruction = self._first_instruction()
        robot = load_robot(self.value("robot"), self.value("gripper"))
        self._policy = self._load_policy()
        contract = self._contract = self._policy.contract
        check_contract(contract, robot)
        self._sources = {s.name: s for s in proprioception_sources(contract, robot, self.value("pose_source"))}
        self._streams = tuple(self._make_streams(contract, robot))
        self._gatherer = ObservationGatherer(self._streams, Limits(self.value("max_age"), self.value("max_skew")))
        self._timing(contract)
        self._warm_up(self._policy, robot)
        self._proprioception = partial(proprioception, contract, robot) if contract.proprioception else None
        self._make_publishers()
        self._make_subscriptions()
        self._contract_publisher.publish(String(data=contract.to_json()))

    def activate_node(self) -> None:
        assert self._policy is not None
        assert self._gatherer is not None
        self._edges = EdgeLog({Reason.MISSING: _GRACE, Reason.SKEWED: self.value("max_age")})
        timing = self._timing(self._contract)
        self._loop = InferenceLoop(
            self._policy,
            self._gatherer,
            self._streams,
            self._proprioception,
            _decode,
            timing,
            self._ros_time,
            self,
        )
        self._loop.instruct(self._instruction)
        self._loop.set_speed(self._speed)
        self._loop.start()
        self._active = True

    def accept_parameters(self) -> None:
        if self._gatherer is None or self._policy is None:
            return
        timing = self._timing(self._contract)
        self._gatherer.limits = Limits(self.value("max_age"), self.value("max_skew"))
        if self._loop is not None:
            self._loop.set_timing(timing)

    def deactivate_node(self) -> None:
        self._active = False
        if self._loop is not None:
            self._loop.stop()

    def cleanup_node(self) -> None:
        self._loop = self._policy = self._gatherer = None
        while self._owned:
            self._owned.pop()()

    # What the inference thread says.

    def publish(self, chunk: ActionChunk, instruction: str) -> None:
        self._sequence += 1
        # Raises for numbers that are not finite, and then nothing is published.
        timed = timed_chunk(chunk, self._contract, instruction, self._sequence)
        self._chunks.publish(to_message(timed))

    def show(self, observation: Observation, chunk: ActionChunk) -> None:
        now = time.monotonic()
        if now - self._drawn < 1.0 / self.value("debug_image_rate") or not self._pictures.get_subscription_count():
            return
        self._drawn = now
        message = Image()
        message.header.stamp = Time(nanoseconds=round(observation.stamp * 1e9)).to_msg()
        fill_image(message, draw_overlay(observation.images, chunk.kept, self._contract))
        self._pictures.publish(message)

    def tell(self, fault: NotReady | None) -> None:
        sentence = self._edges.update(fault, time.monotonic())
        if sentence is None:
            return
        if fault is None:
            self.get_logger().info(sentence)
        elif fault.reason is Reason.FAILED:
            self.get_logger().error(sentence)
        else:
            self.get_logger().warning(sentence)

    def failed(self, error: Exception, trace: str) -> None:
        self.get_logger().error(f"inference stopped: {type(error).__name__}: {error}")
        self.get_logger().debug(trace)

    # What the executor thread hears.

    def _on_message(self, stream: Stream, message: StateMessage) -> None:
        if self._gatherer is not None:
            self._gatherer.put(stream.name, message, message.stamp, message.received)
        if self._loop is not None and stream.kind == "camera":
            self._loop.wake()

    def _on_instruction(self, message: Any) -> None:
        # A blank text is no instruction: the loop says so once and infers no more.
        self._instruction = message.data.strip()
        if self._loop is not None:
            self._loop.instruct(self._instruction)

    def _on_state(self, message: Any) -> None:
        """Armed, the executor takes nothing from before: an open-loop chunk in force would leave it starving."""
        began, self._executing = not self._executing, message.data == "armed"
        if began and self._executing and self._loop is not None:
            self._loop.begin_anew()

    def _on_speed(self, message: Any) -> None:
        try:
            check_speed(message.data)
        except LightVLAError as error:
            if not self._speed_is_bad:
                self.get_logger().warning(f"ignored what came on executor/speed: {error}")
            self._speed_is_bad = True
            return
        self._speed_is_bad = False
        self._speed = message.data
        if self._loop is not None:
            self._loop.set_speed(self._speed)

    def diagnostic_status(self) -> Any:
        if self._loop is None or not self._active:
            return diagnostic_status(self.get_name(), {}, "configured" if self._policy else "unconfigured")
        status = self._loop.status()
        level, message = DiagnosticStatus.OK, "inferring"
        if status.fault is not None:
            level = DiagnosticStatus.ERROR if status.fault.reason is Reason.FAILED else DiagnosticStatus.WARN
            message = status.fault.sentence
        values = _diagnostic_values(status)
        if self._gatherer is not None:
            values |= {f"messages {stream}": count for stream, count in self._gatherer.received().items()}
        return diagnostic_status(self.get_name(), values, message, level)

    # Configuration.

    def _first_instruction(self) -> str:
        text: str = self.value("instruction")
        if text and not text.strip():
            raise LightVLAError(
                "parameter instruction is blank; give the task in words, or leave it empty to wait for one on the "
                "topic `instruction`"
            )
        return text.strip()

    def _load_policy(self) -> Policy:
        checkpoint: str = self.value("checkpoint")
        if not checkpoint:
            raise LightVLAError("parameter checkpoint is empty; give the folder of a checkpoint")
        try:
            import torch

            from lightvla_core.policy import Policy
        except ImportError as error:
            raise LightVLAError(f"the policy needs torch and timm on this machine ({error})") from None
        if self.value("torch_threads"):
            torch.set_num_threads(self.value("torch_threads"))
        return Policy.from_checkpoint(checkpoint, device=self.value("device"))

    def _make_streams(self, contract: PolicyContract, robot: RobotDescription) -> Iterator[Stream]:
        suffix = "/compressed" if self.value("transport") == "compressed" else ""
        for camera in contract.camera_names:
            yield Stream(camera, self.resolve_topic_name(robot.camera_topic(camera) + suffix), "camera")
        for source in self._sources.values():
            kind: Literal["joint state", "pose"] = "joint state" if source.kind == "joint_state" else "pose"
            yield Stream(source.name, self.resolve_topic_name(source.topic), kind)

    def _timing(self, contract: PolicyContract) -> InferenceTiming:
        return InferenceTiming(self.value("mode"), contract.period, contract.chunk_length, self.value("replan_steps"))

    def _warm_up(self, policy: Policy, robot: RobotDescription) -> None:
        """The first inferences allocate and compile; they run on noise at the start pose and count for no estimate."""
        contract, noise = policy.contract, np.random.default_rng(0)
        images = {c.name: noise.integers(0, 256, (c.height, c.width, 3), dtype=np.uint8) for c in contract.cameras}
        start = np.array([channel.start for channel in robot.select_states(contract.proprio_names)])
        observation = Observation(images, start if start.size else None, self._instruction or "warm up")
        for _ in range(_WARM_UP_RUNS):
            started = time.perf_counter()
            policy.predict_action(observation)
            seconds = time.perf_counter() - started
        self.get_logger().info(
            f"{self.value('checkpoint')} on {self.value('device')}: {len(contract.cameras)} cameras, "
            f"{contract.chunk_length} steps at {contract.control_rate:g} Hz, {seconds * 1e3:.0f} ms an inference"
        )

    def _make_publishers(self) -> None:
        self._contract_publisher = self._own_publisher(String, "~/contract", LATCHED_QOS)
        self._chunks = self._own_publisher(JointTrajectory, "~/action_chunk", NEWEST_QOS)
        self._pictures = self._own_publisher(Image, "~/debug_image", NEWEST_QOS)

    def _make_subscriptions(self) -> None:
        self._inbox = Inbox(self)
        self._owned.append(self._inbox.close)
        camera_type = CompressedImage if self.value("transport") == "compressed" else Image
        for stream in self._streams:
            if stream.kind == "camera":
                self._inbox.subscribe(camera_type, stream.topic, partial(self._on_message, stream), SENSOR_QOS)
            else:
                subscribe_state(self._inbox, self._sources[stream.name], partial(self._on_message, stream))
        subscriptions = [
            *hear_everybody(self, String, "instruction", self._on_instruction),
            self.create_subscription(Float64, "executor/speed", self._on_speed, LATCHED_QOS),
            self.create_subscription(String, "executor/state", self._on_state, LATCHED_QOS),
        ]
        self._owned.extend(partial(self.destroy_subscription, subscription) for subscription in subscriptions)
        self._inbox.start()

    def _own_publisher(self, kind: Any, topic: str, qos: Any) -> Any:
        publisher = self.create_publisher(kind, topic, qos)
        self._owned.append(lambda: self.destroy_publisher(publisher))
        return publisher

    def _ros_time(self) -> float:
        return float(self.get_clock().now().nanoseconds) * 1e-9


def _decode(message: StateMessage) -> Any:
    return message.decode()


def _diagnostic_values(status: LoopStatus) -> dict[str, object]:
    return {
        "inferences": status.inferences,
        "dropped chunks": status.dropped,
        "inference p50 ms": status.inference_p50 * 1e3,
        "inference p99 ms": status.inference_p99 * 1e3,
        "image to chunk p50 ms": status.image_to_chunk_p50 * 1e3,
        "image to chunk p99 ms": status.image_to_chunk_p99 * 1e3,
        "frame age p99 ms": status.frame_age_p99 * 1e3,
        "overhead p99 ms": status.overhead_p99 * 1e3,
        **{f"kept patches {camera}": f"{kept}/{total}" for camera, (kept, total) in status.kept.items()},
    }


def main(arguments: list[str] | None = None) -> int:
    return run(PolicyNode, arguments)


if __name__ == "__main__":
    sys.exit(main())

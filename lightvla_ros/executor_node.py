"""The node `executor`: action chunks in, limited robot commands out, at control rate. Imports no torch.

A shell: what is commanded, and whether, is decided in execution.py; when, in control_loop.py.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError

# First of all that imports ROS: it refuses a mixture of two installations.
from lightvla_ros.lifecycle import (  # isort: split
    LATCHED_QOS,
    NEWEST_QOS,
    SENSOR_QOS,
    ManagedNode,
    Parameter,
    diagnostic_status,
    run,
)

from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from lightvla_ros.chunk_message import from_message, instruction_id
from lightvla_ros.chunk_schedule import ChunkError
from lightvla_ros.control_loop import ControlLoop, RealTime, request_real_time
from lightvla_ros.execution import Execution, ExecutionSettings
from lightvla_ros.inbox import Inbox, RawMessage
from lightvla_ros.robots.aloha import COMMAND_TYPES, CommandTopic, command_topics, commands, proprioception
from lightvla_ros.robots.description import load_robot
from lightvla_ros.safety import Now

PARAMETERS = (
    Parameter("robot", "aloha", "Robot: a file of config/robots without its ending, or a path to a .yaml file."),
    Parameter("gripper", "aloha1", "Gripper variant, as named in the robot's file."),
    Parameter("command_type", "joint_trajectory", "Message type of the commands.", choices=COMMAND_TYPES),
    Parameter("control_rate", 0.0, "Commands per second, Hz; 0 takes the contract's rate.", 0.0, 1000.0),
    Parameter("blend_time", 0.08, "Time in which the jump between two chunks fades, s; 0 for none.", 0.0, 2.0),
    Parameter("starvation_timeout", 1.0, "Longest time without an executable step while armed, s.", 0.01, 60.0),
    Parameter("state_timeout", 0.3, "Oldest joint state, by its stamp and by its receipt, s.", 0.01, 10.0),
    Parameter("future_tolerance", 0.05, "How far ahead of the clock a stamp may be, s.", 0.0, 1.0),
    Parameter("max_clock_leap", 0.5, "Largest jump ahead of the ROS clock, s.", 0.01, 10.0),
    Parameter("real_time_priority", 50, "SCHED_FIFO priority asked for the process; 0 to not ask.", 0, 99),
    Parameter("lock_memory", False, "Ask that the process's memory stays resident."),
)


class ExecutorNode(ManagedNode):
    """Starts inactive, and disarmed when active: then it publishes on ~/preview what it would command."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("executor", PARAMETERS, **kwargs)
        # Guards the execution, which the control loop's thread and the callbacks share, and the order of commands.
        self._lock = threading.RLock()
        self._execution: Execution | None = None
        self._loop: ControlLoop | None = None
        self._real_time: RealTime | None = None
        self._contract_text: str | None = None
        self._instruction: str | None = None
        self._trouble: dict[str, str] = {}
        self._commanders: list[tuple[CommandTopic, Any]] = []
        self._inbox: Inbox | None = None
        self._chunks: Any = None
        # The newest joint state of each arm that nobody has looked at yet.
        self._unread: dict[str, RawMessage] = {}
        self._last_state = ""
        self._state_publisher = self.create_publisher(String, "~/state", LATCHED_QOS)
        self._preview_publisher = self.create_publisher(JointTrajectory, "~/preview", NEWEST_QOS)
        self.create_subscription(String, "policy/contract", self._on_contract, LATCHED_QOS)
        self.create_subscription(String, "instruction", self._on_instruction, LATCHED_QOS)
        self.create_service(Trigger, "~/arm", self._on_arm)
        self.create_service(Trigger, "~/disarm", self._on_disarm)
        self._report_state()

    def configure_node(self) -> None:
        contract = self._read_contract()
        robot = load_robot(self.value("robot"), self.value("gripper"))
        channels = robot.select(contract.action_names)
        self._execution = Execution(
            contract, robot, self._settings(contract), lambda states: proprioception(channels, states)
        )
        if self._instruction is not None:
            self._execution.set_instruction(self._instruction)
        self._channels = channels
        for topic in command_topics(
            tuple(robot.joint_state_topics), self.value("command_type"), self._execution.settings.period
        ):
            self._commanders.append((topic, self.create_publisher(topic.message, topic.topic, NEWEST_QOS)))
        self._inbox = Inbox(self)
        for arm, name in robot.joint_state_topics.items():
            self._inbox.subscribe(JointState, name, partial(self._on_joint_state, arm), SENSOR_QOS)
        self._inbox.start()
        self._chunks = self.create_subscription(JointTrajectory, "policy/action_chunk", self._on_chunk, NEWEST_QOS)
        self._real_time = request_real_time(self.value("real_time_priority"), self.value("lock_memory"))
        self.get_logger().info(
            f"configured for {robot.robot}, contract {contract.hash}, "
            f"{1 / self._execution.settings.period:g} Hz; {self._real_time.sentence}"
        )

    def activate_node(self) -> None:
        assert self._execution is not None
        self._loop = ControlLoop(self._execution.settings.period, self._on_period, self._on_loop_error)
        self._loop.start()

    def deactivate_node(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.stop()
        self._hold_and_disarm("the executor was deactivated")

    def cleanup_node(self) -> None:
        if self._inbox is not None:
            self._inbox.close()
        if self._chunks is not None:
            self.destroy_subscription(self._chunks)
        for _, publisher in self._commanders:
            self.destroy_publisher(publisher)
        self._inbox, self._chunks, self._commanders = None, None, []
        self._execution = None

    def diagnostic_status(self) -> Any:
        with self._lock:
            execution, loop = self._execution, self._loop
            if execution is None or loop is None:
                return diagnostic_status("executor", {}, "inactive")
            state, counts = execution.state, execution.counts()
        statistics = loop.statistics()
        values: dict[str, object] = {
            "state": state,
            "contract": execution.contract.hash,
            "real-time": self._real_time.sentence if self._real_time else "",
            "control rate (Hz)": statistics.rate,
            "lateness p50 (ms)": 1e3 * statistics.lateness_p50,
            "lateness p99 (ms)": 1e3 * statistics.lateness_p99,
            "lateness max (ms)": 1e3 * statistics.lateness_max,
            "periods missed": statistics.missed,
            "commands sent": counts.commands,
            "steps late": counts.steps_late,
            "latency p50 (ms)": 1e3 * counts.latency_p50,
            "latency p99 (ms)": 1e3 * counts.latency_p99,
        }
        values |= {f"interventions: {kind}": n for kind, n in counts.interventions.items()}
        values |= {f"chunks rejected: {reason}": n for reason, n in counts.rejected.items()}
        level = DiagnosticStatus.ERROR if state.startswith("stopped") else DiagnosticStatus.OK
        return diagnostic_status("executor", values, state, level)

    def _read_contract(self) -> PolicyContract:
        if self._contract_text is None:
            topic = self.resolve_topic_name("policy/contract")
            raise LightVLAError(f"no contract has arrived on {topic} yet; configure the policy node first")
        return PolicyContract.from_json(self._contract_text, "the policy's contract")

    def _settings(self, contract: PolicyContract) -> ExecutionSettings:
        return ExecutionSettings(
            period=1.0 / (self.value("control_rate") or contract.control_rate),
            blend_time=self.value("blend_time"),
            starvation_timeout=self.value("starvation_timeout"),
            state_timeout=self.value("state_timeout"),
            future_tolerance=self.value("future_tolerance"),
            max_clock_leap=self.value("max_clock_leap"),
        )

    def _now(self) -> Now:
        return Now(self.get_clock().now().nanoseconds * 1e-9, time.monotonic())

    def _on_contract(self, message: Any) -> None:
        if self._execution is not None and message.data != self._contract_text:
            self.get_logger().warning("another contract has arrived; deactivate, clean up and configure to take it")
        self._contract_text = message.data

    def _on_instruction(self, message: Any) -> None:
        text = message.data.strip()
        self._report_trouble("instruction", "" if text else "the instruction is empty; the one before stays in force")
        if not text:
            return
        with self._lock:
            self._instruction = instruction_id(text)
            if self._execution is not None:
                self._execution.set_instruction(self._instruction)

    def _on_joint_state(self, arm: str, message: RawMessage) -> None:
        self._unread[arm] = message

    def _read_joint_states(self) -> None:
        """Hand what came since the last period to the execution; under the lock."""
        for arm in tuple(self._unread):
            raw = self._unread.pop(arm)
            self._read_joint_state(arm, raw.decode(), raw)

    def _read_joint_state(self, arm: str, message: Any, raw: RawMessage) -> None:
        fits = len(message.name) == len(message.position)
        self._report_trouble(
            f"joint state of {arm}",
            "" if fits else f"a joint state of {arm} has {len(message.name)} names, {len(message.position)} positions",
        )
        if not fits or self._execution is None:
            return
        positions = dict(zip(message.name, message.position, strict=True))
        self._execution.feed_state(arm, positions, raw.stamp, raw.received)

    def _on_chunk(self, message: Any) -> None:
        execution = self._execution
        if execution is None:
            return
        try:
            chunk = from_message(message, execution.contract)
        except ChunkError as error:
            with self._lock:
                execution.count_refused(error)
            self._report_trouble("chunk", str(error), error.reason)
            return
        try:
            with self._lock:
                execution.offer(chunk, self._now())
        except ChunkError as error:
            self._report_trouble("chunk", str(error), error.reason)
            return
        self._report_trouble("chunk", "")

    def _on_arm(self, request: Any, response: Any) -> Any:
        try:
            self._arm()
        except LightVLAError as error:
            response.success, response.message = False, str(error)
            self.get_logger().warning(f"refused to arm: {error}")
            return response
        response.success, response.message = True, "armed"
        return response

    def _arm(self) -> None:
        if self._execution is None or self._loop is None:
            raise LightVLAError("the executor is not active; configure and activate it first")
        for topic, publisher in self._commanders:
            others = self.count_publishers(publisher.topic_name) - 1
            if others > 0:
                raise LightVLAError(
                    f"cannot arm: {others} other publisher(s) on {publisher.topic_name} would command {topic.arm} too"
                )
        with self._lock:
            self._read_joint_states()
            self._execution.arm(self._now())
            self._loop.reset()
            self._report_state()

    def _on_disarm(self, request: Any, response: Any) -> Any:
        self._hold_and_disarm("disarmed")
        response.success, response.message = True, "disarmed"
        return response

    def _hold_and_disarm(self, reason: str) -> None:
        """The defined stop, its target sent a last time, then silence: the driver holds its last goal."""
        with self._lock:
            if self._execution is None:
                return
            was_armed = self._execution.state == "armed"
            target = self._execution.stop(reason, self._now())
            if was_armed and target is not None:
                self._send(target)
            self._execution.disarm()
            self._report_state()

    def _on_period(self, deadline: float) -> None:
        execution = self._execution
        if execution is None:
            return
        with self._lock:
            try:
                self._read_joint_states()
                period = execution.run_period(self._now())
                if period.command is not None:
                    self._send(period.command)
                elif period.preview is not None:
                    self._publish_preview(execution.contract.action_names, period.preview)
            except Exception as error:
                # The loop goes on, so that the latched target is repeated.
                sentence = f"fault: {type(error).__name__}: {error}"
                self._report_trouble("control period", sentence)
                execution.stop(sentence, self._now())
            self._report_state()

    def _on_loop_error(self, error: Exception) -> None:
        self.log_failure("the control loop", error)

    def _send(self, command: NDArray[np.float64]) -> None:
        by_arm = {c.arm: c for c in commands(self._channels, command)}
        for topic, publisher in self._commanders:
            publisher.publish(topic.build(by_arm[topic.arm]))

    def _publish_preview(self, names: tuple[str, ...], preview: NDArray[np.float64]) -> None:
        message = JointTrajectory(joint_names=list(names), points=[JointTrajectoryPoint(positions=preview.tolist())])
        message.header.stamp = self.get_clock().now().to_msg()
        self._preview_publisher.publish(message)

    def _report_state(self) -> None:
        """Publish and log the state when it has changed."""
        state = self._execution.state if self._execution is not None else "disarmed"
        if state == self._last_state:
            return
        self._last_state = state
        self._state_publisher.publish(String(data=state))
        if state.startswith("stopped"):
            self.get_logger().error(f"{state}; holding the last target until armed again")
        else:
            self.get_logger().info(state)

    def _report_trouble(self, what: str, sentence: str, kind: str | None = None) -> None:
        """Log when an input goes bad, in another way than before, and when it is good again."""
        kind = sentence if kind is None else kind
        if kind == self._trouble.get(what, ""):
            return
        self._trouble[what] = kind
        if sentence:
            self.get_logger().warning(sentence)
        else:
            self.get_logger().info(f"{what}: good again")


def main() -> int:
    return run(ExecutorNode)


if __name__ == "__main__":
    raise SystemExit(main())

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
    hear_everybody,
    run,
)

from diagnostic_msgs.msg import DiagnosticStatus
from std_msgs.msg import Bool, Empty, Float64, Header, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from lightvla_ros.chunk_message import from_message, instruction_id
from lightvla_ros.chunk_schedule import ChunkError
from lightvla_ros.control_loop import ControlLoop, percentiles
from lightvla_ros.execution import Execution
from lightvla_ros.executor_parameters import RUN_TIME_PARAMETERS, execution_settings
from lightvla_ros.inbox import Inbox
from lightvla_ros.real_time import RealTime, request_real_time
from lightvla_ros.robots.adapter import COMMAND_TYPES, POSE_SOURCES, RobotAdapter, adapter_for, state_values
from lightvla_ros.robots.commanders import Commanders
from lightvla_ros.robots.description_file import load_robot
from lightvla_ros.robots.state_inbox import StateMessage, subscribe_state
from lightvla_ros.safety import Now

CONFIGURATION_PARAMETERS = (
    Parameter("robot", "aloha", "Robot: a file of config/robots without its ending, or a path to a .yaml file."),
    Parameter("gripper", "", "Gripper variant, as named in the robot's file; empty: the first there."),
    Parameter("command_type", "auto", "Message type of the commands; auto: the robot's usual.", choices=COMMAND_TYPES),
    Parameter("pose_source", "broadcaster", "Where the end effector's pose comes from.", choices=POSE_SOURCES),
    Parameter("real_time_priority", 50, "SCHED_FIFO priority asked for the control loop; 0 to not ask.", 0, 99),
    Parameter("lock_memory", False, "Ask that the process's memory stays resident."),
)
# s, between two heartbeats on ~/heartbeat.
_HEARTBEAT_PERIOD = 0.1
_LOOP_ENDED = "the control loop has ended"


class ExecutorNode(ManagedNode):
    """Starts inactive, and disarmed when active: then it publishes on ~/preview what it would command."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("executor", CONFIGURATION_PARAMETERS, RUN_TIME_PARAMETERS, **kwargs)
        # Guards the execution, which the control loop's thread and the callbacks share, and the order of commands.
        self._lock = threading.RLock()
        self._execution: Execution | None = None
        self._loop: ControlLoop | None = None
        self._real_time: RealTime | None = None
        self._contract_text: str | None = None
        self._instruction: str | None = None
        self._trouble: dict[str, str] = {}
        self._adapter: RobotAdapter | None = None
        self._commanders: Commanders | None = None
        self._inbox: Inbox | None = None
        self._polls = True
        self._chunks: Any = None
        # The newest state of each source that nobody has looked at yet.
        self._unread: dict[str, StateMessage] = {}
        self._last_state = ""
        self._next_heartbeat = 0.0
        self._estop = False
        self._state_publisher = self.create_publisher(String, "~/state", LATCHED_QOS)
        self._preview_publisher = self.create_publisher(JointTrajectory, "~/preview", NEWEST_QOS)
        self.create_subscription(String, "policy/contract", self._on_contract, LATCHED_QOS)
        hear_everybody(self, String, "instruction", self._on_instruction)
        self._heartbeat_publisher = self.create_publisher(Header, "~/heartbeat", NEWEST_QOS)
        self._speed_publisher = self.create_publisher(Float64, "~/speed", LATCHED_QOS)
        hear_everybody(self, Bool, "estop", self._on_estop_message)
        self.create_subscription(Empty, "operator/heartbeat", self._on_operator_heartbeat, SENSOR_QOS)
        self.create_service(Trigger, "~/arm", self._on_arm)
        self.create_service(Trigger, "~/estop", self._on_estop)
        self.create_service(Trigger, "~/disarm", self._on_disarm)
        self.create_service(Trigger, "~/move_to_start", self._on_move_to_start)
        self._report_state()

    def configure_node(self) -> None:
        contract = self._read_contract()
        robot = load_robot(self.value("robot"), self.value("gripper"))
        settings = execution_settings(self.value, contract)
        adapter = adapter_for(
            contract, robot, self.value("command_type"), settings.mode.period, self.value("pose_source")
        )
        self._adapter = adapter
        self._execution = Execution(contract, adapter.robot, settings, adapter.measure)
        if self._instruction is not None:
            self._execution.set_instruction(self._instruction)
        self._execution.set_emergency_stop(self._estop, self._now())
        self._speed_publisher.publish(Float64(data=self._execution.settings.mode.speed))
        self._commanders = Commanders(self, adapter)
        self._inbox = Inbox(self)
        for source in adapter.sources:
            subscribe_state(self._inbox, source, partial(self._on_state, source.name))
        # The many messages of /tf are decoded one by one, which is not for the control loop's thread.
        self._polls = all(source.kind != "tf" for source in adapter.sources)
        if not self._polls:
            self._inbox.start()
        self._chunks = self.create_subscription(JointTrajectory, "policy/action_chunk", self._on_chunk, NEWEST_QOS)
        self._real_time = request_real_time(self.value("real_time_priority"), self.value("lock_memory"))
        self.get_logger().info(
            f"configured for {robot.robot}, contract {contract.hash}, "
            f"{1 / self._execution.settings.mode.period:g} Hz; {self._real_time.sentence}"
        )

    def activate_node(self) -> None:
        assert self._execution is not None
        # A target latched before belongs to another time: it is never sent again.
        self._execution.disarm()
        self._report_state()
        priority = self.value("real_time_priority") if self._real_time and self._real_time.scheduling else 0
        self._loop = ControlLoop(
            self._execution.settings.mode.period, self._on_period, self._on_loop_error, priority=priority
        )
        self._loop.start()

    def deactivate_node(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.stop()
        self._hold("the executor was deactivated")

    def stop(self) -> None:
        self._undo("the stop", partial(self._hold, "the executor's process ends"))
        super().stop()

    def accept_parameters(self) -> None:
        with self._lock:
            if self._execution is not None:
                settings = execution_settings(self.value, self._execution.contract)
                self._execution.change(settings)
                self._speed_publisher.publish(Float64(data=settings.mode.speed))

    def cleanup_node(self) -> None:
        if self._inbox is not None:
            self._inbox.close()
        if self._chunks is not None:
            self.destroy_subscription(self._chunks)
        if self._commanders is not None:
            self._commanders.close()
        self._inbox = self._chunks = self._commanders = self._adapter = None
        self._unread.clear()
        self._execution = None

    def diagnostic_status(self) -> Any:
        with self._lock:
            execution, loop = self._execution, self._loop
            if execution is None or loop is None:
                return diagnostic_status("executor", {}, "inactive")
            state, counts = execution.state, execution.counts()
        statistics = loop.statistics()
        latency_p50, latency_p99 = percentiles(counts.latencies, 50, 99)
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
            "latency p50 (ms)": 1e3 * latency_p50,
            "latency p99 (ms)": 1e3 * latency_p99,
        }
        values |= {f"interventions: {kind}": n for kind, n in counts.interventions.items()}
        values |= {f"chunks rejected: {reason}": n for reason, n in counts.rejected.items()}
        if not loop.running:
            state = f"{state}; {_LOOP_ENDED}"
        level = DiagnosticStatus.ERROR if state.startswith("stopped") or not loop.running else DiagnosticStatus.OK
        return diagnostic_status("executor", values, state, level)

    def _read_contract(self) -> PolicyContract:
        if self._contract_text is None:
            topic = self.resolve_topic_name("policy/contract")
            raise LightVLAError(f"no contract has arrived on {topic} yet; configure the policy node first")
        return PolicyContract.from_json(self._contract_text, "the policy's contract")

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

    def _on_state(self, source: str, message: StateMessage) -> None:
        self._unread[source] = message

    def _read_states(self) -> None:
        """Hand what came since the last period to the execution; under the lock."""
        if self._inbox is not None and self._polls:
            try:
                self._inbox.poll()
            except Exception as error:  # the middleware's own; without states the watchdog stops
                self._report_trouble("states", f"the states cannot be received: {type(error).__name__}: {error}")
        for source in tuple(self._unread):
            message = self._unread.pop(source)
            try:
                values = state_values(message.decode(), source)
            except Exception as error:
                # Bytes that are no message count as none came: without a good one, the state goes stale and stops.
                self._report_trouble(f"state of {source}", f"the state of {source} cannot be read: {error}")
                continue
            self._report_trouble(f"state of {source}", "")
            if self._execution is not None:
                self._execution.feed_state(source, values, message.stamp, message.received)

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

    def _on_move_to_start(self, request: Any, response: Any) -> Any:
        try:
            seconds = self._arm(to_start=True)
        except LightVLAError as error:
            response.success, response.message = False, str(error)
            self.get_logger().warning(f"refused to move to the start pose: {error}")
            return response
        response.success, response.message = True, f"moving to the start pose, {seconds:.1f} s"
        return response

    def _arm(self, to_start: bool = False) -> float:
        """Returns how long the move to the start pose takes, s; 0 without one."""
        if self._execution is None or self._loop is None:
            raise LightVLAError("the executor is not active; configure and activate it first")
        if not self._loop.running:
            raise LightVLAError(f"cannot arm: {_LOOP_ENDED}; deactivate and activate the executor")
        assert self._commanders is not None
        assert self._adapter is not None
        self._commanders.refuse_competition()
        with self._lock:
            self._read_states()
            seconds = 0.0
            if to_start:
                seconds = self._execution.move_to_start(self._now())
            else:
                self._execution.arm(self._now())
            self._adapter.reset()
            self._loop.reset()
            self._report_state()
        return seconds

    def _on_disarm(self, request: Any, response: Any) -> Any:
        self._hold("disarmed")
        with self._lock:
            if self._execution is not None:
                self._execution.disarm()
            self._report_state()
        response.success, response.message = True, "disarmed"
        return response

    def _on_estop(self, request: Any, response: Any) -> Any:
        """Stops, as the topic does, but engages nothing: who is not armed can be armed right afterwards."""
        with self._lock:
            if self._execution is not None and self._execution.state.startswith("armed"):
                self._execution.stop("emergency stop", self._now())
                self._report_state()
                message = self._last_state
            else:
                message = f"nothing was armed ({self._last_state}); to keep it so, use the topic estop"
        response.success, response.message = True, message
        return response

    def _on_estop_message(self, message: Any) -> None:
        with self._lock:
            self._estop = bool(message.data)
            if self._execution is not None:
                self._execution.set_emergency_stop(self._estop, self._now())
            self._report_state()

    def _on_operator_heartbeat(self, message: Any) -> None:
        if self._execution is not None:
            self._execution.feed_heartbeat(time.monotonic())

    def _hold(self, reason: str) -> None:
        """The defined stop, its target sent a last time, then silence: the driver holds its last goal."""
        with self._lock:
            if self._execution is None or self._execution.state == "disarmed":
                return
            now = self._now()
            # Where it stopped a moment ago, no period may have sent that target yet.
            target = self._execution.stop(reason, now)
            if target is not None:
                # Whatever fails here, the stop is latched, and what comes after it must come.
                self._undo("sending the latched target", partial(self._send, target, now))
            self._report_state()

    def _on_period(self, deadline: float) -> None:
        execution = self._execution
        if execution is None:
            return
        with self._lock:
            try:
                self._read_states()
                now = self._now()
                period = execution.run_period(now)
                # First: the command, too, is to be reached within the new period.
                self._follow_period(execution.settings.mode.period)
                if period.command is not None:
                    self._send(period.command, now)
                elif period.preview is not None:
                    self._publish_preview(execution.contract.action_names, period.preview)
            except Exception as error:
                # The loop goes on, so that the latched target is repeated.
                sentence = f"fault: {type(error).__name__}: {error}"
                self._report_trouble("control period", sentence)
                execution.stop(sentence, self._now())
            self._report_state()
        self._publish_heartbeat(deadline)

    def _follow_period(self, period: float) -> None:
        """Take over a control rate that was changed at a step boundary."""
        if self._loop is None or period == self._loop.period:
            return
        self._loop.period = period
        if self._adapter is not None:
            self._adapter.set_period(period)

    def _publish_heartbeat(self, now: float) -> None:
        """From the control loop's own thread, so that it vouches for the loop. now: s, steady clock."""
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + _HEARTBEAT_PERIOD
            self._heartbeat_publisher.publish(Header(stamp=self.get_clock().now().to_msg(), frame_id=self._last_state))

    def _on_loop_error(self, error: Exception) -> None:
        self.log_failure("the control loop", error)
        self._hold(f"fault: {_LOOP_ENDED}")

    def _send(self, command: NDArray[np.float64], now: Now) -> None:
        if self._commanders is not None and self._execution is not None:
            holding = self._execution.state.startswith("stopped")
            self._commanders.send(command, self._execution.states, now, holding)

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

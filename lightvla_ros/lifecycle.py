"""The base of every node here: guarded lifecycle transitions, parameters from a table, diagnostics, and `run`.

What a node does between its transitions lives in the node's own module.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from lightvla_core.errors import LightVLAError
from lightvla_ros.ros_environment import exit_on_ros_mix

# A mixture fails inside the dynamic loader, without a sentence; so ask before the first import of ROS.
exit_on_ros_mix()

import rclpy  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue  # noqa: E402
from rcl_interfaces.msg import (  # noqa: E402
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.clock import Clock, ClockType  # noqa: E402
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn  # noqa: E402
from rclpy.parameter import Parameter as RosParameter  # noqa: E402
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from rclpy.signals import SignalHandlerOptions  # noqa: E402

# The detection bound of a signal: how long the executor may wait before it looks for one, s.
_SIGNAL_POLL = 0.05

SENSOR_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT, history=HistoryPolicy.KEEP_LAST)
NEWEST_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, history=HistoryPolicy.KEEP_LAST)
LATCHED_QOS = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    history=HistoryPolicy.KEEP_LAST,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
# A publisher that promises less than a subscription asks for is never heard, so that hearing everybody takes three:
# those that keep their last message, the default of most tools, and best effort. None may lose a short press.
_EVERYBODY_QOS = tuple(
    QoSProfile(depth=10, reliability=reliability, durability=durability, history=HistoryPolicy.KEEP_LAST)
    for reliability, durability in (
        (ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL),
        (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE),
        (ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE),
    )
)


@dataclass(frozen=True)
class Parameter:
    """One node parameter. Its type is the default's; an integer is taken where a float is meant.

    low, high: inclusive range of a number; choices: the only values of a string
    """

    name: str
    default: bool | int | float | str | list[str]
    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def refusal(self, value: Any) -> str | None:
        """One sentence why this value is not allowed, or None."""
        expected: type = type(self.default)
        if expected is list:
            fits = not isinstance(value, str) and all(isinstance(item, str) for item in value)
        else:
            fits = type(value) is expected or (expected is float and type(value) is int)
        if not fits:
            return f"parameter {self.name} should be of type {expected.__name__}, but is {value!r}"
        if isinstance(value, float | int) and not self._in_range(float(value)):
            return f"parameter {self.name} should be a number {self._range()}, but is {value}"
        if self.choices and value not in self.choices:
            return f"parameter {self.name} should be one of {', '.join(self.choices)}, but is {value!r}"
        return None

    def descriptor(self) -> Any:
        """rcl_interfaces/ParameterDescriptor for tools such as `ros2 param describe`."""
        descriptor = ParameterDescriptor(description=self.description)
        if self.choices:
            descriptor.additional_constraints = f"one of {', '.join(self.choices)}"
        if isinstance(self.default, bool) or self.low is None or self.high is None:
            return descriptor
        if isinstance(self.default, int):
            descriptor.integer_range = [IntegerRange(from_value=int(self.low), to_value=int(self.high), step=1)]
        else:
            # `rate:=50` arrives as an integer and is meant as 50.0; static typing would refuse it.
            descriptor.dynamic_typing = True
            descriptor.floating_point_range = [FloatingPointRange(from_value=self.low, to_value=self.high)]
        return descriptor

    def _in_range(self, value: float) -> bool:
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return math.isfinite(value) and low <= value <= high

    def _range(self) -> str:
        bounds = [f"at least {self.low}" if self.low is not None else "", f"at most {self.high}" if self.high else ""]
        return " and ".join(b for b in bounds if b) or "that is finite"


class ManagedNode(LifecycleNode):
    """A lifecycle node whose transitions never raise, and which leaves nothing half-built behind.

    Subclasses override configure_node, activate_node, deactivate_node, cleanup_node and, for diagnostics,
    diagnostic_status. deactivate_node and cleanup_node undo whatever is there: they are also called after a failed
    activation or configuration, on shutdown and on errors, so they must accept a half-built node.
    """

    def __init__(
        self, name: str, configuration: Sequence[Parameter] = (), run_time: Sequence[Parameter] = (), **kwargs: Any
    ) -> None:
        """configuration: parameters that are read when the node is configured, and hold until it is configured again;
        run_time: parameters whose changes accept_parameters takes over"""
        super().__init__(name, **kwargs)
        parameters = (*configuration, *run_time)
        self._fixed = frozenset(parameter.name for parameter in configuration)
        self._table = {parameter.name: parameter for parameter in parameters}
        self.add_on_set_parameters_callback(self._check_parameters)
        # Values that are asked for and not yet set, while accept_parameters looks at them.
        self._asked: dict[str, Any] = {}
        self._declared = False
        try:
            for parameter in parameters:
                self._declare(parameter)
        except LightVLAError:
            self.destroy_node()
            raise
        self._declared = True
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # A steady clock, so that diagnostics go on when simulated time stands still.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics_timer = self.create_timer(1.0, self.publish_diagnostics, clock=self._steady)

    def configure_node(self) -> None:
        """Read parameters, check everything, build what costs time. Raises LightVLAError to refuse."""

    def activate_node(self) -> None:
        """Start working. Raises LightVLAError to refuse."""

    def deactivate_node(self) -> None:
        """Stop working; must accept being called when nothing runs."""

    def cleanup_node(self) -> None:
        """Release what configure_node built; must accept a half-built node."""

    def diagnostic_status(self) -> Any:
        """The diagnostic_msgs/DiagnosticStatus to publish at 1 Hz, or None for nothing."""
        return None

    def accept_parameters(self) -> None:
        """Parameters were changed at run time; value() gives the new ones. Raises LightVLAError to refuse them all."""

    def value(self, name: str) -> Any:
        """A parameter's present value, of the type of its default."""
        value = self._asked[name] if name in self._asked else self.get_parameter(name).value
        return float(value) if isinstance(self._table[name].default, float) else value

    def publish_diagnostics(self) -> None:
        status = self.diagnostic_status()
        if status is None:
            return
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def log_failure(self, what: str, error: BaseException) -> None:
        """The one sentence of a LightVLAError; of anything else its type and text, with the traceback for debugging."""
        if isinstance(error, LightVLAError):
            self.get_logger().error(str(error))
            return
        self.get_logger().error(f"{what} failed: {type(error).__name__}: {error}")
        self.get_logger().debug("".join(traceback.format_exception(error)))

    def destroy_node(self) -> None:
        super().destroy_node()
        # rclpy forgets it, and with it the node stays in the graph, and its DDS participant in the process.
        self._state_machine.destroy_when_not_in_use()

    def stop(self) -> None:
        """Stop and release everything, from whatever state; never raises."""
        self._undo("deactivation", self.deactivate_node)
        self._undo("cleanup", self.cleanup_node)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("configuration", self.configure_node, self.cleanup_node)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._guarded("activation", self.activate_node, self.deactivate_node)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        # FAILURE would leave the node active; ERROR leads through on_error to unconfigured, with everything undone.
        return self._undone(self._undo("deactivation", self.deactivate_node))

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._undone(self._undo("cleanup", self.cleanup_node))

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.stop()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.stop()
        return TransitionCallbackReturn.SUCCESS

    def _guarded(self, what: str, do: Callable[[], None], undo: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            do()
        except Exception as error:
            self.log_failure(what, error)
            self._undo(f"undoing the {what}", undo)
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def _undo(self, what: str, undo: Callable[[], None]) -> bool:
        try:
            undo()
        except Exception as error:
            self.log_failure(what, error)
            return False
        return True

    @staticmethod
    def _undone(well: bool) -> TransitionCallbackReturn:
        return TransitionCallbackReturn.SUCCESS if well else TransitionCallbackReturn.ERROR

    def _declare(self, parameter: Parameter) -> None:
        try:
            self.declare_parameter(parameter.name, parameter.default, parameter.descriptor())
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise LightVLAError(str(error)) from None

    def _check_parameters(self, parameters: list[RosParameter]) -> SetParametersResult:
        for parameter in parameters:
            known = self._table.get(parameter.name)
            sentence = None if known is None else known.refusal(parameter.value) or self._too_late(known)
            if sentence is not None:
                return SetParametersResult(successful=False, reason=sentence)
        if not self._declared:
            return SetParametersResult(successful=True)
        # rclpy before Iron tells nobody after a change, so what depends on it is told before.
        self._asked = {p.name: p.value for p in parameters if p.name in self._table}
        try:
            self.accept_parameters()
        except LightVLAError as error:
            return SetParametersResult(successful=False, reason=str(error))
        finally:
            self._asked = {}
        return SetParametersResult(successful=True)

    def _too_late(self, parameter: Parameter) -> str | None:
        if parameter.name not in self._fixed or not self._declared:
            return None
        if self._state_machine.current_state[1] in ("unconfigured", "configuring"):
            return None
        return f"parameter {parameter.name} is read when the node is configured; clean the node up to change it"


def hear_everybody(node: Any, kind: Any, topic: str, callback: Callable[[Any], None]) -> list[Any]:
    """Subscriptions to a topic that hear every publisher, whatever its QoS; one message may come up to three times."""
    return [node.create_subscription(kind, topic, callback, qos) for qos in _EVERYBODY_QOS]


def diagnostic_status(
    name: str, values: Mapping[str, object], message: str, level: bytes = DiagnosticStatus.OK, hardware_id: str = ""
) -> Any:
    """A diagnostic_msgs/DiagnosticStatus; floats are written with four significant digits."""
    pairs = [
        KeyValue(key=key, value=f"{value:.4g}" if isinstance(value, float) else str(value))
        for key, value in values.items()
    ]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id=hardware_id, values=pairs)


def run(make_node: Callable[[], ManagedNode], arguments: list[str] | None = None) -> int:
    """Spin one node until SIGINT, SIGTERM or SIGHUP (its terminal is gone), stop it in order, and return the exit
    status: 0 after a signal, else 1.

    rclpy's own signal handlers would shut the context down first, and a node could then no longer publish its last
    command; so signals only raise a flag here, and node, then context, are taken down on the main thread.
    """
    stopping = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    # Started with nohup, it is meant to outlive its terminal.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, on_signal)
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:
        print(f"ROS 2 did not start: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    try:
        return _spin(make_node, stopping)
    finally:
        rclpy.try_shutdown()


def _spin(make_node: Callable[[], ManagedNode], stopping: threading.Event) -> int:
    try:
        node = make_node()
    except Exception as error:
        logger = rclpy.logging.get_logger("lightvla_ros")
        logger.error(str(error) if isinstance(error, LightVLAError) else f"{type(error).__name__}: {error}")
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    status = 0
    try:
        while not stopping.is_set():
            executor.spin_once(timeout_sec=_SIGNAL_POLL)
    except Exception as error:
        node.log_failure("a callback", error)
        status = 1
    finally:
        node.stop()
        executor.shutdown()
        node.destroy_node()
    return status

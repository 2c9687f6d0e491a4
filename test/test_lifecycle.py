"""The base class of the nodes: transitions, parameters, `run`."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rclpy
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter
from rclpy.signals import SignalHandlerOptions

from lightvla_core.errors import LightVLAError
from lightvla_ros.lifecycle import ManagedNode, Parameter

SUCCESS, FAILURE, ERROR = (getattr(TransitionCallbackReturn, n) for n in ("SUCCESS", "FAILURE", "ERROR"))
TABLE = (
    Parameter("rate", 50.0, "Hz", 1.0, 500.0),
    Parameter("steps", 3, "how many", 0, 5),
    Parameter("mode", "a", "which", choices=("a", "b")),
)
FIXED = Parameter("robot", "aloha", "which")


class Probe(ManagedNode):
    """Fails where told to, and remembers what was called."""

    def __init__(self, fail: dict[str, Exception] | None = None, **parameters: object) -> None:
        self.fail, self.calls = fail or {}, list[str]()
        overrides = [RosParameter(name, value=value) for name, value in parameters.items()]
        super().__init__("probe", [FIXED], TABLE, parameter_overrides=overrides)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail:
            raise self.fail[name]

    def configure_node(self) -> None:
        self._called("configure")

    def activate_node(self) -> None:
        self._called("activate")

    def deactivate_node(self) -> None:
        self._called("deactivate")

    def cleanup_node(self) -> None:
        self._called("cleanup")

    def accept_parameters(self) -> None:
        self._called(f"accept {self.value('steps')} {self.value('rate')}")


MakeProbe = Callable[..., Probe]


@pytest.fixture
def make_probe(ros_domain: int) -> Iterator[MakeProbe]:
    with contextlib.ExitStack() as ending:
        rclpy.init(domain_id=ros_domain, signal_handler_options=SignalHandlerOptions.NO)
        ending.callback(rclpy.try_shutdown)

        def make(*arguments: Any, **parameters: object) -> Probe:
            node = Probe(*arguments, **parameters)
            ending.callback(node.destroy_node)
            return node

        yield make


def label(node: Probe) -> str:
    return str(node._state_machine.current_state[1])


@pytest.mark.parametrize("error", [LightVLAError("no such checkpoint"), ValueError("a bug")])
def test_failed_configure_is_undone_and_returns_failure(make_probe: MakeProbe, error: Exception) -> None:
    node = make_probe({"configure": error})
    assert node.trigger_configure() == FAILURE
    assert (label(node), node.calls) == ("unconfigured", ["configure", "cleanup"])


def test_failed_activate_is_undone_and_leaves_the_node_inactive(make_probe: MakeProbe) -> None:
    node = make_probe({"activate": LightVLAError("no")})
    node.trigger_configure()
    assert node.trigger_activate() == FAILURE
    assert (label(node), node.calls) == ("inactive", ["configure", "activate", "deactivate"])


def test_failed_deactivate_ends_unconfigured_not_active(make_probe: MakeProbe) -> None:
    node = make_probe({"deactivate": ValueError("a bug")})
    node.trigger_configure()
    node.trigger_activate()
    assert node.trigger_deactivate() == ERROR
    assert (label(node), node.calls[-1]) == ("unconfigured", "cleanup")


def test_shutdown_of_an_active_node_stops_and_releases(make_probe: MakeProbe) -> None:
    node = make_probe()
    node.trigger_configure()
    node.trigger_activate()
    assert node.trigger_shutdown() == SUCCESS
    assert node.calls[-2:] == ["deactivate", "cleanup"]


def test_integer_is_taken_where_a_float_is_meant(make_probe: MakeProbe) -> None:
    assert isinstance(make_probe(rate=20).value("rate"), float)


@pytest.mark.parametrize(
    ("name", "value"), [("rate", 1000), ("rate", float("nan")), ("rate", "fast"), ("steps", 9), ("mode", "c")]
)
def test_bad_parameter_refuses_the_start_and_names_itself(make_probe: MakeProbe, name: str, value: object) -> None:
    with pytest.raises(LightVLAError, match=name):
        make_probe(**{name: value})


@pytest.mark.usefixtures("make_probe")
@pytest.mark.parametrize("rate", [50.0, 1000.0], ids=["destroyed", "refused"])
def test_node_that_was_destroyed_or_refused_leaves_the_graph(rate: float) -> None:
    observer = Node("observer")
    with contextlib.suppress(LightVLAError):
        Probe(rate=rate).destroy_node()
    end = time.monotonic() + 10.0
    while "probe" in observer.get_node_names():
        assert time.monotonic() < end, "it is still there"
        time.sleep(0.01)
    observer.destroy_node()


def test_bad_parameter_is_refused_at_run_time(make_probe: MakeProbe) -> None:
    node = make_probe()
    result = node.set_parameters([RosParameter("rate", value="fast")])[0]
    assert (result.successful, result.reason) == (False, "parameter rate should be of type float, but is 'fast'")
    assert node.value("rate") == 50.0


def test_parameter_that_is_read_at_configuration_is_refused_after_it(make_probe: MakeProbe) -> None:
    node = make_probe()
    assert node.set_parameters([RosParameter("robot", value="franka")])[0].successful
    node.trigger_configure()
    result = node.set_parameters([RosParameter("robot", value="aloha")])[0]
    assert not result.successful
    assert result.reason == "parameter robot is read when the node is configured; clean the node up to change it"
    assert node.value("robot") == "franka"
    node.trigger_cleanup()
    assert node.set_parameters([RosParameter("robot", value="aloha")])[0].successful


RUN = """
import sys
from lightvla_ros.lifecycle import ManagedNode, run
class Node(ManagedNode):
    def __init__(self):
        super().__init__("lonely")
        self.create_timer(0.01, self.once)
    def once(self):
        print("up", flush=True)
        if sys.argv[1] == "raise":
            raise ValueError("a bug")
    def deactivate_node(self):
        print("deactivated", flush=True)
    def cleanup_node(self):
        print("cleaned up", flush=True)
sys.exit(run(Node))
"""


@pytest.fixture
def hangup_heard(ros_domain: int) -> Iterator[None]:
    """Also where the suite itself was started with nohup, which children inherit."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup_heard")
@pytest.mark.parametrize(("how", "status"), [("SIGINT", 0), ("SIGTERM", 0), ("SIGHUP", 0), ("raise", 1)])
def test_signals_and_exceptions_stop_in_order_without_a_traceback(how: str, status: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        if how != "raise":
            process.send_signal(getattr(signal, how))
        output, errors = process.communicate(timeout=10.0)
    finally:
        process.kill()
    assert process.returncode == status
    assert output.splitlines()[-2:] == ["deactivated", "cleaned up"]
    assert "Traceback" not in errors
    assert ("a callback failed: ValueError: a bug" in errors) == (how == "raise")


@pytest.mark.usefixtures("ros_domain")
def test_started_to_outlive_its_terminal_it_does() -> None:
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + RUN
    process = subprocess.Popen([sys.executable, "-c", ignored, "on"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGHUP)
        for _ in range(20):
            assert process.stdout.readline() == "up\n"
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


@pytest.mark.usefixtures("ros_domain")
def test_ros_that_does_not_start_is_one_sentence() -> None:
    command = [sys.executable, "-c", RUN, "on", "--ros-args", "-p", "no assignment"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if "ROS 2 did not start: " in line]) == 1


def test_changed_parameters_are_shown_to_the_node_before_they_are_set(make_probe: MakeProbe) -> None:
    node = make_probe()
    assert node.calls == []
    assert node.set_parameters([RosParameter("steps", value=4)])[0].successful
    assert (node.calls, node.value("steps")) == (["accept 4 50.0"], 4)


def test_node_refuses_changed_parameters_in_one_sentence(make_probe: MakeProbe) -> None:
    node = make_probe({"accept 5 50.0": LightVLAError("steps 5 is too much at this rate")})
    result = node.set_parameters([RosParameter("steps", value=5)])[0]
    assert (result.successful, result.reason) == (False, "steps 5 is too much at this rate")
    assert node.value("steps") == 3

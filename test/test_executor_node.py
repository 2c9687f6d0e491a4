"""The executor node over real DDS, in a process of its own, as a lab would run it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from executor_fixtures import aloha_contract
from live_executor import ARM_TOPIC, Bench, bring_up, executor_process
from live_marks import shows
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from lightvla_ros.executor_node import ExecutorNode
from lightvla_ros.lifecycle import NEWEST_QOS


@pytest.fixture
def executor(ros_domain: int, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with executor_process(tmp_path / "log") as process:
        yield process


@pytest.fixture
def bench(ros_domain: int, executor: subprocess.Popen[bytes]) -> Iterator[Bench]:
    bench = Bench(ros_domain)
    yield bench
    bench.close()


@shows("no contract", "contract of another robot")
def test_configure_without_a_contract_or_with_a_foreign_one_is_refused(bench: Bench, tmp_path: Path) -> None:
    assert not bench.change(1)
    assert "no contract has arrived on /policy/contract yet" in (tmp_path / "log").read_text()
    bench.contract.publish(String(data=aloha_contract(robot="libero").to_json()))
    bench.until(lambda: bench.contract.get_subscription_count() == 1)
    bench.until(lambda: not bench.change(1) and "trained for robot libero" in (tmp_path / "log").read_text())


@shows("another publisher on a command topic")
def test_preview_arm_command_starve_and_signal(bench: Bench, executor: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert bench.trigger("arm") == (False, "the executor is not active; configure and activate it first")
    bring_up(bench)

    bench.send_chunk(0.3)
    bench.until(lambda: len(bench.previews) > 0)
    assert bench.previews[-1].points[0].positions[0] == pytest.approx(0.1)
    assert bench.commands == []

    intruder = bench.node.create_publisher(JointTrajectory, ARM_TOPIC, NEWEST_QOS)
    bench.until(lambda: "other publisher(s) on /follower_left" in bench.trigger("arm")[1])
    bench.node.destroy_publisher(intruder)
    bench.until(lambda: bench.trigger("arm")[0])
    bench.until(lambda: bench.state == "armed")

    bench.send_chunk(0.3)
    bench.until(lambda: len(bench.commands) > 8)
    waist = np.array([c.points[0].positions[0] for c in bench.commands])
    assert waist[-1] == pytest.approx(0.3)
    assert np.abs(np.diff(waist)).max() <= 0.1 + 1e-6

    bench.until(lambda: bench.state.startswith("stopped: starvation"))
    count = len(bench.commands)
    bench.until(lambda: len(bench.commands) >= count + 3)
    assert bench.commands[-1].points[0].positions[0] == pytest.approx(0.3)
    bench.until(lambda: any("starvation" in d.status[0].message for d in bench.diagnostics))

    assert bench.trigger("disarm") == (True, "disarmed")
    executor.send_signal(signal.SIGINT)
    assert executor.wait(timeout=3.0) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


@shows("signal while armed, or a closed terminal")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signal_while_moving_ends_with_the_latched_target_and_then_the_node(
    bench: Bench, executor: subprocess.Popen[bytes], name: str
) -> None:
    bring_up(bench)
    bench.until(lambda: bench.trigger("arm")[0])
    bench.send_chunk(0.15, last=0.45)
    bench.until(lambda: len(bench.commands) > 8)
    executor.send_signal(getattr(signal, name))
    bench.until(lambda: executor.poll() is not None, 3.0)
    assert executor.returncode == 0
    bench.until(lambda: "stopped: the executor's process ends" in bench.states_heard)
    bench.until(lambda: bench.node.count_publishers(ARM_TOPIC) == 0)
    waist = np.array([command.points[0].positions[0] for command in bench.commands])
    # The arm stands too far away to be the target, so that this is the last limited command, sent at least once more.
    steps = np.diff(waist)
    moving = np.flatnonzero(steps)
    assert steps[-1] == 0.0
    assert len(moving) > 5
    assert (steps[moving[-1] + 1 :] == 0.0).all()
    assert (np.diff(moving) == 1).all(), "it held and then moved again"
    assert bench.state == "stopped: the executor's process ends"


@pytest.fixture
def here(ros_domain: int) -> Iterator[ExecutorNode]:
    """An executor node in this process, where its parts can be broken."""
    interval = sys.getswitchinterval()
    rclpy.init(domain_id=ros_domain, signal_handler_options=SignalHandlerOptions.NO)
    node = ExecutorNode(parameter_overrides=[Parameter("real_time_priority", value=0)])
    spinner = SingleThreadedExecutor()
    spinner.add_node(node)
    ending = threading.Event()

    def spin() -> None:
        while not ending.is_set():
            spinner.spin_once(timeout_sec=0.02)

    thread = threading.Thread(target=spin)
    thread.start()
    yield node
    ending.set()
    thread.join()
    node.stop()
    spinner.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    sys.setswitchinterval(interval)


@shows("sending fails in the stop")
def test_sending_that_fails_in_the_stop_is_said_and_everything_else_ends_in_order(
    here: ExecutorNode, ros_domain: int, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(ros_domain)
    bring_up(bench)
    bench.until(lambda: bench.trigger("arm")[0])
    bench.send_chunk(0.3)
    bench.until(lambda: len(bench.commands) > 2)
    with here._lock:
        here._commanders._publishers = dict.fromkeys(here._commanders._publishers)
        assert here._on_disarm(Trigger.Request(), Trigger.Response()).success
    assert "sending the latched target failed: " in capfd.readouterr().err
    bench.until(lambda: bench.state == "disarmed")
    here.stop()
    assert here._execution is None
    bench.close()


def test_disarming_in_the_period_of_a_stop_sends_its_target_first(
    here: ExecutorNode, ros_domain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, sent = Bench(ros_domain), list[Any]()
    bring_up(bench)
    bench.until(lambda: bench.trigger("arm")[0])
    bench.send_chunk(0.3)
    bench.until(lambda: len(bench.commands) > 2)
    with here._lock:
        assert here._on_estop(Trigger.Request(), Trigger.Response()).success
        with monkeypatch.context() as patch:
            patch.setattr(here, "_send", lambda target, now: sent.append(target))
            assert here._on_disarm(Trigger.Request(), Trigger.Response()).success
    assert len(sent) == 1
    bench.close()


def test_executor_whose_loop_has_ended_stops_and_refuses_to_arm(here: ExecutorNode, ros_domain: int) -> None:
    bench = Bench(ros_domain)
    bring_up(bench)
    bench.until(lambda: bench.trigger("arm")[0])
    here._next_heartbeat = "never"
    bench.until(lambda: bench.state == "stopped: fault: the control loop has ended")
    assert "the control loop has ended; deactivate and activate" in bench.trigger("arm")[1]
    bench.until(lambda: any("loop has ended" in d.status[0].message for d in bench.diagnostics))
    bench.close()


def test_emergency_stop_by_service_on_an_inactive_node_says_that_nothing_was_armed(bench: Bench) -> None:
    assert bench.trigger("estop") == (
        True,
        "nothing was armed (disarmed); to keep it so, use the topic estop",
    )


def test_executor_needs_no_torch() -> None:
    code = "import sys, lightvla_ros.executor_node; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert output.stdout.strip() == "False"


@shows("node deactivated while armed")
def test_deactivation_while_armed_stops_says_why_and_comes_back_disarmed(bench: Bench) -> None:
    bring_up(bench)
    bench.until(lambda: bench.trigger("arm")[0])
    bench.send_chunk(0.3)
    bench.until(lambda: len(bench.commands) > 2)
    assert bench.change(4)
    bench.until(lambda: bench.state == "stopped: the executor was deactivated")
    assert bench.change(3)
    bench.until(lambda: bench.state == "disarmed")
    count = len(bench.commands)
    bench.send_chunk(0.2)
    bench.until(lambda: len(bench.previews) > 2)
    assert len(bench.commands) == count


@shows("parameter that contradicts another")
def test_parameters_take_effect_while_it_runs_and_contradictions_are_refused(bench: Bench) -> None:
    bring_up(bench)
    assert bench.set_parameters(execution="ensemble", speed=0.5, blend_time=0.0, control_rate=100.0) == [""] * 4
    refusals = bench.set_parameters(execution="fastest", speed=0.01, control_rate=0.001)
    assert "one of newest, ensemble" in refusals[0]
    assert refusals[1] != ""
    assert "should be at least 5 Hz" in refusals[2]
    bench.until(lambda: bench.diagnosed("control rate (Hz)") > 60.0)
    bench.until(lambda: bench.trigger("arm")[0])
    bench.until(lambda: bench.diagnosed("control rate (Hz)") > 90.0)

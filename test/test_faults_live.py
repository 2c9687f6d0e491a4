"""Every fault once over real DDS, on a real executor process; what the policy observes, on a real policy process too.

docs/faults.md names these tests `live`; the exhaustive ones, under a simulated clock, are in test_faults.py.
"""

from __future__ import annotations

import copy
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from executor_fixtures import START, aloha_contract, chunk, robot
from live_executor import ARM_TOPIC, CONTRACT, Bench, bring_up, executor_process
from live_marks import cases, shows
from live_node import end
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import Bool, Empty, String

from lightvla_ros.chunk_message import instruction_id, stamp_seconds, to_message
from lightvla_ros.domain import reserve_domain
from lightvla_ros.images import fill_image
from lightvla_ros.lifecycle import LATCHED_QOS, NEWEST_QOS, SENSOR_QOS
from lightvla_ros.wire import HEADER_STAMP_END

JOINTS = robot().select(CONTRACT.action_names)[:6]
LOWER, UPPER = np.array([c.lower for c in JOINTS]), np.array([c.upper for c in JOINTS])
STEP = np.array([min(c.max_step, c.max_velocity * 0.04) for c in JOINTS]) + 1e-9
STARVED, STALE = "starvation", "stale input"

Alter = Callable[[Any], Iterable[Any]]
NOISE = b"\x00\x01\x00\x00" + b"\xff" * 200


class Graph(Bench):
    """Arms that stand still, and a policy that sends chunks ten times a second, with 0.4 s of each left to execute."""

    def __init__(self, domain: int, simulated: bool = False) -> None:
        self.simulated, self.ros_time = simulated, 1000.0
        super().__init__(domain)
        self.alter_chunk: Alter = lambda message: [message]
        self.text, self.policy_runs = "pick up the cube", False
        self.node.create_timer(0.1, self._publish_chunk)
        self.estop = self.node.create_publisher(Bool, "estop", LATCHED_QOS)
        self.heartbeat = self.node.create_publisher(Empty, "operator/heartbeat", NEWEST_QOS)
        self.ticks, self.keep_clock = 0, 1
        self.clock_runs, self.clock = True, self.node.create_publisher(Clock, "/clock", SENSOR_QOS)
        if simulated:
            self.node.create_timer(0.01, self._publish_clock)

    def stamp(self) -> Any:
        if not self.simulated:
            return super().stamp()
        return Time(sec=int(self.ros_time), nanosec=int(self.ros_time % 1.0 * 1e9))

    def armed(self) -> None:
        """Everything is well, armed, and moving."""
        self.alter_chunk = lambda message: [message]
        self.alter_state = lambda arm, message: [message]
        self.policy_runs = self.clock_runs = True
        self.keep_clock = 1
        self.until(lambda: self.trigger("arm")[0] or self.state == "armed")
        self.until(lambda: self.state == "armed")
        self.commands.clear()
        self.until(lambda: len(self.commands) > 3)

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end, seconds + 10.0)

    def _publish_chunk(self) -> None:
        if not self.policy_runs:
            return
        stamp = stamp_seconds(self.stamp()) - 0.6
        goal = START + 0.2 * math.sin(2.0 * stamp) * (np.arange(14) == 0)
        self.sequence += 1
        made = chunk(CONTRACT, goal, stamp, self.sequence, instruction_id=instruction_id(self.text))
        for altered in self.alter_chunk(to_message(made)):
            self.chunks.publish(altered)

    def _publish_clock(self) -> None:
        if self.clock_runs:
            self.ros_time += 0.01
        self.ticks += 1
        if self.ticks % self.keep_clock == 0:
            self.clock.publish(Clock(clock=self.stamp()))


def positions(bench: Bench) -> np.ndarray[Any, Any]:
    return np.array([command.points[0].positions for command in bench.commands])


def check_limits(bench: Bench) -> None:
    sent = positions(bench)
    assert np.isfinite(sent).all()
    assert ((sent >= LOWER) & (sent <= UPPER)).all()
    assert (np.abs(np.diff(sent, axis=0)) <= STEP).all()


def more_commands(bench: Bench, count: int) -> None:
    seen = len(bench.commands)
    bench.until(lambda: len(bench.commands) >= seen + count)


def check_stop(bench: Graph, reason: str, heal: Callable[[], None] = lambda: None, seconds: float = 3.0) -> None:
    """It stops for this reason, sends the latched target alone, goes on with that when all is well, until armed."""
    bench.until(lambda: re.search(f"stopped: .*{reason}", bench.state) is not None, seconds)
    stopped = bench.state
    # The periods under way when the state was heard.
    more_commands(bench, 3)
    latched = len(bench.commands)
    more_commands(bench, 4)
    heal()
    bench.alter_chunk, bench.alter_state = (lambda message: [message]), (lambda arm, message: [message])
    bench.policy_runs = bench.clock_runs = True
    # Until there are chunks of observations from after the stop.
    bench.spin(0.8)
    assert bench.state == stopped
    assert np.ptp(positions(bench)[latched:], axis=0).max() == 0.0
    check_limits(bench)
    bench.armed()


def check_ridden(bench: Graph, seconds: float = 1.0) -> None:
    bench.spin(seconds)
    assert bench.state == "armed"
    assert len(bench.commands) > 10
    check_limits(bench)


@pytest.fixture(scope="module")
def executor(ros_domain: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    log = tmp_path_factory.mktemp("executor") / "log"
    with executor_process(log, starvation_timeout=0.3, state_timeout=0.2) as process:
        yield process


@pytest.fixture(scope="module")
def graph(ros_domain: int, executor: subprocess.Popen[bytes]) -> Iterator[Graph]:
    bench = Graph(ros_domain)
    bring_up(bench)
    yield bench
    bench.close()


@pytest.fixture
def bench(graph: Graph) -> Graph:
    graph.armed()
    return graph


def spoil(message: Any, value: float) -> list[Any]:
    for point in message.points:
        point.positions[2] = value
    return [message]


def shifted(message: Any, seconds: int) -> list[Any]:
    message.header.stamp.sec += seconds
    return [message]


def late(message: Any, seconds: float) -> list[Any]:
    """Stamped so much earlier than it was."""
    stamp = stamp_seconds(message.header.stamp) - seconds
    message.header.stamp = Time(sec=int(stamp), nanosec=int(stamp % 1.0 * 1e9))
    return [message]


def beyond_reach(message: Any) -> list[Any]:
    """A radian away, while the arms of this graph never move."""
    for point in message.points:
        point.positions[0] += 0.9
    return [message]


def swapped(pairs: list[Any], message: Any) -> list[Any]:
    pairs.append(message)
    return [pairs.pop(), pairs.pop()] if len(pairs) == 2 else []


def first_of(seen: list[Any], message: Any) -> list[Any]:
    seen.append(copy.deepcopy(message))
    return [seen[0]]


def flooded(message: Any) -> Iterator[Any]:
    """A hundred, each of an observation a little newer: the same message, for copies would hold this process up."""
    for _ in range(100):
        yield from late(message, -1e-4)


def first_picture(seen: list[Any], message: Any) -> list[Any]:
    seen.append(message.data)
    message.data = seen[0]
    return [message]


def foreign(message: Any) -> list[Any]:
    message.header.frame_id = "0" * 12 + message.header.frame_id[12:]
    return [message]


def shortened(message: Any) -> list[Any]:
    message.points = message.points[:-1]
    return [message]


CHUNK_FAULTS: dict[str, tuple[Callable[[], Alter], str | None]] = {
    "chunks dropped": (lambda: lambda m: [], STARVED),
    "chunks delayed by 0.3 s": (lambda: lambda m: late(m, 0.3), None),
    "chunks delayed beyond their horizon": (lambda: lambda m: shifted(m, -2), STARVED),
    "chunks duplicated": (lambda: lambda m: [m, m], None),
    "chunks reordered": (lambda: lambda m, pairs=[]: swapped(pairs, m), None),
    "one chunk repeated for ever": (lambda: lambda m, seen=[]: first_of(seen, m), STARVED),
    "chunks with NaN": (lambda: lambda m: spoil(m, math.nan), STARVED),
    "chunks with infinity": (lambda: lambda m: spoil(m, math.inf), STARVED),
    "chunks with huge numbers": (lambda: lambda m: spoil(m, 1e300), None),
    "chunks of a wrong shape": (lambda: shortened, STARVED),
    "chunks of another contract": (lambda: foreign, STARVED),
    "chunks stamped in the future": (lambda: lambda m: shifted(m, 5), STARVED),
    "arm blocked, or its joint states frozen under fresh stamps": (lambda: beyond_reach, "tracking error"),
    "queue filled with chunks": (lambda: flooded, None),
    "chunk bytes that are no message (four bytes)": (lambda: lambda m: [b"\x00\x01\x00\x00"], STARVED),
    "chunk bytes that are no message (noise)": (lambda: lambda m: [NOISE], STARVED),
}


@pytest.mark.parametrize("name", cases(CHUNK_FAULTS))
def test_chunks(bench: Graph, name: str) -> None:
    make, reason = CHUNK_FAULTS[name]
    bench.alter_chunk = make()
    if reason is None:
        check_ridden(bench)
    else:
        check_stop(bench, reason)


def spoiled_state(message: Any) -> list[Any]:
    message.position = [math.nan] * len(message.position)
    return [message]


def without_waist(message: Any) -> list[Any]:
    keep = [i for i, name in enumerate(message.name) if name != "waist"]
    message.name, message.position = [message.name[i] for i in keep], [message.position[i] for i in keep]
    return [message]


def moved(message: Any) -> list[Any]:
    message.position = [p + 1.0 for p in message.position]
    return [message]


def uneven(message: Any) -> list[Any]:
    message.position = message.position[:-1]
    return [message]


def with_older(message: Any) -> list[Any]:
    return [message, *late(copy.deepcopy(message), 0.02)]


STATE_FAULTS: dict[str, tuple[Callable[[], Alter], str | None]] = {
    "joint states dropped": (lambda: lambda m: [], STALE),
    "joint states delayed": (lambda: lambda m: shifted(m, -1), STALE),
    "joint states duplicated": (lambda: lambda m: [m, m], None),
    "joint states reordered": (lambda: with_older, None),
    "joint states frozen, stamps too": (lambda: lambda m, seen=[]: first_of(seen, m), STALE),
    "joint states with NaN": (lambda: spoiled_state, "(finite|stale)"),
    "joint states that lack a joint": (lambda: without_waist, "waist"),
    "joint states stamped in the future": (lambda: lambda m: shifted(m, 5), "in the future"),
    "joint states corrupted by 1 rad": (lambda: moved, "tracking error"),
    "joint states with names but no positions": (lambda: uneven, STALE),
    "joint state bytes that are no message (four bytes)": (lambda: lambda m: [b"\x00\x01\x00\x00"], STALE),
    "joint state bytes that are no message (noise)": (lambda: lambda m: [NOISE], STALE),
}


@pytest.mark.parametrize("name", cases(STATE_FAULTS))
def test_states(bench: Graph, name: str) -> None:
    make, reason = STATE_FAULTS[name]
    alter = make()
    bench.alter_state = lambda arm, message: alter(message) if arm == "follower_left" else [message]
    if reason is None:
        check_ridden(bench)
    else:
        check_stop(bench, reason)


@shows("emergency stop")
def test_emergency_stop_by_topic_is_released_only_by_hand_and_recovers_only_by_arming(bench: Graph) -> None:
    bench.estop.publish(Bool(data=True))
    bench.until(lambda: bench.state == "stopped: emergency stop")
    assert "emergency stop is engaged" in bench.trigger("arm")[1]

    def heal() -> None:
        bench.estop.publish(Bool(data=False))

    check_stop(bench, "emergency stop", heal)


def test_emergency_stop_by_service(bench: Graph) -> None:
    assert bench.trigger("estop") == (True, "stopped: emergency stop")
    check_stop(bench, "emergency stop")


def test_emergency_stop_by_service_where_nothing_is_armed_says_so(bench: Graph) -> None:
    bench.trigger("disarm")
    answered, message = bench.trigger("estop")
    assert answered
    assert "nothing was armed (disarmed)" in message
    bench.spin(0.8)
    bench.armed()


OTHERS = {"default, reliable and volatile": NEWEST_QOS, "best effort": SENSOR_QOS}


@shows("emergency stop from a publisher of any QoS")
@pytest.mark.parametrize("promise", OTHERS)
def test_emergency_stop_from_a_publisher_that_keeps_nothing(bench: Graph, promise: str) -> None:
    button = bench.node.create_publisher(Bool, "estop", OTHERS[promise])
    bench.until(lambda: button.get_subscription_count() >= (2 if promise != "best effort" else 1))
    # Pressed until it is heard: what keeps nothing can be lost on the way, and is no button for one press.
    press = bench.node.create_timer(0.02, lambda: button.publish(Bool(data=True)))
    bench.until(lambda: bench.state == "stopped: emergency stop")

    def heal() -> None:
        press.cancel()
        for _ in range(5):
            button.publish(Bool(data=False))

    check_stop(bench, "emergency stop", heal)
    bench.node.destroy_publisher(button)


@shows("another contract arrives while armed")
def test_another_contract_is_taken_by_the_next_configure_only(bench: Graph) -> None:
    bench.contract.publish(String(data=aloha_contract(control_rate=10.0).to_json()))
    check_ridden(bench)
    bench.contract.publish(String(data=CONTRACT.to_json()))


def test_instruction_from_a_publisher_that_keeps_nothing_is_heard(bench: Graph) -> None:
    terminal = bench.node.create_publisher(String, "instruction", NEWEST_QOS)
    bench.until(lambda: terminal.get_subscription_count() >= 1)
    bench.text = "put it down"
    terminal.publish(String(data=bench.text))
    check_ridden(bench)
    bench.text = "pick up the cube"
    terminal.publish(String(data=bench.text))
    check_ridden(bench, 0.5)
    bench.node.destroy_publisher(terminal)


@shows("operator's heartbeat silent")
def test_heartbeat_that_is_required_and_silent(bench: Graph) -> None:
    timer = bench.node.create_timer(0.05, lambda: bench.heartbeat.publish(Empty()))
    bench.spin(0.3)
    assert bench.set_parameters(require_heartbeat=True, heartbeat_timeout=0.3) == ["", ""]
    check_ridden(bench, 0.6)
    timer.cancel()
    check_stop(bench, "no heartbeat", timer.reset)
    assert bench.set_parameters(require_heartbeat=False) == [""]
    timer.cancel()


@shows("parameters changed under load", "impossible parameters")
def test_parameters_under_load(bench: Graph) -> None:
    for values in ({"execution": "ensemble", "speed": 0.5}, {"control_rate": 50.0}, {"execution": "newest"}) * 3:
        assert set(bench.set_parameters(**values)) == {""}
        assert bench.set_parameters(speed=7.0) != [""]
        bench.spin(0.1)
    assert bench.set_parameters(speed=1.0, control_rate=0.0, execution="newest") == [""] * 3
    check_ridden(bench, 0.5)


@shows("instruction changed", "instruction changed in the middle of a chunk, unheard by the policy")
def test_instruction_changes_and_chunks_of_the_old_one_starve(bench: Graph) -> None:
    bench.text = "put it down"
    bench.instruction.publish(String(data=bench.text))
    check_ridden(bench)
    bench.instruction.publish(String(data="pick up the cube"))

    def heal() -> None:
        bench.text = "pick up the cube"

    check_stop(bench, STARVED, heal)


def test_policy_stalls_and_is_silent_for_ever(bench: Graph) -> None:
    bench.policy_runs = False
    bench.spin(0.3)
    bench.policy_runs = True
    check_ridden(bench)
    bench.policy_runs = False
    check_stop(bench, STARVED)


@shows("control loop stalled for 0.15 s", "executor process stopped for 0.15 s and continued")
def test_stalled_executor_process_makes_no_jump(bench: Graph, executor: subprocess.Popen[bytes]) -> None:
    executor.send_signal(signal.SIGSTOP)
    bench.spin(0.15)
    executor.send_signal(signal.SIGCONT)
    bench.spin(0.5)
    check_limits(bench)
    assert bench.state == "armed" or bench.state.startswith("stopped: stale input")


CLOCK_FAULTS = {
    "clock jumps ahead": "leapt ahead",
    "clock jumps back": "went back",
    "clock freezes": "clock",
}


@pytest.mark.parametrize("name", cases(CLOCK_FAULTS))
def test_clock(clocked: Graph, name: str) -> None:
    clocked.armed()
    if name == "clock freezes":
        clocked.clock_runs = False
    else:
        clocked.ros_time += 5.0 if name == "clock jumps ahead" else -5.0
    check_stop(clocked, CLOCK_FAULTS[name])


@shows("clock samples dropped, one in five left")
def test_clock_that_moves_in_steps(clocked: Graph) -> None:
    clocked.armed()
    clocked.keep_clock = 5
    check_ridden(clocked)


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    """An executor on simulated time, in a domain of its own."""
    log = tmp_path_factory.mktemp("clocked") / "log"
    with reserve_domain() as domain, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", str(domain))
        with executor_process(log, starvation_timeout=0.3, state_timeout=0.2, use_sim_time=True):
            bench = Graph(domain, simulated=True)
            bring_up(bench)
            yield bench
            bench.close()


class Robot(Graph):
    """A real policy sends the chunks, and sees a camera of this robot."""

    def __init__(self, domain: int) -> None:
        super().__init__(domain)
        self.alter_frame: Alter = lambda message: [message]
        self._pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
        self._cameras = [
            self.node.create_publisher(Image, f"{name}/camera/color/image_rect_raw", SENSOR_QOS)
            for name in ("cam_high", "cam_left_wrist")
        ]
        self.node.create_timer(0.05, self._publish_frames)

    def armed(self) -> None:
        self.alter_frame = lambda message: [message]
        super().armed()

    def _publish_chunk(self) -> None:
        pass

    def _publish_frames(self) -> None:
        for camera in self._cameras:
            image = Image()
            # Hardly another picture, so that a policy of random weights keeps to its action.
            self._pixels[0, 0] += 1
            fill_image(image, self._pixels)
            image.header.stamp = self.stamp()
            for altered in self.alter_frame(image):
                camera.publish(altered)


@pytest.fixture(scope="module")
def policy(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Robot, Any]]:
    """The robot, and the policy's process."""
    folder = tmp_path_factory.mktemp("policy")
    with reserve_domain() as domain, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", str(domain))
        command = [
            sys.executable,
            "-m",
            "lightvla_ros.policy_node",
            "--ros-args",
            "-p",
            f"checkpoint:={tiny_checkpoint}",
        ]
        # Longer than a stall of 0.8 s and an inference on a busy machine; and than this process, which sends the joint
        # states, is held up where the policy takes the cores.
        times = {"starvation_timeout": 1.5, "state_timeout": 3.0}
        with (folder / "policy").open("wb") as log, executor_process(folder / "executor", **times):
            process = subprocess.Popen([*command, "-p", "torch_threads:=1"], stdout=log, stderr=log)
            robot_ = Robot(domain)
            try:
                start_policy(robot_)
                yield robot_, process
            finally:
                end(process)
                robot_.close()


def start_policy(bench: Robot) -> None:
    """Policy and executor configured and active, and inferring."""
    contracts: list[Any] = []
    bench.node.create_subscription(String, "policy/contract", contracts.append, LATCHED_QOS)
    bench.feeding = True
    bench.instruction.publish(String(data="pick up the cube"))
    assert bench.change(1, "policy")
    bench.until(lambda: len(contracts) > 0)
    bench.until(lambda: bench.change(1))
    assert bench.change(3, "policy")
    assert bench.change(3)
    bench.until(lambda: bench.node.count_publishers(ARM_TOPIC) == 1)
    bench.until(lambda: len(bench.previews) > 0)


CAMERA_FAULTS: dict[str, tuple[Callable[[], Alter], str | None]] = {
    "camera frames dropped": (lambda: lambda m: [], STARVED),
    "camera frames delayed": (lambda: lambda m: shifted(m, -1), STARVED),
    "camera frames frozen, stamps too": (lambda: lambda m, seen=[]: first_of(seen, m), STARVED),
    "camera frames skewed": (lambda: lambda m: late(m, 0.2), STARVED),
    "camera frames stamped in the future": (lambda: lambda m: shifted(m, 5), STARVED),
    "camera frame bytes that are no message": (lambda: lambda m: [with_stamp(m, NOISE)], STARVED),
    "camera frames of an unknown encoding": (lambda: unknown_encoding, STARVED),
    "camera pictures frozen under fresh stamps": (lambda: lambda m, seen=[]: first_picture(seen, m), None),
    "camera frames duplicated": (lambda: lambda m: [m, m], None),
    "camera frames reordered": (lambda: with_older, None),
}


def with_stamp(message: Any, data: bytes) -> bytes:
    """These bytes with the header stamp of a message that is one, so that they count as fresh."""
    return serialize_message(message)[:HEADER_STAMP_END] + data[HEADER_STAMP_END:]


def unknown_encoding(message: Any) -> list[Any]:
    message.encoding = "rgb7"
    return [message]


@pytest.mark.parametrize("name", cases(CAMERA_FAULTS))
def test_camera(policy: tuple[Robot, Any], name: str) -> None:
    bench, _ = policy
    bench.armed()
    make, reason = CAMERA_FAULTS[name]
    bench.alter_frame = make()

    def heal() -> None:
        bench.alter_frame = lambda message: [message]

    if reason is None:
        check_ridden(bench)
    else:
        check_stop(bench, reason, heal, seconds=6.0)


@shows("every input delayed")
def test_every_input_delayed(policy: tuple[Robot, Any]) -> None:
    bench, _ = policy
    bench.armed()
    bench.alter_frame = lambda message: late(message, 4.0)
    bench.alter_state = lambda arm, message: late(message, 4.0)

    def heal() -> None:
        bench.alter_frame = lambda message: [message]

    check_stop(bench, STALE, heal)


@shows("policy stalled for 0.8 s", "policy killed", "policy process killed by the system")
def test_policy_process_stalls_and_is_killed(policy: tuple[Robot, Any]) -> None:
    bench, process = policy
    bench.armed()
    process.send_signal(signal.SIGSTOP)
    bench.spin(0.8)
    process.send_signal(signal.SIGCONT)
    check_ridden(bench)
    process.kill()
    bench.until(lambda: bench.state.startswith("stopped: starvation"))
    more_commands(bench, 3)
    latched = len(bench.commands)
    bench.spin(0.5)
    assert np.ptp(positions(bench)[latched:], axis=0).max() == 0.0
    check_limits(bench)

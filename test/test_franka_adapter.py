"""What the Franka adapter sends for a command: whatever is measured, and when it has stopped.

In the driver's message types, which `make test` generates (test/interfaces).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("franka_msgs", reason="the drivers' messages are not here; `make test` generates them")

from executor_fixtures import INSTRUCTION, chunk, settings
from test_robot_franka import ROBOT, STATES, contract

from lightvla_core.contract import Channel, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.execution import Execution
from lightvla_ros.robots.description import RobotDescription
from lightvla_ros.robots.description_file import load_robot
from lightvla_ros.robots.franka import FrankaAdapter
from lightvla_ros.robots.messages import JointGoal, pose_stamped, twist_stamped
from lightvla_ros.robots.rotations import Pose
from lightvla_ros.safety import Now

NOW = Now(100.0, 5.0)
PERIOD = 0.05
DELTAS = ("twist", "pose", "joint_trajectory")
UP = np.array([0, 0, 0.2, 0, 0, 0, 1.0])  # of a full delta, with an open hand
STILL = np.array([0.0] * 6 + [1.0])
READY = {f"fr3_joint{i}": c.start for i, c in enumerate(ROBOT.channels[:7], 1)}
GOOD = {**STATES, "arm": READY}


def adapter(command_type: str, made: PolicyContract | None = None, robot: RobotDescription = ROBOT) -> FrankaAdapter:
    return FrankaAdapter(contract() if made is None else made, robot, command_type, PERIOD, "broadcaster")


MOVE, GRASP = "franka_gripper/move", "franka_gripper/grasp"


def sent(
    to: FrankaAdapter, command: np.ndarray, states: Any = GOOD, holding: bool = False, now: Now = NOW
) -> dict[str, Any]:
    return dict(to.messages(command, states, now, holding))


def numbers_of(message: Any) -> list[float]:
    if hasattr(message, "twist"):
        linear, angular = message.twist.linear, message.twist.angular
        return [linear.x, linear.y, linear.z, angular.x, angular.y, angular.z]
    if hasattr(message, "pose"):
        return [message.pose.position.x, message.pose.position.y, message.pose.position.z]
    return list(message.points[0].positions)


def broken(command_type: str, value: float) -> Any:
    if command_type == "joint_trajectory":
        return {**GOOD, "arm": {**READY, "fr3_joint2": value}}
    return {**GOOD, "end_effector": {**STATES["end_effector"], "x": value}}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("command_type", DELTAS)
def test_a_state_that_is_not_finite_stops_the_measuring(command_type: str, value: float) -> None:
    to = adapter(command_type)
    to.measure(GOOD)
    with pytest.raises(LightVLAError, match="finite"):
        to.measure(broken(command_type, value))


@pytest.mark.parametrize("command_type", DELTAS)
def test_nothing_is_sent_for_a_motion_from_a_state_that_is_not_finite(command_type: str) -> None:
    with pytest.raises(LightVLAError, match="finite"):
        sent(adapter(command_type), UP, broken(command_type, np.nan))


UNREADABLE = {**STATES["end_effector"], "qx": 0.0}


@pytest.mark.parametrize("states", [{**GOOD, "end_effector": UNREADABLE, "arm": {}}, {}])
@pytest.mark.parametrize("command_type", DELTAS)
def test_a_stop_is_sent_whatever_is_measured(command_type: str, states: Any) -> None:
    to = adapter(command_type)
    moving = sent(to, UP)[to.endpoints[0].name]
    stopped = sent(to, STILL, states, holding=True)[to.endpoints[0].name]
    if command_type == "twist":
        assert numbers_of(stopped) == [0.0] * 6
    else:
        assert numbers_of(stopped) == numbers_of(moving)


@pytest.mark.parametrize("command_type", DELTAS)
def test_a_stop_before_the_first_motion_moves_nothing(command_type: str) -> None:
    messages = sent(adapter(command_type), STILL, {}, holding=True)
    assert [numbers_of(m) for m in messages.values()] == ([[0.0] * 6] if command_type == "twist" else [])


@pytest.mark.parametrize(("command_type", "far"), [("pose", "end_effector"), ("joint_trajectory", "arm")])
def test_an_arm_that_does_not_follow_stops_and_can_be_armed_again_where_it_is(command_type: str, far: str) -> None:
    to = adapter(command_type)
    sent(to, UP)
    name, moved = ("x", 0.6) if far == "end_effector" else ("fr3_joint1", 0.5)
    elsewhere = {**GOOD, far: {**GOOD[far], name: moved}}
    with pytest.raises(LightVLAError, match="tracking error"):
        to.measure(elsewhere)
    before = sent(to, STILL, elsewhere, holding=True)
    assert numbers_of(before[to.endpoints[0].name]) != [moved]
    to.measure(elsewhere)
    to.reset()
    target = numbers_of(sent(to, STILL, elsewhere)[to.endpoints[0].name])
    assert target[0] == pytest.approx(moved)


def test_a_false_pose_stops_and_does_not_move_the_published_target() -> None:
    to = adapter("pose")
    before = numbers_of(sent(to, UP)[to.endpoints[0].name])
    glitch = {**GOOD, "end_effector": {**STATES["end_effector"], "y": 0.6}}
    with pytest.raises(LightVLAError, match="tracking error"):
        to.measure(glitch)
    after = numbers_of(sent(to, UP, glitch)[to.endpoints[0].name])
    assert np.abs(np.subtract(after, before)).max() <= 0.2 * 0.05 * PERIOD + 1e-12


CLOSED = np.array([0.0] * 6 + [-1.0])


def test_a_gripper_wish_that_waited_is_not_sent_after_a_stop() -> None:
    to = adapter("twist")
    assert GRASP in sent(to, CLOSED)
    assert MOVE not in sent(to, STILL, now=Now(100.2, 5.2))
    for tick in range(20):
        assert MOVE not in sent(to, STILL, holding=True, now=Now(100.3, 5.3 + tick * PERIOD))


def test_a_goal_that_failed_is_sent_again_while_it_is_wished_for() -> None:
    to = adapter("twist")
    goal = sent(to, STILL)[MOVE]
    assert MOVE not in sent(to, STILL, now=Now(101.0, 6.0))
    to.goal_failed(goal, accepted=True)
    assert MOVE in sent(to, STILL, now=Now(101.0, 6.0))


def test_a_closing_that_ended_on_an_object_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "franka_msgs.action", None)
    to, name = adapter("twist"), "franka_gripper/gripper_action"
    goal = sent(to, CLOSED)[name]
    to.goal_failed(goal, accepted=True)
    assert name not in sent(to, CLOSED, now=Now(103.0, 8.0))
    to.goal_failed(goal, accepted=False)
    assert name in sent(to, CLOSED, now=Now(103.0, 8.0))


def test_deltas_by_joints_watch_the_joints_and_need_no_pose() -> None:
    to = adapter("joint_trajectory")
    assert {source.name for source in to.sources} == {"arm", "fingers"}
    assert {channel.arm for channel in to.robot.select(contract().action_names)} == {"arm", "fingers"}
    without = {k: v for k, v in GOOD.items() if k != "end_effector"}
    to.measure(without)
    assert to.endpoints[0].name == "fr3_arm_controller/joint_trajectory"
    message = sent(to, UP, without)["fr3_arm_controller/joint_trajectory"]
    assert list(message.joint_names) == list(READY)


def test_deltas_by_joints_move_the_tool_as_the_delta_says() -> None:
    to = adapter("joint_trajectory")
    assert ROBOT.end_effector is not None
    arm, start = ROBOT.end_effector.kinematics, np.array(list(READY.values()))
    joints = np.array(numbers_of(next(iter(sent(to, UP).values()))))
    moved, before = arm.forward(joints), arm.forward(start)
    # A delta of 0.2, 0.01 m, as a velocity for one period.
    np.testing.assert_allclose(moved.position - before.position, [0, 0, 0.2 * 0.05 * PERIOD], atol=1e-6)
    np.testing.assert_allclose(moved.rotation, before.rotation, atol=1e-6)
    repeated = numbers_of(next(iter(sent(to, STILL).values())))
    assert repeated == joints.tolist()


def test_deltas_by_joints_stay_in_the_workspace_and_never_turn_back() -> None:
    to = adapter("joint_trajectory")
    assert ROBOT.end_effector is not None
    facts, joints = ROBOT.end_effector, list(READY.values())
    for _ in range(400):
        states = {**GOOD, "arm": dict(zip(READY, joints, strict=True))}
        to.measure(states)
        joints = numbers_of(next(iter(sent(to, np.array([0, 0, 6.0, 0, 0, 0, 1.0]), states).values())))
    height = facts.kinematics.forward(np.array(joints)).position[2]
    assert 0.78 <= height <= facts.workspace_upper[2] + 1e-3


def test_joint_policies_are_commanded_in_the_contracts_order_whatever_it_is() -> None:
    names = [f"joint{i}" for i in (3, 1, 2, 7, 6, 5, 4)]
    actions = (Channel("gripper", "normalized"), *(Channel(name, "rad") for name in names))
    to = adapter("auto", contract(actions=actions, action_space="joint_position", end_effector=None))
    command = np.array([1.0, *(READY[f"fr3_{name}"] for name in names)])
    message = sent(to, command)["fr3_arm_controller/joint_trajectory"]
    assert dict(zip(message.joint_names, message.points[0].positions, strict=True)) == pytest.approx(READY)
    np.testing.assert_allclose(to.measure(GOOD)[1:], command[1:])


def test_joint_policies_in_other_units_are_refused() -> None:
    actions = tuple(Channel(name, "normalized") for name in (*(f"joint{i}" for i in range(1, 8)), "gripper"))
    with pytest.raises(LightVLAError, match="action joint1 is in normalized, but robot franka takes it in rad"):
        adapter("auto", contract(actions=actions, action_space="joint_position", end_effector=None))


def test_a_command_type_of_another_action_space_is_refused() -> None:
    with pytest.raises(LightVLAError, match="command_type interbotix does not go with eef_delta actions"):
        adapter("interbotix")


def test_no_message_is_built_from_a_number_that_is_not_finite() -> None:
    nan = np.full(6, np.nan)
    for build in (
        lambda: JointGoal().message(["a"], [float("nan")], PERIOD),
        lambda: twist_stamped(nan, "base", NOW),
        lambda: pose_stamped(Pose(nan[:3], np.eye(3)), "base", NOW),
        lambda: pose_stamped(Pose(np.zeros(3), nan.reshape(2, 3)[:1] * np.eye(3)), "base", NOW),
    ):
        with pytest.raises(LightVLAError, match="not finite, so it is not sent"):
            build()


def test_gripper_nodes_of_both_releases_are_known() -> None:
    for variant, node in (
        ("", "franka_gripper"),
        ("franka_gripper", "franka_gripper"),
        ("fr3_gripper", "fr3_gripper"),
    ):
        robot = load_robot("franka", variant)
        assert robot.gripper_action is not None
        assert robot.gripper_action.topic == node
        assert {s.name: s.topic for s in robot.sources}["fingers"] == f"{node}/joint_states"


def execution_of(to: FrankaAdapter) -> Execution:
    execution = Execution(contract(), to.robot, settings(PERIOD), to.measure)
    execution.set_instruction(INSTRUCTION)
    return execution


def feed(execution: Execution, to: FrankaAdapter, states: Any, now: Now) -> None:
    for source in to.sources:
        execution.feed_state(source.name, states[source.name], now.ros, now.steady)


def moment(tick: int) -> Now:
    return Now(100.0 + tick * PERIOD, 5.0 + tick * PERIOD)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("command_type", DELTAS)
def test_the_executor_does_not_arm_on_a_state_that_is_not_finite(command_type: str, value: float) -> None:
    to = adapter(command_type)
    execution = execution_of(to)
    for tick in range(2):
        feed(execution, to, broken(command_type, value), moment(tick))
        execution.run_period(moment(tick))
    with pytest.raises(LightVLAError, match="finite"):
        execution.arm(moment(1))


@pytest.mark.parametrize("command_type", DELTAS)
def test_the_executor_stops_on_a_state_that_is_not_finite_and_sends_no_such_number(command_type: str) -> None:
    to = adapter(command_type)
    execution = execution_of(to)
    feed(execution, to, GOOD, moment(0))
    execution.run_period(moment(0))
    execution.arm(moment(0))
    execution.offer(chunk(contract(), UP, 100.0), moment(0))
    sent_numbers = []
    for tick in range(1, 10):
        feed(execution, to, broken(command_type, np.nan) if tick >= 5 else GOOD, moment(tick))
        command = execution.run_period(moment(tick)).command
        assert command is not None
        holding = execution.state.startswith("stopped")
        assert holding == (tick >= 5)
        messages = sent(to, command, execution.states, holding, moment(tick))
        sent_numbers.append(numbers_of(messages[to.endpoints[0].name]))
    assert np.isfinite(sent_numbers).all()
    assert sent_numbers[4:] == [[0.0] * 6 if command_type == "twist" else sent_numbers[3]] * 5

"""Which process starts with which parameters: what the demo and the launch files share."""

import inspect
import json
import sys
from pathlib import Path

import pytest
from executor_fixtures import aloha_contract

from lightvla_core import cli
from lightvla_core.errors import LightVLAError
from lightvla_ros import processes
from lightvla_ros.robots.description_file import load_robot

ROOT = Path(__file__).parent.parent


def test_the_simulation_is_three_processes_and_the_policy_gets_the_checkpoint():
    sim, policy, executor = processes.simulation("/tmp/checkpoint", "pick up the cube", seed=3)
    assert [p.executable for p in (sim, policy, executor)] == ["sim_node", "policy_node", "executor_node"]
    assert policy.parameters["checkpoint"] == "/tmp/checkpoint"
    assert policy.parameters["instruction"] == "pick up the cube"
    assert sim.parameters["seed"] == 3


def test_simulated_time_reaches_the_nodes_only_when_the_clock_paces():
    for pace, expected in (("real_time", False), ("clock", True)):
        sim, policy, executor = processes.simulation("c", "i", pace=pace)
        assert sim.parameters["pace"] == pace
        assert policy.parameters["use_sim_time"] is executor.parameters["use_sim_time"] is expected


def test_every_process_gets_the_transport_profile_that_carries_images():
    for process in processes.simulation("c", "i"):
        for variable in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
            assert Path(process.environment[variable]).read_text().count("segment_size") == 2


def test_parameter_values_survive_the_command_line():
    value = 'say "hi": 5, and \\ [go]'
    command = processes.Process("x", "lightvla_ros.x", {"instruction": value, "n": ["a", "b"]}).command()
    assert command[:4] == [sys.executable, "-m", "lightvla_ros.x", "--ros-args"]
    name, _, text = command[5].partition(":=")
    assert (name, json.loads(text)) == ("instruction", value)


def test_parameter_file_goes_before_the_arguments_and_to_both_nodes():
    for process in processes.aloha("c", "i", params_file="/tmp/mine.yaml"):
        assert process.parameter_files == ("/tmp/mine.yaml",)
        assert process.command()[-2:] == ["--params-file", "/tmp/mine.yaml"]
    assert all(process.parameter_files == () for process in processes.franka("c", "i"))


def test_executor_alone_needs_no_checkpoint_and_a_policy_does():
    for robot in (processes.aloha, processes.franka):
        assert [p.executable for p in robot("", "", parts="executor")] == ["executor_node"]
        for parts in ("both", "policy"):
            with pytest.raises(LightVLAError, match="no checkpoint is given"):
                robot("", "go", parts=parts)


def test_gripper_of_either_robot_reaches_both_nodes():
    for robot in (processes.aloha, processes.franka):
        assert [p.parameters["gripper"] for p in robot("c", "i", gripper="other")] == ["other", "other"]


def test_simulations_stay_on_this_machine(monkeypatch):
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert processes.local_only_environment() == {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    monkeypatch.setenv("ROS_DISTRO", "humble")
    assert processes.local_only_environment() == {"ROS_LOCALHOST_ONLY": "1"}


@pytest.mark.parametrize("process", [*processes.simulation("c", "i"), processes.operator(1.0, "v")])
def test_every_executable_is_a_console_script_of_the_package(process):
    setup = (ROOT / "setup.py").read_text()
    assert f'"{process.executable} = {process.module}:main"' in setup


def replaying(robot="aloha", contract=None, instruction="", **options):
    description, contract = load_robot(robot, ""), contract or aloha_contract()
    return processes.replay("bag", "c", instruction, contract, description, {"robot": robot}, **options)


@pytest.mark.parametrize(("instruction", "told"), [("", ("/instruction",)), ("another", ())])
def test_replay_plays_what_the_policy_listens_to_and_no_command(instruction, told):
    command = replaying(instruction=instruction).player
    topics = command[command.index("--topics") + 1 :]
    assert topics == (
        "/cam_high/camera/color/image_rect_raw",
        "/follower_left/joint_states",
        "/follower_right/joint_states",
        *told,
    )
    assert command[:4] == ("ros2", "bag", "play", "bag")


def test_live_replay_infers_when_offline_replay_does_unless_told():
    assert replaying().policy.parameters["mode"] == inspect.signature(cli.replay).parameters["mode"].default
    parameters = replaying(mode="receding_horizon", replan_steps=5).policy.parameters
    assert (parameters["mode"], parameters["replan_steps"]) == ("receding_horizon", 5)


def test_simulations_policy_leaves_one_of_the_cores_that_it_may_use(monkeypatch):
    for cores, threads in (({4, 5, 9}, 2), ({7}, 1)):
        monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid, cores=cores: cores)
        assert processes.simulation("c", "i")[1].parameters["torch_threads"] == threads


def test_speed_and_heartbeat_of_a_first_run_reach_the_executor():
    for robot in (processes.aloha, processes.franka):
        policy, executor = robot("c", "i", speed=0.1, require_heartbeat=True)
        assert (executor.parameters["speed"], executor.parameters["require_heartbeat"]) == (0.1, True)
        assert "speed" not in policy.parameters


def test_replay_is_the_policy_alone_in_the_players_time():
    result = replaying()
    assert result.policy.executable == "policy_node"
    assert result.policy.parameters["use_sim_time"] is True
    assert "--clock" in result.player
    assert "--loop" not in result.player
    assert "--loop" in replaying(loop=True).player


def test_replay_of_compressed_images_plays_the_compressed_topics():
    result = replaying(transport="compressed")
    assert result.policy.parameters["transport"] == "compressed"
    assert "/cam_high/camera/color/image_rect_raw/compressed" in result.player


@pytest.mark.parametrize("source", sorted((ROOT / "launch").glob("*.launch.py")), ids=lambda path: path.name)
def test_launch_files_describe_a_graph(source):
    launch = pytest.importorskip("launch_ros", reason="launch_ros comes with a ROS 2 installation")
    assert launch is not None
    namespace: dict = {}
    exec(compile(source.read_text(), str(source), "exec"), namespace)
    assert namespace["generate_launch_description"]().entities

"""The simulated ALOHA under a policy: `ros2 launch lightvla_ros sim.launch.py checkpoint:=/path/to/checkpoint`.

Only hands over, to what `lightvla demo` uses too: process_group prepares the policy (random weights where there is no
checkpoint), processes says which process starts with which parameters, and demo_operator brings the graph up, arms,
runs one episode and prints what was measured; when it ends, everything ends.
"""

import atexit
import shutil
import tempfile
from pathlib import Path

from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown

from launch import LaunchContext, LaunchDescription
from lightvla_ros.launching import node_action, text
from lightvla_ros.process_group import simulated_policy
from lightvla_ros.processes import local_only_environment, operator, simulation


def start(context: LaunchContext) -> list[Action]:
    folder = Path(tempfile.mkdtemp(prefix="lightvla_sim_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    instruction, seed = text(context, "instruction"), int(text(context, "seed"))
    policy = simulated_policy(text(context, "checkpoint"), instruction, folder, seed, print)
    processes = simulation(
        policy.checkpoint, instruction, seed, policy.cameras, policy.image_size, text(context, "pace")
    )
    last = operator(float(text(context, "seconds")), text(context, "video"), policy.note)
    over = Shutdown(reason="the episode is over")
    return [*(node_action(process) for process in processes), node_action(last, on_exit=over)]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "checkpoint", default_value="", description="Checkpoint folder; empty: a tiny one with random weights."
            ),
            DeclareLaunchArgument("instruction", default_value="pick up the red cube"),
            DeclareLaunchArgument("seed", default_value="0", description="Of the cubes on the table."),
            DeclareLaunchArgument("seconds", default_value="20.0", description="Length of the episode, s."),
            DeclareLaunchArgument("video", default_value="demo.mp4"),
            DeclareLaunchArgument("pace", default_value="real_time", choices=["real_time", "clock"]),
            *(SetEnvironmentVariable(name, value) for name, value in local_only_environment().items()),
            OpaqueFunction(function=start),
        ]
    )

"""A policy over a recorded bag, live: `ros2 launch lightvla_ros replay.launch.py bag:=/path checkpoint:=/path`.

Only hands over to lightvla_ros.processes. Plays nothing that commands a robot, and stays on this machine.
"""

from pathlib import Path

from launch.action import Action
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, SetEnvironmentVariable, Shutdown

from launch import LaunchContext, LaunchDescription
from lightvla_core.contract import FILE_NAME, PolicyContract
from lightvla_ros.launching import lifecycle_nodes, text
from lightvla_ros.processes import local_only_environment, replay
from lightvla_ros.robots.description_file import load_robot


def start(context: LaunchContext) -> list[Action]:
    checkpoint, robot, gripper = (text(context, name) for name in ("checkpoint", "robot", "gripper"))
    replaying = replay(
        text(context, "bag"),
        checkpoint,
        text(context, "instruction"),
        PolicyContract.from_file(Path(checkpoint) / FILE_NAME),
        load_robot(robot, gripper),
        {"robot": robot, "gripper": gripper},
        text(context, "device"),
        text(context, "transport"),
        float(text(context, "rate")),
        text(context, "loop") == "true",
        text(context, "mode"),
        int(text(context, "replan_steps")),
    )
    over = Shutdown(reason="the bag is over")
    player = ExecuteProcess(cmd=list(replaying.player), output="screen", on_exit=over)
    return lifecycle_nodes([replaying.policy], autostart=True, then=[player])


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description="The bag's folder."),
            DeclareLaunchArgument("checkpoint", description="Checkpoint folder."),
            DeclareLaunchArgument("instruction", default_value="", description="Empty: the bag's own."),
            DeclareLaunchArgument("robot", default_value="aloha"),
            DeclareLaunchArgument("gripper", default_value="", description="Empty: the first in the robot's file."),
            DeclareLaunchArgument("device", default_value="cuda", description="Where the policy runs."),
            DeclareLaunchArgument("transport", default_value="raw", choices=["raw", "compressed"]),
            DeclareLaunchArgument("rate", default_value="1.0", description="Bag seconds a second."),
            DeclareLaunchArgument(
                "mode",
                default_value="open_loop",
                choices=["open_loop", "receding_horizon", "prefetch"],
                description="When to infer.",
            ),
            DeclareLaunchArgument("replan_steps", default_value="0", description="Of receding_horizon."),
            DeclareLaunchArgument("loop", default_value="false", choices=["true", "false"]),
            *(SetEnvironmentVariable(name, value) for name, value in local_only_environment().items()),
            OpaqueFunction(function=start),
        ]
    )

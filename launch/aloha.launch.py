"""A policy on ALOHA arms: `ros2 launch lightvla_ros aloha.launch.py checkpoint:=/path instruction:="..."`.

The drivers and cameras run already. This configures and activates both nodes and never arms: `~/arm` is a person's.
"""

from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from launch import LaunchContext, LaunchDescription
from lightvla_ros.launching import common_arguments, common_values, lifecycle_nodes, text
from lightvla_ros.processes import aloha


def start(context: LaunchContext) -> list[Action]:
    processes = aloha(**common_values(context))
    return lifecycle_nodes(processes, text(context, "autostart") == "true")


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *common_arguments(),
            DeclareLaunchArgument("gripper", default_value="aloha1", choices=["aloha1", "trossen"]),
            DeclareLaunchArgument(
                "command_type",
                default_value="interbotix",
                choices=["interbotix", "joint_trajectory", "float64_multi_array"],
            ),
            OpaqueFunction(function=start),
        ]
    )

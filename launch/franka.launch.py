"""A policy on an FR3: `ros2 launch lightvla_ros franka.launch.py checkpoint:=/path instruction:="..."`.

franka_ros2, MoveIt Servo and the cameras run already. This configures and activates both nodes and never arms.
"""

from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from launch import LaunchContext, LaunchDescription
from lightvla_ros.launching import common_arguments, common_values, lifecycle_nodes, text
from lightvla_ros.processes import franka


def start(context: LaunchContext) -> list[Action]:
    processes = franka(pose_source=text(context, "pose_source"), **common_values(context))
    return lifecycle_nodes(processes, text(context, "autostart") == "true")


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *common_arguments(),
            DeclareLaunchArgument("gripper", default_value="", description="Empty: the first in the robot's file."),
            DeclareLaunchArgument("pose_source", default_value="broadcaster", choices=["broadcaster", "tf"]),
            DeclareLaunchArgument(
                "command_type", default_value="auto", choices=["auto", "joint_trajectory", "twist", "pose"]
            ),
            OpaqueFunction(function=start),
        ]
    )

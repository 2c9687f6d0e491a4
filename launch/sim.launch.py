"""The simulated ALOHA under a policy: `ros2 launch lightvla_ros sim.launch.py checkpoint:=/path/to/checkpoint`.

Only hands over: lightvla_ros.processes says which process starts with which parameters, and demo_operator brings the
graph up, arms, runs one episode and prints what was measured; when it ends, everything ends.
"""

from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription
from lightvla_ros.processes import local_only_environment, operator, simulation


def start(context: LaunchContext) -> list[Action]:
    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    processes = simulation(
        argument("checkpoint"), argument("instruction"), int(argument("seed")), pace=argument("pace")
    )
    nodes = [node(process) for process in processes]
    last = operator(float(argument("seconds")), argument("video"))
    return [*nodes, node(last, on_exit=Shutdown(reason="the episode is over"))]


def node(process, **options) -> Node:
    return Node(
        package="lightvla_ros",
        executable=process.executable,
        parameters=[dict(process.parameters)],
        additional_env=dict(process.environment),
        output="screen",
        **options,
    )


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument("checkpoint", description="Checkpoint folder; `lightvla init` makes a tiny one."),
            DeclareLaunchArgument("instruction", default_value="pick up the red cube"),
            DeclareLaunchArgument("seed", default_value="0", description="Of the cubes on the table."),
            DeclareLaunchArgument("seconds", default_value="20.0", description="Length of the episode, s."),
            DeclareLaunchArgument("video", default_value="demo.mp4"),
            DeclareLaunchArgument("pace", default_value="real_time", choices=["real_time", "clock"]),
            *(SetEnvironmentVariable(name, value) for name, value in local_only_environment().items()),
            OpaqueFunction(function=start),
        ]
    )

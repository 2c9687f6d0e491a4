"""What the launch files share: processes as lifecycle nodes, their arguments, and their start. Only launch imports it.

Which process starts with which parameters is in processes.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.actions import DeclareLaunchArgument, EmitEvent, RegisterEventHandler, TimerAction
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from launch import LaunchContext
from lightvla_ros.processes import Process

_RETRY = 2.0  # s


def common_arguments() -> list[Any]:
    return [
        DeclareLaunchArgument(
            "checkpoint", default_value="", description="Checkpoint folder; only parts:=executor needs none."
        ),
        DeclareLaunchArgument("instruction", default_value="", description="Empty: wait for the topic `instruction`."),
        DeclareLaunchArgument("device", default_value="cuda", description="Where the policy runs: cpu, cuda, cuda:N."),
        DeclareLaunchArgument("transport", default_value="raw", choices=["raw", "compressed"]),
        DeclareLaunchArgument("speed", default_value="1.0", description="Speed of execution, 0.1 to 1.0."),
        DeclareLaunchArgument(
            "require_heartbeat",
            default_value="false",
            choices=["true", "false"],
            description="Stop when nothing comes on the topic operator/heartbeat.",
        ),
        DeclareLaunchArgument(
            "parts",
            default_value="both",
            choices=["both", "policy", "executor"],
            description="Of two machines: policy where the GPU is, executor where the arm is.",
        ),
        DeclareLaunchArgument(
            "params_file",
            default_value="",
            description="ROS parameter YAML for both nodes, over the arguments here; empty: none.",
        ),
        DeclareLaunchArgument(
            "autostart", default_value="true", choices=["true", "false"], description="Configure and activate."
        ),
    ]


def text(context: LaunchContext, name: str) -> str:
    return str(LaunchConfiguration(name).perform(context))


def common_values(context: LaunchContext) -> dict[str, Any]:
    names = ("checkpoint", "instruction", "device", "transport", "parts", "command_type", "gripper", "params_file")
    safety = {"speed": float(text(context, "speed")), "require_heartbeat": text(context, "require_heartbeat") == "true"}
    return {**{name: text(context, name) for name in names}, **safety}


def lifecycle_nodes(processes: Sequence[Process], autostart: bool, then: Sequence[Any] = ()) -> list[Any]:
    """The nodes in the order of the processes; with autostart each is configured when the one before is active.

    then: what starts when the last one is active
    The executor's configuration needs the policy's contract, so the policy comes first. Nothing is ever armed here.
    """
    nodes = [node_action(process, LifecycleNode) for process in processes]
    if not autostart:
        return list(nodes)
    actions = []
    for process, node, following in zip(processes, nodes, [*nodes[1:], None], strict=True):
        actions.append(_when(node, "configuring", "inactive", [_change(node, Transition.TRANSITION_ACTIVATE)]))
        if process.executable == "executor_node":
            # The contract arrives after the policy is active, or when its machine is heard at all; so ask again.
            again = TimerAction(period=_RETRY, actions=[_change(node, Transition.TRANSITION_CONFIGURE)])
            actions.append(_when(node, "configuring", "unconfigured", [again]))
        if following is not None:
            configure = [_change(following, Transition.TRANSITION_CONFIGURE)]
            actions.append(_when(node, "activating", "active", configure))
    if then:
        actions.append(_when(nodes[-1], "activating", "active", list(then)))
    # Handlers stand before what they listen to.
    return [*actions, *nodes, _change(nodes[0], Transition.TRANSITION_CONFIGURE)]


def node_action(process: Process, kind: Any = Node, **options: Any) -> Any:
    """The launch action of a process. kind: Node or LifecycleNode; options: further arguments of it"""
    return kind(
        package="lightvla_ros",
        executable=process.executable,
        name=process.node,
        namespace="",
        parameters=[dict(process.parameters), *process.parameter_files],
        additional_env=dict(process.environment),
        output="screen",
        **options,
    )


def _when(node: Any, begun: str, reached: str, entities: list[Any]) -> Any:
    handler = OnStateTransition(target_lifecycle_node=node, start_state=begun, goal_state=reached, entities=entities)
    return RegisterEventHandler(handler)


def _change(node: Any, transition: int) -> Any:
    return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))

"""A program: both nodes, active, and as JSON what they publish, subscribe, serve and call. Test only.

python live_graph.py checkpoint robot command_type,transport,pose_source ...

One line for each setting, each in a fork of this process: importing torch takes longer than all the rest.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.action import get_action_client_names_and_types_by_node
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter

import lightvla_core.policy  # noqa: F401  # once, for all the forks
from lightvla_ros.executor_node import ExecutorNode
from lightvla_ros.policy_node import PolicyNode

NODES = ("policy", "policy_inbox", "executor", "executor_inbox")
PATIENCE = 20.0


def wait(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not happen within {PATIENCE} s")
        time.sleep(0.02)


def graph_of(observer: Node, node: str) -> dict[str, list[str]]:
    def names(question: Callable[..., Any]) -> list[str]:
        return sorted(name for name, _ in question(node, "/") if "/_action/" not in name)

    return {
        "publish": names(observer.get_publisher_names_and_types_by_node),
        "subscribe": names(observer.get_subscriber_names_and_types_by_node),
        "reply": names(observer.get_service_names_and_types_by_node),
        "request": names(observer.get_client_names_and_types_by_node),
        "call": sorted(name for name, _ in get_action_client_names_and_types_by_node(observer, node, "/")),
    }


def main(checkpoint: str, robot: str, *settings: str) -> None:
    for setting in settings:
        child = os.fork()
        if not child:
            look(checkpoint, robot, *setting.split(","))
        status = os.waitpid(child, 0)[1]
        if os.waitstatus_to_exitcode(status):
            raise SystemExit(f"{robot} with {setting} could not be looked at")


def look(checkpoint: str, robot: str, command_type: str, transport: str, pose_source: str) -> None:
    rclpy.init()
    common = {"robot": robot, "pose_source": pose_source}
    own = ({"checkpoint": checkpoint, "transport": transport, "torch_threads": 1}, {"command_type": command_type})
    policy, commander = (
        kind(parameter_overrides=[Parameter(k, value=v) for k, v in {**common, **parameters}.items()])
        for kind, parameters in zip((PolicyNode, ExecutorNode), own, strict=True)
    )
    observer = Node("observer")
    spinner = SingleThreadedExecutor()
    for node in (policy, commander, observer):
        spinner.add_node(node)
    threading.Thread(target=spinner.spin, daemon=True).start()
    for node in (policy, commander):
        wait(lambda n=node: n.trigger_configure() == TransitionCallbackReturn.SUCCESS, "configuration")
        wait(lambda n=node: n.trigger_activate() == TransitionCallbackReturn.SUCCESS, "activation")
    wait(lambda: all(observer.get_node_names().count(n) == 1 for n in NODES), "discovery of every node, once")
    wait(lambda: "/policy/action_chunk" in graph_of(observer, "policy")["publish"], "discovery of what they publish")
    graphs, again = {}, None
    while graphs != again or not graphs:
        again = graphs
        time.sleep(0.5)
        graphs = {node: graph_of(observer, node) for node in NODES}
    print(json.dumps(graphs), flush=True)
    os._exit(0)  # the nodes' threads would outlive an orderly end by seconds


if __name__ == "__main__":
    main(*sys.argv[1:])

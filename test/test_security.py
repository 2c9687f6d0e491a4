"""The SROS2 policy files against the live nodes, and no run without security where security was asked for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here")
pytest.importorskip("torch", reason="the policy needs torch")

from lightvla_core.presets import write_tiny

ROOT = Path(__file__).parent.parent
POLICIES = ROOT / "config" / "sros2"
Graph = dict[str, dict[str, list[str]]]

# command_type, transport, pose_source: together they make the nodes use every name.
LOOKS = {
    "aloha": [
        "joint_trajectory,raw,broadcaster",
        "interbotix,compressed,broadcaster",
        "float64_multi_array,raw,broadcaster",
    ],
    "franka": ["twist,raw,broadcaster", "pose,compressed,tf"],
}

# What the files allow beyond the graphs that are looked at here: joint trajectories and other gripper drivers.
OTHER_FRANKA = {
    "/fr3_arm_controller/joint_trajectory",
    "/franka/joint_states",
    "/franka_gripper/gripper_action",
    "/fr3_gripper/grasp",
    "/fr3_gripper/gripper_action",
    "/fr3_gripper/joint_states",
    "/fr3_gripper/move",
}


def allowed(robot: str) -> Graph:
    """node -> publish, subscribe, reply, request or call -> names"""
    graph: Graph = {}
    for enclave in ElementTree.parse(POLICIES / f"{robot}.xml").getroot().iter("enclave"):
        for profile in enclave.iter("profile"):
            node = profile.attrib["node"]
            assert enclave.attrib["path"] == f"/lightvla/{node.removesuffix('_inbox')}"
            rules = graph.setdefault(node, {})
            for group in profile:
                ((right, verdict),) = group.attrib.items()
                assert verdict == "ALLOW"
                rules.setdefault(right, []).extend(str(item.text) for item in group)
    return graph


@pytest.mark.parametrize("page", ["README.md", "docs/robots.md"])
def test_documentation_says_that_this_is_no_safety_function(page: str) -> None:
    assert re.search(r"(no|not a) safety function", (ROOT / page).read_text())


def look(checkpoint: Path, robot: str, settings: list[str]) -> list[Graph]:
    command = [sys.executable, str(ROOT / "test" / "live_graph.py"), str(checkpoint), robot, *settings]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    graphs: list[Graph] = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(graphs) == len(settings)
    return graphs


def assert_covered(graph: Graph, rules: Graph) -> None:
    for node, rights in graph.items():
        for right, names in rights.items():
            missing = set(names) - set(rules[node].get(right, []))
            assert not missing, f"{node} may not {right} {sorted(missing)}"


def names_in(*graphs: Graph) -> set[tuple[str, str, str]]:
    return {(node, right, n) for g in graphs for node, rights in g.items() for right, ns in rights.items() for n in ns}


@pytest.mark.parametrize("robot", LOOKS)
def test_policy_file_allows_what_the_nodes_use_and_nothing_else(robot: str, ros_domain: int, tmp_path: Path) -> None:
    pytest.importorskip("franka_msgs", reason="the drivers' messages are not here; `make test` generates them")
    checkpoint = write_tiny(tmp_path / robot, robot=robot)  # type: ignore[arg-type]
    graphs = look(checkpoint, robot, LOOKS[robot])
    for graph in graphs:
        assert_covered(graph, allowed(robot))
    beyond = {name for *_, name in names_in(allowed(robot)) - names_in(*graphs)}
    # Checkpoints may have a third camera; these ones do not.
    assert {n for n in beyond if "cam_right_wrist" not in n} <= (OTHER_FRANKA if robot == "franka" else set())


def test_nobody_but_the_executor_may_command_and_nobody_may_use_a_wildcard() -> None:
    for robot in ("aloha", "franka"):
        rules = allowed(robot)
        assert {n for n in rules["policy"]["publish"]} == {
            "/diagnostics",
            "/parameter_events",
            "/policy/action_chunk",
            "/policy/contract",
            "/policy/debug_image",
            "/policy/transition_event",
            "/rosout",
        }
        assert not any("*" in name for *_, name in names_in(rules))


def test_asked_for_security_without_keys_or_plugins_the_node_does_not_start(tmp_path: Path, ros_domain: int) -> None:
    security = {
        "ROS_SECURITY_ENABLE": "true",
        "ROS_SECURITY_STRATEGY": "Enforce",
        "ROS_SECURITY_KEYSTORE": str(tmp_path),
    }
    command = [sys.executable, "-m", "lightvla_ros.executor_node", "--ros-args", "--enclave", "/lightvla/executor"]
    result = subprocess.run(
        command, env={**os.environ, **security}, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode != 0
    assert "disarmed" not in result.stderr  # the first thing that a node which runs says
    assert "Traceback" not in result.stderr


def test_no_module_unpickles_or_runs_what_came_from_elsewhere() -> None:
    forbidden = (
        "pickle.load",
        "pickle.Unpickler",
        "trust_remote_code=True",
        "yaml.load(",
        "eval(",
        "exec(",
        "os.system",
    )
    for path in [*ROOT.glob("lightvla_core/**/*.py"), *ROOT.glob("lightvla_ros/**/*.py")]:
        found = [word for word in forbidden if word in path.read_text().replace(".eval()", "")]
        assert not found, f"{path.name} holds {found}"
        assert "torch.load(" not in path.read_text() or "weights_only=True" in path.read_text(), path.name

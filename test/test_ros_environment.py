"""Mixtures of a ROS installation and the pip wheels are told apart from either alone."""

from __future__ import annotations

from pathlib import Path

from lightvla_ros.ros_environment import check_ros_mix, mixture, sourced_installations


def prefix(folder: Path, *files: str) -> Path:
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_this_environment_is_no_mixture() -> None:
    check_ros_mix()


def test_only_a_prefix_with_an_rclpy_of_its_own_is_an_installation(tmp_path: Path) -> None:
    ros = prefix(tmp_path / "opt/ros/jazzy", "share/rclpy/package.xml")
    workspace = prefix(tmp_path / "install", "share/my_msgs/package.xml")
    virtual = prefix(tmp_path / "venv", "share/rclpy/package.xml", "pyvenv.cfg")
    environ = {"AMENT_PREFIX_PATH": f"{workspace}:{virtual}:{ros}:"}
    assert sourced_installations(environ) == (ros,)
    assert sourced_installations({}) == ()


def test_wheels_alone_and_an_installation_alone_are_fine(tmp_path: Path) -> None:
    ros = tmp_path / "opt/ros/jazzy"
    assert mixture((), tmp_path / "venv/lib/rclpy", wheels=True) is None
    assert mixture((ros,), ros / "lib/python3.12/site-packages/rclpy", wheels=False) is None


def test_both_together_are_refused_in_one_sentence(tmp_path: Path) -> None:
    ros = tmp_path / "opt/ros/jazzy"
    assert "holds the pip wheels" in (mixture((ros,), ros / "lib/rclpy", wheels=True) or "")
    assert "rclpy would come from" in (mixture((ros,), tmp_path / "elsewhere/rclpy", wheels=False) or "")

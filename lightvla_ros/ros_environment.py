"""Which ROS 2 this process would use: a sourced installation or the pip wheels, never both.

Looks only at the environment and at what is installed; imports nothing of ROS, so it can run before rclpy does.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from lightvla_core.errors import LightVLAError

WHEEL_DISTRIBUTION = "ros-rclpy"


def sourced_installations(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The prefixes on AMENT_PREFIX_PATH that hold an rclpy of their own.

    A workspace of messages or of this package alone is no installation. Nor is a virtual environment: the wheels put
    their share/ folder there, and set LD_LIBRARY_PATH but never AMENT_PREFIX_PATH.
    """
    prefixes = (Path(p) for p in environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p)
    return tuple(p for p in prefixes if (p / "share/rclpy/package.xml").is_file() and not (p / "pyvenv.cfg").is_file())


def mixture(installations: tuple[Path, ...], rclpy: Path | None, wheels: bool) -> str | None:
    """Say in one sentence why this would be a mixture of two ROS 2s, or None.

    installations: the sourced prefixes with an rclpy; rclpy: the folder that `import rclpy` would take, if any;
    wheels: this Python environment holds the pip wheels, whose LD_LIBRARY_PATH is set even where they are not imported
    """
    if not installations:
        return None
    sourced = ", ".join(map(str, installations))
    if wheels:
        return (
            f"a ROS 2 installation is sourced ({sourced}) and this Python environment ({sys.prefix}) holds the pip "
            "wheels of rclpy: use one of them, either in a shell where no ROS is sourced, or from an environment "
            "made without the `ros` extra"
        )
    if rclpy is not None and not any(_within(rclpy, prefix) for prefix in installations):
        return (
            f"a ROS 2 installation is sourced ({sourced}) but rclpy would come from {rclpy}: use that "
            "installation's own Python, or a shell where no ROS is sourced"
        )
    return None


def check_ros_mix() -> None:
    """Raise LightVLAError when no rclpy can be found, or when two ROS 2s are mixed."""
    spec = importlib.util.find_spec("rclpy")
    if spec is None or spec.origin is None:
        raise LightVLAError(
            "no rclpy in this Python environment: source a ROS 2 installation, or `pip install -e '.[ros]'` in a clone"
        )
    sentence = mixture(sourced_installations(os.environ), Path(spec.origin).parent, _has_wheels())
    if sentence is not None:
        raise LightVLAError(sentence)


def exit_on_ros_mix() -> None:
    """check_ros_mix for modules that are about to import rclpy: the sentence on stderr, exit status 2."""
    try:
        check_ros_mix()
    except LightVLAError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def _has_wheels() -> bool:
    try:
        importlib.metadata.distribution(WHEEL_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _within(path: Path, prefix: Path) -> bool:
    return path.is_relative_to(prefix) or path.resolve().is_relative_to(prefix.resolve())

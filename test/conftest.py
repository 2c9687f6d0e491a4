"""What several test files share: a ROS domain of one's own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from lightvla_ros.domain import reserve_domain

# The renderer's LLVM (Mesa) and triton's, which torch loads when it likes, go together in this order only.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

# Deadlines would make the suite depend on how busy the machine is.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="module")
def ros_domain() -> Iterator[int]:
    """A domain id that nobody on this machine uses, in the environment of this process and its children."""
    with pytest.MonkeyPatch.context() as patch, reserve_domain() as domain:
        patch.setenv("ROS_DOMAIN_ID", str(domain))
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        yield domain


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny preset with random weights: read it, never write to it."""
    from lightvla_core.presets import write_tiny

    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def driver_messages() -> dict[str, str]:
    """The environment in which a process imports the drivers' real message packages; built once, into build/."""
    root = Path(__file__).parent.parent
    prefix = root / "build" / "interfaces"
    command = [str(root / "tools" / "build_test_interfaces.sh"), sys.executable, str(prefix)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode == 3:
        pytest.skip(built.stderr.strip())
    assert built.returncode == 0, built.stderr
    site = next(prefix.glob("l*/python3*/site-packages"))
    added = {"LD_LIBRARY_PATH": prefix / "lib", "PYTHONPATH": site, "AMENT_PREFIX_PATH": prefix}
    return {
        **os.environ,
        **{name: os.pathsep.join(filter(None, (str(path), os.environ.get(name)))) for name, path in added.items()},
    }

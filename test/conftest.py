"""What several test files share: a ROS domain of one's own, a checkpoint, the command line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@pytest.fixture(scope="module", autouse=True)
def _no_participant_stays() -> Iterator[None]:
    """Fast DDS deadlocks now and then where a process destroys one of several participants (its issue 6193)."""
    yield
    names = [_name(thread) for thread in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in names if name.startswith("dds.ev")], "a node of this module was not destroyed"


def _name(thread: Path) -> str:
    try:
        return thread.read_text()
    except OSError:
        return "ended meanwhile"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny preset with random weights: read it, never write to it."""
    from lightvla_core.presets import write_tiny

    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


@dataclass(frozen=True)
class Ended:
    """A command that came to its end."""

    status: int
    stdout: str
    stderr: str

    @property
    def sentence(self) -> str:
        """What a command that refused its input said: one line, on stderr alone."""
        assert self.status == 2, self
        assert self.stderr.startswith("error: ")
        assert self.stderr.count("\n") == 1, self.stderr
        return self.stderr


@pytest.fixture
def lightvla(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command line, in this process: a process of its own imports torch for seconds."""
    from lightvla_core.cli import main

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lightvla", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return Ended(int(exit_.value.code or 0), out, err)

    return run

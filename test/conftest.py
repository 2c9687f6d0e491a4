"""What several test files share: a ROS domain of one's own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def ros_domain() -> Iterator[int]:
    """A domain id that nobody on this machine uses, in the environment of this process and its children."""
    with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reservation:
        domain = _reserve(reservation)
        patch.setenv("ROS_DOMAIN_ID", str(domain))
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        yield domain


def _reserve(reservation: socket.socket) -> int:
    """Bind a port of a free domain that DDS never uses, so that tests running at the same time pick another domain."""
    for offset in range(100):
        domain = 1 + (os.getpid() + offset) % 100
        first_port = 7400 + 250 * domain
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first_participant:
            try:
                first_participant.bind(("127.0.0.1", first_port + 10))
                reservation.bind(("127.0.0.1", first_port + 249))
            except OSError:
                continue
            return domain
    raise RuntimeError("no free ROS domain")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny preset with random weights: read it, never write to it."""
    from lightvla_core.presets import write_tiny

    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")

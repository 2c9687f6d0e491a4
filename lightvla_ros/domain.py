"""A ROS domain that nobody else on this machine uses. Sockets only, no ROS import."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from lightvla_core.errors import LightVLAError

_HIGHEST = 100  # beyond, the ports of DDS reach into the range that systems hand out themselves
# Where to begin looking: elsewhere in every process, and each time anew, since a graph outlives its end for a moment.
_candidates = itertools.count(os.getpid())


@contextmanager
def reserve_domain() -> Iterator[int]:
    """A free domain id, kept from other callers of this function until the context ends.

    DDS derives ports from the id: 7400 + 250 · id and up. A domain whose first participant's port is taken is in use;
    the last port of the block, which DDS never uses, is bound as a mark.
    """
    for candidate in itertools.islice(_candidates, _HIGHEST):
        domain = 1 + candidate % _HIGHEST
        first_port = 7400 + 250 * domain
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as participant,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mark,
        ):
            try:
                participant.bind(("127.0.0.1", first_port + 10))
                mark.bind(("127.0.0.1", first_port + 249))
            except OSError:
                continue
            participant.close()
            yield domain
            return
    raise LightVLAError("no free ROS domain on this machine; end other ROS 2 graphs first")

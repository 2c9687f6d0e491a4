"""What computes for long lets the control loop go first, where that has no real-time scheduling. No ROS."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_NICE = 10


def step_back() -> None:
    """Raise the nice value of the calling thread and of those it starts; for inference and rendering.

    Linux weighs nice values within a session only (autogroup), so a process that leads one of its own says it there
    too. In a session that it shares, such as a launch's, the executor would be slowed as well.
    """
    with suppress(OSError):
        os.nice(_NICE)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(_NICE))

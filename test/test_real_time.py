"""What the operating system is asked for, and gives. Each in a process of its own, which would keep it otherwise."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from lightvla_ros import real_time


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout


def test_real_time_request_says_what_it_got() -> None:
    output = run(
        "from lightvla_ros.real_time import request_real_time as r; import os;"
        "g = r(10, False); print(g.sentence); assert g.scheduling == (os.sched_getscheduler(0) == os.SCHED_FIFO);"
        "assert r(0, False).scheduling is False"
    )
    assert "real-time scheduling" in output


# Prints policy, niceness and slice (ns) of the main thread, and of one that is started after the request.
SLICES = """
import ctypes, os, threading
from lightvla_ros import real_time
os.nice(3)
real_time.request_real_time(0, False)
def show():
    held = ctypes.create_string_buffer(real_time._SCHED_ATTR.size)
    get = real_time._SCHED_ATTR_CALLS[os.uname().machine][1]
    assert ctypes.CDLL(None).syscall(get, 0, held, len(held.raw), 0) == 0
    values = real_time._SCHED_ATTR.unpack(held.raw)
    print(values[1], values[3], values[5])
show()
thread = threading.Thread(target=show)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.machine() not in real_time._SCHED_ATTR_CALLS, reason="unknown numbers of system calls")
def test_slices_are_short_and_the_niceness_stays() -> None:
    for line in run(SLICES).splitlines():
        policy, niceness, length = map(int, line.split())
        assert (policy, niceness) == (0, 3)
        if length == 0:
            pytest.skip("this kernel has no slices of a thread's own (Linux 6.12 has)")
        assert length == 100_000


def test_a_system_without_such_calls_is_asked_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(real_time.ctypes, "CDLL", lambda name: pytest.fail("called the system"))
    real_time._shorten_slices()

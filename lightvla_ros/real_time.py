"""What the operating system may give a process whose control loop is to be on time. No ROS.

Without privileges: short time slices, with which Linux since 6.12 lets a thread that wakes up run before one with
longer slices. With privileges: real-time scheduling, and memory that stays resident.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import struct
import sys
from dataclasses import dataclass

_MCL_CURRENT, _MCL_FUTURE = 1, 2
# How long a thread may keep the interpreter while the loop waits for it, s; Python's default is 5 ms.
_SWITCH_INTERVAL = 0.00002
# The shortest slice that Linux gives, ns.
_SLICE = 100_000
# The numbers of sched_setattr and sched_getattr, which C libraries know since 2025 only, and their struct sched_attr:
# size, policy, flags, nice, priority, runtime (the slice of a thread that is not real-time), deadline, period.
_SCHED_ATTR_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
_SCHED_ATTR = struct.Struct("IIQiIQQQ")


@dataclass(frozen=True)
class RealTime:
    """What was asked of the operating system and given, or else why not."""

    scheduling: bool
    memory_locked: bool
    sentence: str


def request_real_time(priority: int, lock_memory: bool) -> RealTime:
    """Ask for SCHED_FIFO for this whole process (priority 2..99, 0 to not ask) and for its memory to stay resident.

    The whole process, since a real-time thread that waits for an interpreter lock held by a preempted normal thread
    gains nothing; but at one less than the priority, which is for the control loop's own thread. Also lets other
    threads keep the interpreter for less long, and asks for short slices of time, which nobody is refused.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL)
    _shorten_slices()
    # What lives now lives on: the garbage collector need not walk it again.
    gc.collect()
    gc.freeze()
    scheduling, sentence = _request_fifo(priority) if priority > 0 else (False, "real-time scheduling not asked for")
    locked = lock_memory and _lock_memory()
    if lock_memory and not locked:
        sentence += "; memory not locked (allow it with `ulimit -l unlimited`)"
    return RealTime(scheduling, locked, sentence)


def _shorten_slices() -> None:
    """Of every thread, and of those that they start; where the system does not know such a thing, nothing."""
    calls = _SCHED_ATTR_CALLS.get(platform.machine())
    if sys.platform != "linux" or calls is None:
        return
    set_attributes, get_attributes = calls
    libc, held = ctypes.CDLL(None), ctypes.create_string_buffer(_SCHED_ATTR.size)
    try:
        tasks = [int(task) for task in os.listdir("/proc/self/task")]
    except OSError:
        return
    for task in tasks:
        # Asked for first, so that the niceness stays what it is.
        if libc.syscall(get_attributes, task, held, _SCHED_ATTR.size, 0) == 0:
            values = list(_SCHED_ATTR.unpack(held.raw))
            if values[1] == os.SCHED_OTHER:
                values[5] = _SLICE
                libc.syscall(set_attributes, task, _SCHED_ATTR.pack(*values), 0)


def _request_fifo(priority: int) -> tuple[bool, str]:
    try:
        # The control loop's own priority, one above the others': asked for first, so that it is all or nothing.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        for task in os.listdir("/proc/self/task"):
            os.sched_setscheduler(int(task), os.SCHED_FIFO, os.sched_param(max(1, priority - 1)))
    except (OSError, AttributeError) as error:
        return False, f"no real-time scheduling ({error}; allow it with `ulimit -r {priority}`), the loop works without"
    return True, f"real-time scheduling, SCHED_FIFO {priority}"


def _lock_memory() -> bool:
    try:
        return bool(ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE) == 0)
    except (OSError, AttributeError):
        return False

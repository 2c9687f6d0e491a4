"""Who steps back: the thread, and the whole process only where it leads a session."""

import subprocess
import sys
from pathlib import Path

import pytest

SESSION = Path("/proc/self/autogroup")
THREAD = """
import os, threading
from lightvla_ros.niceness import step_back
def work():
    step_back()
    print(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
before = os.getpriority(os.PRIO_PROCESS, os.getpid())
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(before, os.getpriority(os.PRIO_PROCESS, os.getpid()))
"""
GROUP = f"""
from lightvla_ros.niceness import step_back
step_back()
print(open({str(SESSION)!r}).read().split()[-1])
"""


def printed(code: str, leads: bool) -> list[str]:
    """What a process of this code prints, one line an item; as leader of a session or not."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, start_new_session=leads, capture_output=True, text=True, check=True).stdout.split()


def test_a_thread_steps_back_and_its_process_does_not() -> None:
    thread, before, after = map(int, printed(THREAD, leads=False))
    assert thread == min(19, before + 10)
    assert after == before


@pytest.mark.skipif(
    not (SESSION.exists() and SESSION.read_text().split()), reason="no scheduling groups by session on this kernel"
)
@pytest.mark.parametrize("leads", [True, False])
def test_a_session_steps_back_only_with_its_leader(leads: bool) -> None:
    before = SESSION.read_text().split()[-1]
    assert printed(GROUP, leads) == ["10" if leads else before]

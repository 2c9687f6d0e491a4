"""Who steps back: the thread, and the whole process only where it leads a session."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os, threading
from lightvla_ros.niceness import step_back
mine = []
def work():
    step_back()
    mine.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(mine[0] == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10), open('/proc/self/autogroup').read().split()[-1])
"""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel has no scheduling groups by session")
@pytest.mark.parametrize("leads", [True, False])
def test_a_thread_steps_back_and_its_process_only_as_leader_of_a_session(leads: bool) -> None:
    before = Path("/proc/self/autogroup").read_text().split()[-1]
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, start_new_session=leads, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "10" if leads else before]

"""Processes that are started together, watched, and ended together."""

from __future__ import annotations

import sys
import time

import pytest

from lightvla_core.errors import LightVLAError
from lightvla_ros.process_group import ProcessGroup, camera_settings, run_to_end, running
from lightvla_ros.processes import Process


def ask_until_it_raises(group: ProcessGroup) -> None:
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        group()
        time.sleep(0.05)


def test_a_process_that_dies_is_named_with_its_last_words(tmp_path):
    broken = Process("sim_node", "no_such_module", {})
    with (
        running([broken], tmp_path) as group,
        pytest.raises(LightVLAError, match=r"sim_node ended.*no_such_module"),
    ):
        ask_until_it_raises(group)


def test_a_process_that_ignores_the_request_is_ended_anyway(tmp_path, monkeypatch):
    (tmp_path / "stubborn.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with running([Process("sim_node", "stubborn", {})], tmp_path) as group:
        log = tmp_path / "sim_node.log"
        while "up" not in log.read_text():
            time.sleep(0.01)
        began = time.monotonic()
        group.end()
    assert 1.0 < time.monotonic() - began < 3.0


def test_the_sentence_of_a_failed_command_is_passed_on():
    with pytest.raises(LightVLAError, match=r"^the reason$"):
        run_to_end([sys.executable, "-c", "import sys; sys.exit('noise\\nthe reason')"])


def test_the_simulator_is_asked_for_what_the_contract_wants(tiny_checkpoint):
    assert camera_settings(tiny_checkpoint) == (("cam_high", "cam_left_wrist"), 112)

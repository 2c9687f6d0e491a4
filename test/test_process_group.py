"""Processes that are started together, watched, and ended together."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from lightvla_core.errors import LightVLAError
from lightvla_ros.process_group import ProcessGroup, camera_settings, run_to_end, running, simulated_policy
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


def test_inference_is_asked_to_end_first_then_the_commands_then_the_robot(tmp_path, monkeypatch):
    (tmp_path / "idle.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = ("sim_node", "executor_node", "policy_node")
    with running([Process(name, "idle", {}) for name in names], tmp_path) as group:
        asked = [popen.pid for popen in group.ask_to_end()]
        assert asked == [group.pid(name) for name in ("policy_node", "executor_node", "sim_node")]


def test_the_sentence_of_a_failed_command_is_passed_on():
    with pytest.raises(LightVLAError, match=r"^the reason$"):
        run_to_end([sys.executable, "-c", "import sys; sys.exit('noise\\nthe reason')"])


def test_simulation_without_a_checkpoint_says_that_its_policy_has_learnt_nothing(tmp_path):
    said: list[str] = []
    policy = simulated_policy("", "go", tmp_path, 0, said.append)
    assert policy.checkpoint.is_dir()
    assert (policy.cameras, policy.image_size) == (("cam_high", "cam_left_wrist"), 112)
    assert "random weights" in said[0]
    assert policy.note == "untrained policy, random weights: the motion means nothing | go"


def test_simulation_with_a_checkpoint_takes_its_cameras_and_says_nothing(tiny_checkpoint, tmp_path):
    policy = simulated_policy(str(tiny_checkpoint), "go", tmp_path, 0, lambda text: pytest.fail(text))
    assert (policy.checkpoint, policy.note, policy.image_size) == (tiny_checkpoint, "go", 112)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("checkpoint", "instruction"), [("", " "), ("/nonexistent", "go")])
def test_simulation_of_nothing_is_refused(tmp_path, checkpoint, instruction):
    with pytest.raises(LightVLAError, match=r"instruction is empty|does not exist"):
        simulated_policy(checkpoint, instruction, tmp_path, 0, print)


def test_the_simulator_is_asked_for_what_the_contract_wants(tiny_checkpoint):
    assert camera_settings(tiny_checkpoint) == (("cam_high", "cam_left_wrist"), 112)


def test_a_signal_while_a_process_starts_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def interrupted(*arguments: object, **options: object) -> subprocess.Popen[str]:
        started.append(popen(*arguments, **options))  # type: ignore[call-overload]
        signal.raise_signal(signal.SIGINT)
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_to_end([sys.executable, "-c", "import time; time.sleep(60)"])
    assert started[0].poll() is not None

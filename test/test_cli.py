"""The `lightvla` command as a user meets it."""

import subprocess
import sys
from pathlib import Path

PARITY = Path(__file__).parent / "data" / "parity"


def test_help_lists_the_sub_commands_without_loading_torch():
    command = [sys.executable, "-m", "lightvla_core.cli", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0
    for name in ("init", "parity", "demo"):
        assert name in result.stdout
    code = "import lightvla_core.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_in_a_process_of_its_own_bad_input_is_one_sentence_without_a_traceback():
    command = [sys.executable, "-m", "lightvla_core.cli", "parity", "/nonexistent"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_parity_prints_a_table_and_succeeds(lightvla):
    result = lightvla("parity", PARITY, "--strict")
    assert result.status == 0, result.stderr
    assert "oft_l1_2img_proprio_0" in result.stdout
    assert "0 fail" in result.stdout


def test_init_writes_a_checkpoint_once(lightvla, tmp_path):
    assert lightvla("init", tmp_path / "tiny").status == 0
    assert "exists already" in lightvla("init", tmp_path / "tiny").sentence


def test_demo_of_a_checkpoint_that_is_not_there_is_refused(lightvla):
    assert "/nonexistent" in lightvla("demo", "--checkpoint", "/nonexistent").sentence

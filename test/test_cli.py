"""The `lightvla` command as a user meets it: in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

PARITY = Path(__file__).parent / "data" / "parity"


def lightvla(*arguments, **options):
    command = [sys.executable, "-m", "lightvla_core.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, **options)


def test_help_lists_the_sub_commands_without_loading_torch():
    result = lightvla("--help")
    assert result.returncode == 0
    for command in ("init", "parity", "demo"):
        assert command in result.stdout
    code = "import lightvla_core.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_parity_prints_a_table_and_succeeds():
    result = lightvla("parity", PARITY, "--strict")
    assert result.returncode == 0, result.stderr
    assert "oft_l1_2img_proprio_0" in result.stdout
    assert "0 fail" in result.stdout


def test_init_writes_a_checkpoint_once(tmp_path):
    assert lightvla("init", tmp_path / "tiny").returncode == 0
    again = lightvla("init", tmp_path / "tiny")
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert "exists already" in again.stderr


@pytest.mark.parametrize("arguments", [("parity", "/nonexistent"), ("demo", "--checkpoint", "/nonexistent")])
def test_bad_input_is_one_sentence_without_a_traceback(arguments):
    result = lightvla(*arguments)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")

"""The benchmarks' own parts; what they measure is printed by them and asserted nowhere."""

from __future__ import annotations

import os
import re

from rich.console import Console

from lightvla_ros.benchmark import hardware, print_table, resident_memory


def test_first_line_names_the_hardware() -> None:
    assert re.match(r"\d+ x .+, Linux .+, Python 3\.\d+\.\d+, .*load \d", hardware())


def test_table_stands_under_the_hardware() -> None:
    console = Console(record=True, width=100)
    print_table(console, "2 x CPU", "executor at 50 Hz", [("lateness p99", "0.3", "ms")])
    lines = console.export_text().splitlines()
    assert lines[0] == "2 x CPU"
    assert any("lateness p99" in line and "0.3" in line and "ms" in line for line in lines[1:])


def test_memory_of_this_process_is_some_megabytes() -> None:
    assert 1.0 < resident_memory(os.getpid()) < 100_000.0

"""The benchmark's table says where it was measured and what was."""

import io

from rich.console import Console

from lightvla_core.benchmark import bench_policy


def test_the_table_names_the_hardware_first_and_has_a_row_for_each_batch():
    out = io.StringIO()
    Console(file=out, width=130).print(bench_policy("tiny", batches=(1, 2), repeats=2))
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert "cores, torch" in lines[0]
    assert lines[1].startswith("tiny, float32, created in")
    rows = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    assert [row[0].strip() for row in rows] == ["1", "2"]
    assert all("of 128" in row[5] for row in rows)

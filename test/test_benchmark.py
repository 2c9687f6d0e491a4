"""The benchmark's table says where it was measured and what was."""

import io

from rich.console import Console

from lightvla_core.benchmark import bench_policy


def test_the_table_names_the_hardware_first_and_has_a_row_for_each_batch_with_and_without_pruning():
    out = io.StringIO()
    Console(file=out, width=130).print(bench_policy("tiny", batches=(1, 2), repeats=2))
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert "cores, torch" in lines[0]
    assert lines[1].startswith("tiny, float32, created in")
    rows = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    assert [[cell.strip() for cell in row[:2]] for row in rows] == [
        ["yes", "1"],
        ["yes", "2"],
        ["no", "1"],
        ["no", "2"],
    ]
    assert all(row[7].strip() == "128" for row in rows)
    assert "128-128" in rows[2][6]

"""Every fault against every guarantee, under the simulated clock; docs/faults.md says no more than this."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_checks import CHECKS, applies, rides_through, run, verdict
from faults import FAULTS, Fault

CELLS = [(fault, guarantee) for fault in FAULTS for guarantee in CHECKS if applies(fault, guarantee)]


@pytest.mark.parametrize(
    ("fault", "guarantee"), CELLS, ids=[f"{f.name.replace(' ', '_')}-{CHECKS[g].__name__}" for f, g in CELLS]
)
def test_guarantee_holds(fault: Fault, guarantee: int) -> None:
    assert verdict(fault, guarantee) == ""


HARMLESS = [f for f in FAULTS if f.reason is None]


@pytest.mark.parametrize("fault", HARMLESS, ids=[f.name.replace(" ", "_") for f in HARMLESS])
def test_harmless_fault_does_not_stop(fault: Fault) -> None:
    rides_through(run(fault))


def test_every_fault_is_shown_live_and_every_live_one_is_in_the_table() -> None:
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    pytest.importorskip("torch", reason="the policy's live tests need torch")
    from fault_table import LIVE, NODE_FAULTS

    assert {f.name for f in FAULTS} | {name for name, *_ in NODE_FAULTS} == LIVE


def test_committed_table_is_what_the_checks_give() -> None:
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    pytest.importorskip("torch", reason="the policy's live tests need torch")
    from fault_table import table

    committed = Path(__file__).parents[1] / "docs" / "faults.md"
    assert committed.read_text() == table(), "make it again: python test/fault_table.py > docs/faults.md"

"""docs/compatibility.md names tests; they exist."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "compatibility.md"


def test_every_test_that_the_document_names_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", DOCUMENT.read_text())
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (HERE / file).read_text()]
    assert len(named) > 40
    assert missing == []


def test_every_row_of_a_table_names_what_tests_it() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("|") and "---" not in line]
    assert [row for row in rows if "tested by" not in row and "::test_" not in row] == []

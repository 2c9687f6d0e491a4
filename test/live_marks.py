"""Which faults a test over real DDS shows: the tests say so themselves, and docs/faults.md takes its marks here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., None])

# Names of faults, as in faults.py and fault_table.py.
LIVE: set[str] = set()
# As in franka_faults.py.
LIVE_FRANKA: set[str] = set()


def shows(*faults: str, of: set[str] = LIVE) -> Callable[[Test], Test]:
    """Marks a test with the faults that it shows."""
    of.update(faults)
    return lambda test: test


def cases(names: Iterable[str], of: set[str] = LIVE) -> list[str]:
    """The names of a parametrization, each a fault and, in parentheses, which kind of it."""
    listed = list(names)
    of.update(name.split(" (")[0] for name in listed)
    return listed

"""Every fault of an arm commanded by velocities against every guarantee; docs/faults.md says no more than this."""

from __future__ import annotations

import pytest

pytest.importorskip("geometry_msgs", reason="no ROS 2 here")

from franka_faults import CHECKS, FAULTS, FrankaFault, Rig, verdict

from lightvla_core.errors import LightVLAError

CELLS = [(fault, guarantee) for fault in FAULTS for guarantee in CHECKS]


@pytest.mark.parametrize(
    ("fault", "guarantee"), CELLS, ids=[f"{f.name.replace(' ', '_')}-{f.way}-{CHECKS[g].__name__}" for f, g in CELLS]
)
def test_guarantee_holds_for_velocities(fault: FrankaFault, guarantee: int) -> None:
    assert verdict(fault, guarantee) == ""


UNREADABLE = [f for f in FAULTS if f.name.startswith(("pose ", "joint states with", "joint states that"))]


@pytest.mark.parametrize("fault", UNREADABLE, ids=lambda f: f.name)
def test_arming_is_refused_while_the_state_cannot_be_read(fault: FrankaFault) -> None:
    rig = Rig(fault.way)
    fault.inject(rig)
    rig.run(1)
    with pytest.raises(LightVLAError, match=r"finite|lacks|length"):
        rig.execution.arm(rig.now)
    assert rig.run(3).sent == [None] * 4

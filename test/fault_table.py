"""`python test/fault_table.py > docs/faults.md`: every fault x guarantee, from the checks themselves."""

from __future__ import annotations

import franka_faults

# Imported for the marks that their tests leave.
import test_executor_node  # noqa: F401
import test_faults_franka_live  # noqa: F401
import test_faults_live  # noqa: F401
import test_policy_node  # noqa: F401
from fault_checks import applies, verdict
from faults import FAULTS, Fault
from live_marks import LIVE, LIVE_FRANKA

GUARANTEES = {
    1: "no command unless armed",
    2: "configure refuses a mismatch",
    3: "no inference on stale, skewed or missing input",
    4: "nothing that is not finite is published",
    5: "position, step, velocity and tracking limits",
    6: "every step at its planned time, none replayed, time never backward",
    7: "one stop, latched, in time, ended only by arming",
    8: "stop order: inference, commands, node",
    9: "no arming beside another publisher",
    10: "documentation says that this is no safety function",
}
# What a test over DDS sees of a fault besides the stop.
_SEEN_LIVE = (4, 5, 7)
# Faults that only a node can have: the guarantees that they touch, and how they are detected.
NODE_FAULTS = (
    ("chunk bytes that are no message", (4, 5, 7), "as with chunks dropped"),
    ("joint state bytes that are no message", (4, 5, 7), "as with joint states dropped"),
    ("joint states with names but no positions", (4, 5, 7), "as with joint states dropped"),
    ("camera frames of an unknown encoding", (3, 4, 5, 7), "as with camera frames dropped"),
    ("camera frame bytes that are no message", (3, 4, 5, 7), "as with camera frames dropped"),
    ("camera pictures frozen under fresh stamps", (4, 5), "never: no picture is judged"),
    ("policy whose chunks are not finite", (4,), "at once, not published"),
    ("speed of 0 or NaN from another executor", (6,), "at once, ignored"),
    ("policy process killed by the system", (4, 5, 7), "as with chunks dropped"),
    ("executor process stopped for 0.15 s and continued", (4, 5, 6), "goes on, or stale input"),
    ("another contract arrives while armed", (2, 4, 5, 6), "taken by the next configure only"),
    ("emergency stop from a publisher of any QoS", (7,), "at once"),
    ("contract of another robot", (2,), "in configure"),
    ("no contract", (2,), "in configure"),
    ("another publisher on a command topic", (9,), "when armed"),
    ("signal while armed, or a closed terminal", (7, 8), "0.05 s"),
    ("sending fails in the stop", (7, 8), "at once, and the process ends in order"),
    ("node deactivated while armed", (1, 7, 8), "at once"),
    ("parameter that contradicts another", (2,), "at once, refused"),
)
# The same of a Franka.
FRANKA_NODE_FAULTS = (
    ("poses in another frame", (4, 5, 7), "as with poses dropped"),
    ("transforms dropped, where the pose is from tf", (4, 5, 7), "as with poses dropped"),
    ("gripper's action server gone", (4, 5), "never, and no goal is answered; arming is refused"),
)
_HEAD = """# Faults and guarantees

Made by `python test/fault_table.py > docs/faults.md`; a test compares. The guarantees are numbered as in this list:

{guarantees}

- **sim**: held under the simulated clock, over the pure executor and the pure policy side (`test/test_faults.py`).
- **live**: held in a test over real DDS with real nodes, too, which names the fault (`test_faults_live.py`,
  `test_executor_node.py`, `test_policy_node.py`).
- **-**: the fault does not touch what the guarantee is about. The tenth is about pages, which `test_security.py` reads.

*Detection* is the longest time from the fault's onset to the stop; the stop follows at the latest two control periods
later. From then on nothing but the latched target is sent, until somebody arms again. Joint states and poses are looked
at once a period: where a driver's stamps run ahead (by future_tolerance at most), its silence is noticed later by as
much, and by one period at most.

## Joint positions, ALOHA

"""
_FRANKA_HEAD = """
## End-effector velocities, Franka

The policy's side and the plan of steps (guarantees 2, 3, 6, 8 and 9) are the same code as above and not repeated. Here
the stop's target is standstill, and the limits are of speed and acceleration. **sim** is held under the simulated clock
(`test/test_faults_franka.py`), **live** over DDS in the drivers' own message types (`test/test_faults_franka_live.py`),
both by twists, or where another way is named by that one.

"""


def table() -> str:
    """The whole page, Markdown."""
    listed = "\n".join(f"{number}. {text}" for number, text in GUARANTEES.items())
    lines = ["| fault | " + " | ".join(map(str, GUARANTEES)) + " | what follows | detection |"]
    lines.append("|---" * (len(GUARANTEES) + 3) + "|")
    for fault in FAULTS:
        cells = [_cell(fault, guarantee) for guarantee in GUARANTEES]
        follows = "stops" if fault.reason else "goes on"
        bound = f"{fault.bound_text} ({fault.bound:.2f} s here)" if fault.reason else fault.bound_text
        lines.append(f"| {fault.name} | {' | '.join(cells)} | {follows} | {bound} |")
    for name, guarantees, bound in NODE_FAULTS:
        shown = "live" if name in LIVE else "**NOT SHOWN**"
        cells = [shown if guarantee in guarantees else "-" for guarantee in GUARANTEES]
        follows = "stops" if 7 in guarantees else "goes on" if {5, 6} & set(guarantees) else "refused"
        lines.append(f"| {name} | {' | '.join(cells)} | {follows} | {bound} |")
    return _HEAD.format(guarantees=listed) + "\n".join(lines) + "\n" + _FRANKA_HEAD + _franka_table()


def _franka_table() -> str:
    lines = ["| fault | " + " | ".join(map(str, franka_faults.CHECKS)) + " | what follows | detection |"]
    lines.append("|---" * (len(franka_faults.CHECKS) + 3) + "|")
    for fault in franka_faults.FAULTS:
        way = "" if fault.way == "twist" else f" (`{fault.way}`)"
        bound = f"{fault.bound_text} ({fault.periods * franka_faults.PERIOD:.2f} s here)"
        follows = ("stops", bound) if fault.reason else ("goes on", fault.bound_text)
        cells = [_franka_cell(fault, guarantee) for guarantee in franka_faults.CHECKS]
        lines.append(f"| {fault.name}{way} | {' | '.join(cells)} | {' | '.join(follows)} |")
    for name, guarantees, bound in FRANKA_NODE_FAULTS:
        shown = "live" if name in LIVE_FRANKA else "**NOT SHOWN**"
        cells = [shown if guarantee in guarantees else "-" for guarantee in franka_faults.CHECKS]
        lines.append(f"| {name} | {' | '.join(cells)} | {'stops' if 7 in guarantees else 'goes on'} | {bound} |")
    return "\n".join(lines) + "\n"


def _franka_cell(fault: franka_faults.FrankaFault, guarantee: int) -> str:
    if broken := franka_faults.verdict(fault, guarantee):
        return f"**BROKEN: {broken}**"
    live = fault.way == "twist" and fault.name in LIVE_FRANKA and guarantee in _SEEN_LIVE
    return "sim, live" if live else "sim"


def _cell(fault: Fault, guarantee: int) -> str:
    if not applies(fault, guarantee):
        return "-"
    if broken := verdict(fault, guarantee):
        return f"**BROKEN: {broken}**"
    return "sim, live" if fault.name in LIVE and guarantee in _SEEN_LIVE else "sim"


if __name__ == "__main__":
    print(table(), end="")

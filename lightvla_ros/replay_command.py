"""`lightvla replay` and `lightvla sim record-bag`: they talk to the user and to files; what they do is elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lightvla_core.contract import FILE_NAME, PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.folders import require_folder
from lightvla_ros.bag import BagMessage, Storage, open_bag
from lightvla_ros.inference_timing import InferenceTiming, Mode
from lightvla_ros.replay import make_plan, replay
from lightvla_ros.replay_report import error_table, make_folder, require_free, write_report
from lightvla_ros.robots.description import check_contract
from lightvla_ros.robots.description_file import load_robot

if TYPE_CHECKING:
    from lightvla_core.policy import Policy


def run(
    bag_path: Path,
    checkpoint: Path,
    out: Path,
    robot_name: str,
    gripper: str,
    instruction: str,
    mode: Mode,
    replan_steps: int,
    device: str,
) -> None:
    """Replay a bag, write the report and print the table of errors. Raises LightVLAError, in one sentence."""
    console = Console(width=None if Console().is_terminal else 130)
    with open_bag(bag_path) as bag:
        # What can be refused at once is, before a policy loads for a minute.
        require_free(out)
        require_folder(checkpoint)
        contract = PolicyContract.from_file(checkpoint / FILE_NAME)
        robot = load_robot(robot_name or contract.robot, gripper)
        check_contract(contract, robot)
        timing = InferenceTiming(mode, contract.period, contract.chunk_length, replan_steps)
        plan = make_plan(contract, robot, bag, instruction.strip())
        policy = _load_policy(checkpoint, device)
        make_folder(out)
        with _progress("replay", bag.count(plan.topics)) as (bar, task):

            def told() -> Iterator[BagMessage]:
                for message in bag.messages(plan.topics):
                    yield message
                    bar.advance(task)

            result = replay(policy, plan, told(), timing, instruction.strip())
    write_report(result, out)
    console.print(error_table(result))
    for reason, looks in result.faults.items():
        console.print(f"no observation at {looks} messages: {reason}")
    console.print(f"wrote {out}/chunks (a bag), {out}/actions.csv, {out}/plots", soft_wrap=True)


def record(path: Path, seconds: float, seed: int, storage: Storage, transport: Literal["raw", "compressed"]) -> None:
    """Record the simulated ALOHA into a new bag and say what is in it."""
    from lightvla_ros.sim.recording import record_bag

    with _progress("recording", seconds) as (bar, task):
        written = record_bag(
            path, seconds, seed, storage, transport, advance=lambda time: bar.update(task, completed=time)
        )
    print(f"wrote {path}: {written} messages, {seconds:g} s of simulated time")


def _load_policy(checkpoint: Path, device: str) -> Policy:
    try:
        from lightvla_core.policy import Policy
    except ImportError as error:
        raise LightVLAError(f"the policy needs torch and timm on this machine ({error})") from None
    return Policy.from_checkpoint(checkpoint, device=device)


@contextmanager
def _progress(what: str, total: float) -> Iterator[tuple[Progress, TaskID]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        yield bar, bar.add_task(what, total=total)

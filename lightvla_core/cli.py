"""The `lightvla` command. It talks to the user; what it does lives in the modules it calls.

Heavy imports happen inside the sub-commands, so that --help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from lightvla_core.errors import LightVLAError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    help="Token-pruned vision-language-action policies: from a checkpoint to a moving arm.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

sim_app = typer.Typer(help="The simulated ALOHA.", no_args_is_help=True)
app.add_typer(sim_app, name="sim")


def main() -> None:
    """Run the command line. Bad input ends in one sentence on stderr and exit status 2, without a traceback."""
    try:
        app()
    except LightVLAError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The checkpoint folder to write; must not exist yet.")],
    seed: Annotated[int, typer.Option(help="Of the random weights; the same seed gives the same weights.")] = 0,
) -> None:
    """Write a [bold]tiny[/bold] ALOHA checkpoint with random weights.

    It has every part of a real checkpoint (weights, contract, statistics, tokenizer) at about 10 M parameters, and
    has learnt nothing: use it to try a set-up, or as an example of the files that a checkpoint holds.

    Example:  lightvla init checkpoints/tiny --seed 3
    """
    from lightvla_core.presets import write_tiny

    write_tiny(folder, seed)
    print(f"wrote {folder}: random weights, contract, statistics and tokenizer")


@app.command()
def parity(
    folder: Annotated[Path, typer.Argument(help="A parity folder: cases/, checkpoints/.")],
    strict: Annotated[bool, typer.Option("--strict", help="Quantities that are not supported fail too.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="A row for every quantity, not the worst one.")
    ] = False,
) -> None:
    """Compare this implementation with recorded numbers of the published one.

    Float quantities pass when their largest error, relative to the largest recorded value, is at most 1e-4 (2e-4
    for chains of denoising steps); masks, indices and token ids must be identical. Exits with status 1 if any fails.

    Example:  lightvla parity test/data/parity
    """
    from rich.console import Console
    from rich.progress import track

    from lightvla_core import parity as cases

    console = Console(width=None if sys.stdout.isatty() else 130)
    paths = cases.find_cases(folder)
    results = []
    for path in track(paths, description="parity", console=Console(stderr=True), transient=True):
        results.append(list(cases.run_case(cases.read_case(path))))
    console.print(cases.report(results, every_quantity=verbose))
    passed, failed, unsupported = cases.tally(results)
    print(f"{passed} quantities pass, {failed} fail, {unsupported} are not supported, in {len(paths)} cases")
    if failed or (strict and unsupported):
        raise typer.Exit(1)


@app.command()
def demo(
    checkpoint: Annotated[
        Path | None, typer.Option(help="A checkpoint for the simulated ALOHA; by default a tiny one, random weights.")
    ] = None,
    instruction: Annotated[str, typer.Option(help="What the robot should do.")] = "pick up the red cube",
    seconds: Annotated[float, typer.Option(min=1.0, help="Length of the episode, s.")] = 20.0,
    video: Annotated[Path, typer.Option(help="Where the video goes.")] = Path("demo.mp4"),
    seed: Annotated[int, typer.Option(min=0, help="Of the cubes on the table and of the random weights.")] = 0,
    pace: Annotated[str, typer.Option(help="real_time, or clock: simulated time, for machines too slow for it.")] = (
        "real_time"
    ),
) -> None:
    """Run a policy on the simulated ALOHA, over real ROS 2 topics, and make a video of it.

    Starts the simulated robot, the policy node and the executor as processes of their own, arms the executor, runs
    one episode, and prints what was measured. Ctrl-C ends everything.
    """
    from importlib import import_module

    # The core knows nothing of ROS; this one sub-command only hands over.
    import_module("lightvla_ros.demo").run(checkpoint, instruction, seconds, video, seed, pace)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="The published checkpoint folder.")],
    destination: Annotated[Path, typer.Argument(help="The folder to write; must not exist yet.")],
    variant: Annotated[str, typer.Option(help="What trained it: openvla, oft or lightvla. The weights cannot tell.")],
    robot: Annotated[
        str, typer.Option(help="libero, aloha, franka, bridge, or a YAML file or contract.json of your own.")
    ],
    unnorm_key: Annotated[str | None, typer.Option(help="Entry of the statistics, where there are several.")] = None,
    cameras: Annotated[str | None, typer.Option(help="Camera names in training order, as a,b,c.")] = None,
    proprio: Annotated[bool | None, typer.Option("--proprio/--no-proprio", help="Default: if its file is there.")] = (
        None
    ),
    head: Annotated[str, typer.Option(help="auto (by the files found), l1, diffusion or discrete.")] = "auto",
    film: Annotated[bool | None, typer.Option("--film/--no-film", help="Default: if its file is there.")] = None,
    readout: Annotated[str | None, typer.Option(help="preceding (as trained) or published_lightvla.")] = None,
    multiplicity: Annotated[str | None, typer.Option(help="ignore (as published) or weighted (as trained).")] = None,
    center_crop: Annotated[
        bool | None, typer.Option("--center-crop/--no-center-crop", help="Crop images to 90 %. Default: the robot's.")
    ] = None,
    control_rate: Annotated[float | None, typer.Option(help="Of the recordings, Hz. Default: the robot's.")] = None,
    dtype: Annotated[str, typer.Option(help="Store as source (unchanged), float32, bfloat16 or float16.")] = "source",
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json or tokenizer.model from elsewhere.")] = None,
    adapter: Annotated[
        str, typer.Option(help="lora_adapter/: merge, merged (is in the weights), or auto (find out).")
    ] = "auto",
) -> None:
    """Turn a [bold]published[/bold] checkpoint into a folder that this package runs.

    Prints what it sets and why. Bad input ends in one sentence, and nothing is written.

    Example:  lightvla import openvla-7b-oft-libero checkpoints/libero --variant oft --robot libero
    """
    from lightvla_core import contract, importing, published

    options = importing.ImportOptions(
        variant=_one_of("--variant", variant, importing.Variant),
        robot=robot,
        unnorm_key=unnorm_key,
        cameras=tuple(name.strip() for name in cameras.split(",")) if cameras else (),
        proprio=proprio,
        head=_one_of("--head", head, importing.HeadChoice),
        film=film,
        readout=_one_of("--readout", readout, contract.Readout),
        multiplicity=_one_of("--multiplicity", multiplicity, contract.Multiplicity),
        center_crop=center_crop,
        control_rate=control_rate,
        dtype=_one_of("--dtype", dtype, importing.DtypeChoice),
        tokenizer=tokenizer,
        adapter=_one_of("--adapter", adapter, published.MergeAdapter),
    )
    plan = importing.plan_import(source, options)
    _console().print(importing.render(plan.decisions))
    with _progress_bar("import") as progress:
        importing.write_import(plan, destination, progress=progress)
    print(f"wrote {destination}: contract {plan.contract.hash}, {len(plan.tensors)} tensors")


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder, of this package or published.")],
) -> None:
    """Show what a checkpoint holds: contract, parameters by part, memory needed, and what is missing.

    Reads headers only. Exits with status 1 if something is missing or damaged.

    Example:  lightvla inspect checkpoints/tiny
    """
    from lightvla_core import inspection

    found = inspection.inspect_folder(folder)
    _console().print(inspection.render(found))
    if found.problems:
        raise typer.Exit(1)


@app.command("merge-lora")
def merge_lora(
    base: Annotated[Path, typer.Argument(help="The checkpoint folder that was fine-tuned.")],
    adapter: Annotated[Path, typer.Argument(help="lora_adapter/, or the training run's folder that holds it.")],
    destination: Annotated[Path, typer.Argument(help="The folder to write; must not exist yet.")],
) -> None:
    """Merge a LoRA adapter into the weights it was trained on.

    Action head, statistics and tokenizer of the training run come along. The new folder has the form of the base.

    Example:  lightvla merge-lora openvla-7b runs/fold_shirt merged
    """
    from lightvla_core import merging

    with _progress_bar("merge") as progress:
        count = merging.merge_folder(base, adapter, destination, progress=progress)
    print(f"wrote {destination}: {count} matrices merged")


bench = typer.Typer(help="Measure on this machine; each prints a table.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("policy")
def bench_policy(
    name: Annotated[str, typer.Option("--preset", help="openvla-7b or tiny.")] = "tiny",
    device: Annotated[str, typer.Option(help="Where the policy runs: cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Time, memory and kept patches of a policy with random weights, at batch 1 and 8, from images to actions.

    Example:  lightvla bench policy --preset openvla-7b --device cuda
    """
    from rich.console import Console

    from lightvla_core.benchmark import bench_policy as measure

    Console().print(measure(name, device))


@bench.command("executor")
def bench_executor(
    rate: Annotated[float, typer.Option(min=1.0, max=1000.0, help="Control rate, Hz.")] = 50.0,
    seconds: Annotated[float, typer.Option(min=2.0, help="Length of the measurement, s.")] = 600.0,
    real_time: Annotated[
        bool, typer.Option("--real-time/--no-real-time", help="Ask for real-time scheduling (SCHED_FIFO).")
    ] = True,
) -> None:
    """Lateness of the executor's commands while the simulated robot moves and the policy infers.

    Lateness is counted from the ideal deadlines; memory growth from 5 s after arming.

    Example:  lightvla bench executor --rate 200 --seconds 60
    """
    from importlib import import_module

    import_module("lightvla_ros.benchmark").run_executor(rate, seconds, real_time)


@bench.command("cameras")
def bench_cameras(
    seconds: Annotated[float, typer.Option(min=5.0, help="Length of each of the two measurements, s.")] = 20.0,
) -> None:
    """Age of the newest frames, and the policy node's own overhead, with three 640x480 cameras at 30 Hz.

    Example:  lightvla bench cameras --seconds 30
    """
    from importlib import import_module

    import_module("lightvla_ros.benchmark_cameras").run_cameras(seconds)


@app.command()
def replay(
    bag: Annotated[Path, typer.Argument(help="A recorded bag: its folder, or one .mcap or .db3 file.")],
    checkpoint: Annotated[Path, typer.Option(help="The checkpoint folder.")],
    out: Annotated[Path, typer.Option(help="Where the report goes: chunks/ (a bag), actions.csv, plots/.")],
    robot: Annotated[
        str, typer.Option(help="A file of config/robots without its ending, or a .yaml file. Default: the policy's.")
    ] = "",
    gripper: Annotated[str, typer.Option(help="Gripper variant in the robot's file; by default its first.")] = "",
    instruction: Annotated[str, typer.Option(help="What the robot was doing; by default the bag's /instruction.")] = "",
    mode: Annotated[str, typer.Option(help="When to infer: open_loop, receding_horizon or prefetch.")] = "open_loop",
    replan_steps: Annotated[int, typer.Option(min=0, help="receding_horizon: steps between observations.")] = 0,
    device: Annotated[str, typer.Option(help="Where the policy runs: cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Run a policy over a recorded bag and compare its actions with the recorded ones. Needs no ROS installation.

    Deterministic, and through the same code as the live node. The recorded actions are the commands in the bag, or
    the joint states if it holds no commands; for end-effector deltas, how the end effector moved. Prints the errors of
    each action.

    Example:  lightvla replay test/data/bags/aloha --checkpoint checkpoints/tiny --instruction "wave" --out report
    """
    from importlib import import_module

    command = import_module("lightvla_ros.replay_command")
    command.run(bag, checkpoint, out, robot, gripper, instruction, mode, replan_steps, device)


@sim_app.command("record-bag")
def sim_record_bag(
    out: Annotated[Path, typer.Argument(help="The bag's folder; must not exist yet.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="Length, simulated s.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the cubes and the motion; the same seed, the same bag.")] = 0,
    storage: Annotated[str, typer.Option("--format", help="mcap or sqlite3.")] = "mcap",
    transport: Annotated[str, typer.Option(help="Images: raw, or compressed (JPEG).")] = "raw",
) -> None:
    """Record the simulated ALOHA in a scripted motion: joint states, images, commands and /clock.

    Example:  lightvla sim record-bag bags/wave --seconds 5 --seed 3 --transport compressed
    """
    from importlib import import_module

    import_module("lightvla_ros.replay_command").record(out, seconds, seed, storage, transport)


def _one_of(option: str, value: str | None, literal: Any) -> Any:
    """The value, if it is one that the Literal type lists, or None."""
    known = get_args(literal)
    if value is not None and value not in known:
        raise LightVLAError(f"{option} is {value!r}; expected one of {', '.join(known)}")
    return value


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 130)


@contextmanager
def _progress_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; what it yields takes bytes done and bytes in all."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


if __name__ == "__main__":
    main()

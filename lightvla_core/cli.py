"""The `lightvla` command. It talks to the user; what it does lives in the modules it calls.

Heavy imports happen inside the sub-commands, so that --help answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lightvla_core.errors import LightVLAError

app = typer.Typer(
    help="Token-pruned vision-language-action policies: from a checkpoint to a moving arm.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


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


if __name__ == "__main__":
    main()

"""`lightvla bench executor`: the control loop's timing while the simulated robot moves and the policy infers.

A benchmark prints a table; nothing here passes or fails. The cameras' benchmark is in benchmark_cameras.py.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightvla_ros.control_loop import ControlLoop, LoopStatistics
from lightvla_ros.domain import reserve_domain
from lightvla_ros.process_group import (
    ProcessGroup,
    camera_settings,
    interrupt_on_sigterm,
    running,
    write_tiny_checkpoint,
)
from lightvla_ros.processes import Process, local_only_environment, simulation
from lightvla_ros.real_time import request_real_time

_INSTRUCTION = "pick up the red cube"
_PRIORITY = 50
# Start-up allocates and fills caches; what grows after this long is a leak, s.
_SETTLE = 5.0
_ROWS = (
    ("rate", "control rate (Hz)", "Hz"),
    ("lateness p50", "lateness p50 (ms)", "ms"),
    ("lateness p99", "lateness p99 (ms)", "ms"),
    ("lateness max", "lateness max (ms)", "ms"),
    ("missed periods", "periods missed", ""),
    ("commands sent", "commands sent", ""),
    ("state at the end", "state", ""),
    ("scheduling", "real-time", ""),
)


def hardware() -> str:
    """One line on what the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    return (
        f"{len(os.sched_getaffinity(0))} x {cpu}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, ROS 2 {os.environ.get('ROS_DISTRO', 'wheels')}, "
        f"load {os.getloadavg()[0]:.1f} before"
    )


def resident_memory(pid: int) -> float:
    """Of a process, MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def run_executor(rate: float, seconds: float, real_time: bool) -> None:
    """Simulated robot, policy and executor at this control rate (Hz) for this long (s), then the table."""
    interrupt_on_sigterm()
    console = Console()
    headline = hardware()
    with bench_folder() as folder:
        checkpoint = folder / "tiny"
        write_tiny_checkpoint(checkpoint)
        cameras, size = camera_settings(checkpoint)
        graph = [_tuned(p, rate, real_time) for p in simulation(checkpoint, _INSTRUCTION, 0, cameras, size)]
        with running(graph, folder) as group:
            values, growth, floor = _measure(group, seconds, rate, real_time)
    title = f"executor at {rate:g} Hz for {seconds:g} s, simulated robot and policy beside it"
    rows = [(label, values.get(key, "?"), unit) for label, key, unit in _ROWS]
    rows.insert(5, ("memory growth", f"{growth:.1f}", "MB"))
    rows.append(("an empty loop beside it: p99", f"{1e3 * floor.lateness_p99:.4g}", "ms"))
    rows.append(("an empty loop beside it: max", f"{1e3 * floor.lateness_max:.4g}", "ms"))
    rows.append(("an empty loop beside it: missed", str(floor.missed), ""))
    print_table(console, headline, title, rows)


def print_table(console: Console, headline: str, title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """The hardware in the first line, then a row a quantity: name, value, unit."""
    console.print(headline)
    table = Table(title=title, title_justify="left")
    for column in ("quantity", "value", "unit"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)


@contextmanager
def bench_folder() -> Iterator[Path]:
    """A scratch folder, and a ROS domain of this benchmark's own in the environment."""
    with tempfile.TemporaryDirectory(prefix="lightvla_bench_") as folder, reserve_domain() as domain:
        os.environ.update({"ROS_DOMAIN_ID": str(domain), **local_only_environment()})
        yield Path(folder)


def empty_loop(rate: float, seconds: float, real_time: bool) -> LoopStatistics:
    """The control loop with nothing to do, in this process: what the machine's kernel, or its host, adds on its own."""
    request_real_time(_PRIORITY if real_time else 0, lock_memory=False)
    loop = ControlLoop(1.0 / rate, lambda deadline: None, lambda error: None)
    loop.start()
    time.sleep(seconds)
    loop.stop()
    return loop.statistics()


def _tuned(process: Process, rate: float, real_time: bool) -> Process:
    if process.executable != "executor_node":
        return process
    extra = {"control_rate": rate, "real_time_priority": _PRIORITY if real_time else 0}
    return replace(process, parameters={**process.parameters, **extra})


def _measure(
    group: ProcessGroup, seconds: float, rate: float, real_time: bool
) -> tuple[Mapping[str, str], float, LoopStatistics]:
    """The executor's last diagnostics, how much its memory grew, MB, and an empty loop at the same time."""
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from lightvla_ros.graph_operator import GraphOperator

    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    # In a process of its own, which alone becomes a real-time one.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            operator = GraphOperator(alive=group)
            operator.bring_up()
            operator.arm()
            pid = group.pid("executor_node")
            floor = pool.apply_async(empty_loop, (rate, seconds, real_time))
            operator.watch(min(_SETTLE, seconds / 2))
            before = resident_memory(pid)
            operator.watch(seconds - min(_SETTLE, seconds / 2))
            return operator.values("executor"), resident_memory(pid) - before, floor.get(timeout=60.0)
        finally:
            rclpy.try_shutdown()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []

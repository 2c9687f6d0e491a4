"""Which process starts with which parameters: one pure function for each graph, for launch files and the demo alike.

Nothing is started here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lightvla_ros.resources import resource

Pace = Literal["real_time", "clock"]
Value = bool | int | float | str | list[str]


@dataclass(frozen=True)
class Process:
    """A ROS node in a process of its own.

    executable: console script of this package (`ros2 run lightvla_ros <executable>`); module: the same for python -m
    environment: variables to set on top of the starter's own
    """

    executable: str
    module: str
    parameters: Mapping[str, Value]
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        """The command line without a ROS installation's tools."""
        # JSON is YAML, which ROS reads here, and quotes whatever needs it.
        assignments = [f"{name}:={json.dumps(value)}" for name, value in self.parameters.items()]
        arguments = [part for assignment in assignments for part in ("-p", assignment)]
        return [sys.executable, "-m", self.module, "--ros-args", *arguments]


def simulation(
    checkpoint: Path | str,
    instruction: str,
    seed: int = 0,
    cameras: tuple[str, ...] = ("cam_high", "cam_left_wrist"),
    image_size: int = 112,
    pace: Pace = "real_time",
    device: str = "cpu",
) -> tuple[Process, ...]:
    """The simulated ALOHA, the policy and the executor, on one machine."""
    transport = transport_environment()
    sim_time: dict[str, Value] = {"use_sim_time": pace == "clock"}
    return (
        Process(
            "sim_node",
            "lightvla_ros.sim.sim_node",
            {
                "cameras": list(cameras),
                "image_height": image_size,
                "image_width": image_size,
                "seed": seed,
                "pace": pace,
            },
            transport,
        ),
        Process(
            "policy_node",
            "lightvla_ros.policy_node",
            {
                "checkpoint": str(checkpoint),
                "instruction": instruction,
                "device": device,
                "torch_threads": _policy_threads(),
                "debug_image_rate": 10.0,
                **sim_time,
            },
            # Idle OpenMP threads would spin beside the control loop.
            {**transport, "OMP_WAIT_POLICY": "passive"},
        ),
        Process("executor_node", "lightvla_ros.executor_node", sim_time, transport),
    )


def _policy_threads() -> int:
    """All cores but one: the executor's control loop, the simulated robot and the middleware need that one."""
    return max(1, (os.cpu_count() or 2) - 1)


def transport_environment() -> dict[str, str]:
    """Fast DDS with a shared-memory segment that holds camera images; the variable's name changed with Kilted."""
    profile = str(resource("config/fastdds.xml"))
    return {"FASTDDS_DEFAULT_PROFILES_FILE": profile, "FASTRTPS_DEFAULT_PROFILES_FILE": profile}


def local_only_environment() -> dict[str, str]:
    """Discovery that stays on this machine, so that a simulation never commands an arm on the network."""
    # Humble knows only the older variable; newer distributions warn about it.
    if os.environ.get("ROS_DISTRO") == "humble":
        return {"ROS_LOCALHOST_ONLY": "1"}
    return {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}


def operator(seconds: float, video: Path | str, note: str = "") -> Process:
    """Brings the simulation's graph up, runs one episode of this length (s), and prints what was measured."""
    parameters: dict[str, Value] = {"seconds": seconds, "video": str(video), "note": note}
    return Process("demo_operator", "lightvla_ros.demo_operator", parameters)

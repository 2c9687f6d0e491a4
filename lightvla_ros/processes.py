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

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_core.resources import resource
from lightvla_ros.robots.adapter import proprioception_sources
from lightvla_ros.robots.description import RobotDescription

Pace = Literal["real_time", "clock"]
Transport = Literal["raw", "compressed"]
# On one machine both; on two, the policy where the GPU is and the executor where the arm is.
Part = Literal["both", "policy", "executor"]
Value = bool | int | float | str | list[str]


@dataclass(frozen=True)
class Process:
    """A ROS node in a process of its own.

    executable: console script of this package (`ros2 run lightvla_ros <executable>`); module: the same for python -m
    environment: variables to set on top of the starter's own
    parameter_files: ROS parameter YAML, whose values go before those above
    """

    executable: str
    module: str
    parameters: Mapping[str, Value]
    environment: Mapping[str, str] = field(default_factory=dict)
    parameter_files: tuple[str, ...] = ()

    @property
    def node(self) -> str:
        """The node's name."""
        return self.executable.removesuffix("_node")

    def command(self) -> list[str]:
        """The command line without a ROS installation's tools."""
        # JSON is YAML, which ROS reads here, and quotes whatever needs it.
        assignments = [f"{name}:={json.dumps(value)}" for name, value in self.parameters.items()]
        arguments = [part for assignment in assignments for part in ("-p", assignment)]
        files = [part for path in self.parameter_files for part in ("--params-file", path)]
        return [sys.executable, "-m", self.module, "--ros-args", *arguments, *files]


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


def aloha(
    checkpoint: Path | str,
    instruction: str,
    gripper: str = "aloha1",
    command_type: str = "interbotix",
    device: str = "cuda",
    transport: Transport = "raw",
    parts: Part = "both",
    params_file: str = "",
    speed: float = 1.0,
    require_heartbeat: bool = False,
) -> tuple[Process, ...]:
    """Policy and executor for two ALOHA arms, whose drivers and cameras run already.

    gripper: aloha1 or trossen; transport: raw on one machine, compressed where the cameras are on another
    params_file: ROS parameter YAML for both nodes, empty for none
    speed, require_heartbeat: of the executor, see executor_parameters.py
    Raises LightVLAError for a policy without a checkpoint.
    """
    robot: dict[str, Value] = {"robot": "aloha", "gripper": gripper}
    executor: dict[str, Value] = {"command_type": command_type, "speed": speed, "require_heartbeat": require_heartbeat}
    return _arms(checkpoint, instruction, robot, executor, device, transport, parts, params_file)


def franka(
    checkpoint: Path | str,
    instruction: str,
    command_type: str = "auto",
    pose_source: str = "broadcaster",
    device: str = "cuda",
    transport: Transport = "raw",
    parts: Part = "both",
    gripper: str = "",
    params_file: str = "",
    speed: float = 1.0,
    require_heartbeat: bool = False,
) -> tuple[Process, ...]:
    """Policy and executor for one FR3 on franka_ros2, with MoveIt Servo where the policy gives end-effector deltas.

    gripper: variant, as named in config/robots/franka.yaml, empty for the first there; params_file, speed,
        require_heartbeat: as for `aloha`
    Raises LightVLAError for a policy without a checkpoint.
    """
    robot: dict[str, Value] = {"robot": "franka", "gripper": gripper, "pose_source": pose_source}
    executor: dict[str, Value] = {"command_type": command_type, "speed": speed, "require_heartbeat": require_heartbeat}
    return _arms(checkpoint, instruction, robot, executor, device, transport, parts, params_file)


@dataclass(frozen=True)
class Replaying:
    """A policy over live topics from a bag. player: the command that plays it, for when the policy is active."""

    policy: Process
    player: tuple[str, ...]


def replay(
    bag: Path | str,
    checkpoint: Path | str,
    instruction: str,
    contract: PolicyContract,
    robot: RobotDescription,
    robot_parameters: Mapping[str, Value],
    device: str = "cpu",
    transport: Transport = "raw",
    rate: float = 1.0,
    loop: bool = False,
    mode: str = "open_loop",
    replan_steps: int = 0,
) -> Replaying:
    """A policy in simulated time, and `ros2 bag play` with that time on /clock; nothing that commands a robot.

    contract, robot: of the checkpoint and of robot_parameters (robot, gripper); rate: bag seconds a second
    instruction: in place of the bag's own, empty for that; mode, replan_steps: when to infer, as in `lightvla replay`
    Only what the policy listens to is played: recorded commands on the drivers' topics would move a robot that hears.
    """
    suffix = "/compressed" if transport == "compressed" else ""
    cameras = [f"/{robot.camera_topic(camera)}{suffix}" for camera in contract.camera_names]
    states = [f"/{source.topic}" for source in proprioception_sources(contract, robot)]
    parameters = {**robot_parameters, "use_sim_time": True, "mode": mode, "replan_steps": replan_steps}
    processes = _arms(checkpoint, instruction, parameters, {}, device, transport, "policy")
    # /clock in steps of 10 ms: an order less than what the node tolerates of a stamp in the future.
    player = ["ros2", "bag", "play", str(bag), "--clock", "100", "--rate", f"{rate:g}", *(["--loop"] if loop else [])]
    told = [] if instruction else ["/instruction"]
    return Replaying(processes[0], (*player, "--topics", *cameras, *states, *told))


def _arms(
    checkpoint: Path | str,
    instruction: str,
    robot: Mapping[str, Value],
    executor_parameters: Mapping[str, Value],
    device: str,
    transport: Transport,
    parts: Part,
    params_file: str = "",
) -> tuple[Process, ...]:
    if parts != "executor" and not str(checkpoint):
        raise LightVLAError(
            "no checkpoint is given; add checkpoint:=/path/to/its/folder (only parts:=executor has none)"
        )
    environment = transport_environment()
    files = (params_file,) if params_file else ()
    policy = Process(
        "policy_node",
        "lightvla_ros.policy_node",
        {
            "checkpoint": str(checkpoint),
            "instruction": instruction,
            "device": device,
            "transport": transport,
            **robot,
        },
        # Idle OpenMP threads would spin beside the control loop.
        {**environment, "OMP_WAIT_POLICY": "passive"},
        files,
    )
    executor = Process(
        "executor_node", "lightvla_ros.executor_node", {**executor_parameters, **robot}, environment, files
    )
    return {"both": (policy, executor), "policy": (policy,), "executor": (executor,)}[parts]


def _policy_threads() -> int:
    """All cores but one of those that this process may use, as taskset or a container leaves them.

    The executor's control loop, the simulated robot and the middleware need that one.
    """
    return max(1, len(os.sched_getaffinity(0)) - 1)


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

"""An ALOHA contract, settings and chunks for the executor's tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightvla_core.contract import Camera, Channel, EndEffector, Gripper, PolicyContract
from lightvla_ros.chunk_message import instruction_id
from lightvla_ros.chunk_schedule import ExecutionMode, TimedChunk
from lightvla_ros.execution import ExecutionSettings
from lightvla_ros.robots.description import RobotDescription
from lightvla_ros.robots.description_file import load_robot

START = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 1.0] * 2)
INSTRUCTION = instruction_id("pick up the cube")


def robot() -> RobotDescription:
    return load_robot("aloha", "aloha1")


def aloha_contract(chunk_length: int = 25, control_rate: float = 25.0, **changes: object) -> PolicyContract:
    channels = tuple(Channel(c.name, c.unit) for c in robot().channels)
    fields: dict[str, object] = {
        "robot": "aloha",
        "cameras": (Camera("cam_high"),),
        "proprioception": channels,
        "actions": channels,
        "action_space": "joint_position",
        "chunk_length": chunk_length,
        "control_rate": control_rate,
        "normalization": "bounds",
        "statistics_key": "test",
        "gripper": Gripper(("left_gripper", "right_gripper"), open=1.0, closed=0.0),
    }
    return PolicyContract(**(fields | changes))  # type: ignore[arg-type]


def delta_contract(binary: bool = True) -> PolicyContract:
    """Two end-effector numbers and a gripper, at 10 Hz."""
    return PolicyContract(
        robot="franka",
        cameras=(Camera("third_person"),),
        proprioception=(),
        actions=(Channel("eef_x", "m"), Channel("eef_roll", "rad"), Channel("eef_gripper", "normalized")),
        action_space="eef_delta",
        chunk_length=4,
        control_rate=10.0,
        normalization="bounds",
        statistics_key="test",
        end_effector=EndEffector(0.05, 0.5),
        gripper=Gripper(("eef_gripper",), open=1.0, closed=0.0, binary=binary),
    )


def chunk(
    contract: PolicyContract, actions: NDArray[np.float64], stamp: float = 100.0, sequence: int = 0, **changes: object
) -> TimedChunk:
    """A chunk of this contract; a vector is repeated for every step."""
    steps = np.broadcast_to(actions, (contract.chunk_length, len(contract.actions)))
    fields: dict[str, object] = {"contract_hash": contract.hash, "instruction_id": INSTRUCTION} | changes
    return TimedChunk(stamp, contract.period, contract.action_names, steps, sequence=sequence, **fields)  # type: ignore[arg-type]


def settings(period: float = 0.04, blend_time: float = 0.0, **changes: object) -> ExecutionSettings:
    """changes: of the execution mode (ensemble_decay, speed) and of the timeouts."""
    mode = {key: changes.pop(key) for key in ("ensemble_decay", "speed") if key in changes}
    fields: dict[str, object] = {
        "starvation_timeout": 0.5,
        "state_timeout": 0.2,
        "future_tolerance": 0.05,
        "max_clock_leap": 0.5,
    }
    return ExecutionSettings(ExecutionMode(period, blend_time, **mode), **(fields | changes))  # type: ignore[arg-type]


def joint_positions(opening: float = 1.0, offset: float = 0.0) -> dict[str, float]:
    """One arm at the start pose, as its driver reports it: all nine names, in an order of its own."""
    names = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
    finger = 0.01844 + opening * (0.0580 - 0.01844)
    positions = {"right_finger": -finger, "left_finger": finger, "gripper": 0.3}
    return positions | {n: float(v) + offset for n, v in zip(names, START[:6], strict=True)}

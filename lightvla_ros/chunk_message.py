"""trajectory_msgs/JointTrajectory <-> TimedChunk: how an action chunk travels from policy to executor.

What becomes of a chunk afterwards is in chunk_schedule.py.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightvla_core.contract import PolicyContract
from lightvla_core.interface import ActionChunk
from lightvla_ros.chunk_schedule import ChunkError, TimedChunk

# How far a planned time may be from its place, s; messages carry whole nanoseconds.
_TIME_TOLERANCE = 1e-6
_FRAME_ID = re.compile(r"(?P<hash>[0-9a-f]{12}):(?P<instruction>[0-9a-f]{12}):(?P<sequence>[0-9]{1,18})")
_NANOSECONDS = 1_000_000_000


def instruction_id(text: str) -> str:
    """12 hexadecimal digits that name an instruction; space around the text does not count."""
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]


def stamp_seconds(stamp: Any) -> float:
    """builtin_interfaces/Time or Duration -> s."""
    return float(stamp.sec) + float(stamp.nanosec) * 1e-9


def timed_chunk(chunk: ActionChunk, contract: PolicyContract, instruction: str, sequence: int) -> TimedChunk:
    """A prediction with its planned times; raises ChunkError for actions that are not finite."""
    return TimedChunk(
        stamp=chunk.stamp,
        dt=contract.period,
        names=contract.action_names,
        actions=chunk.actions,
        contract_hash=contract.hash,
        instruction_id=instruction_id(instruction),
        sequence=sequence,
    )


@dataclass(frozen=True)
class ChunkFields:
    """What stands in the message of a chunk, in no particular message class; times are (seconds, nanoseconds)."""

    stamp: tuple[int, int]
    frame_id: str
    joint_names: tuple[str, ...]
    positions: tuple[tuple[float, ...], ...]
    times_from_start: tuple[tuple[int, int], ...]


def chunk_fields(chunk: TimedChunk) -> ChunkFields:
    """Point i stands at time_from_start (i + 1) * dt."""
    return ChunkFields(
        stamp=_split(chunk.stamp),
        frame_id=f"{chunk.contract_hash}:{chunk.instruction_id}:{chunk.sequence}",
        joint_names=tuple(chunk.names),
        positions=tuple(tuple(action) for action in chunk.actions.tolist()),
        times_from_start=tuple(_split((i + 1) * chunk.dt) for i in range(len(chunk.actions))),
    )


def to_message(chunk: TimedChunk) -> Any:
    """The trajectory_msgs/JointTrajectory of a chunk."""
    from builtin_interfaces.msg import Duration, Time
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    fields = chunk_fields(chunk)
    message = JointTrajectory(joint_names=list(fields.joint_names))
    message.header.stamp = Time(sec=fields.stamp[0], nanosec=fields.stamp[1])
    message.header.frame_id = fields.frame_id
    for positions, (seconds, nanoseconds) in zip(fields.positions, fields.times_from_start, strict=True):
        time_from_start = Duration(sec=seconds, nanosec=nanoseconds)
        message.points.append(JointTrajectoryPoint(positions=list(positions), time_from_start=time_from_start))
    return message


def from_message(message: Any, contract: PolicyContract) -> TimedChunk:
    """Read a trajectory_msgs/JointTrajectory; raises ChunkError (a LightVLAError) on anything the contract forbids."""
    frame_id = _FRAME_ID.fullmatch(message.header.frame_id)
    if frame_id is None:
        raise ChunkError(
            "malformed",
            f"a chunk has frame_id {message.header.frame_id[:80]!r}, expected `contract hash:instruction id:sequence`",
        )
    if frame_id["hash"] != contract.hash:
        raise ChunkError(
            "other_contract", f"a chunk is of contract {frame_id['hash']}, but {contract.hash} is in force"
        )
    names = tuple(message.joint_names)
    if names != contract.action_names:
        raise ChunkError("malformed", _names_sentence(names, contract.action_names))
    _check_times(message.points, contract)
    return TimedChunk(
        stamp=stamp_seconds(message.header.stamp),
        dt=contract.period,
        names=names,
        actions=_actions(message.points, contract),
        contract_hash=contract.hash,
        instruction_id=frame_id["instruction"],
        sequence=int(frame_id["sequence"]),
    )


def _split(time: float) -> tuple[int, int]:
    """s -> whole seconds and nanoseconds; the parts apart, since their sum in nanoseconds exceeds a float64."""
    seconds = math.floor(time)
    more, nanoseconds = divmod(round((time - seconds) * _NANOSECONDS), _NANOSECONDS)
    return seconds + more, nanoseconds


def _names_sentence(names: tuple[str, ...], expected: tuple[str, ...]) -> str:
    if sorted(names) == sorted(expected):
        return f"a chunk has its joints in the order {', '.join(names)}; the contract's is {', '.join(expected)}"
    return f"a chunk is for the joints {', '.join(names) or '(none)'}; the contract has {', '.join(expected)}"


def _check_times(points: Any, contract: PolicyContract) -> None:
    if len(points) != contract.chunk_length:
        raise ChunkError("malformed", f"a chunk has {len(points)} steps, the contract's have {contract.chunk_length}")
    times = [stamp_seconds(point.time_from_start) for point in points]
    for i, time in enumerate(times):
        if i > 0 and time <= times[i - 1]:
            raise ChunkError("malformed", f"step {i} of a chunk is at {time} s, not after step {i - 1}")
        planned = (i + 1) * contract.period
        if abs(time - planned) > _TIME_TOLERANCE:
            raise ChunkError(
                "malformed",
                f"step {i} of a chunk is at {time:.6f} s, expected {planned:.6f} s at the contract's "
                f"{contract.control_rate:g} Hz",
            )


def _actions(points: Any, contract: PolicyContract) -> NDArray[np.float64]:
    width = len(contract.actions)
    for i, point in enumerate(points):
        if len(point.positions) != width:
            raise ChunkError("malformed", f"step {i} of a chunk has {len(point.positions)} positions, expected {width}")
    return np.array([point.positions for point in points], dtype=np.float64)

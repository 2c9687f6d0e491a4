"""What a bag holds to compare a policy's actions with: commands, joint states, or how the end effector moved.

Pure: messages in, a series of each action channel out, in the contract's units; ROS is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightvla_core.contract import PolicyContract
from lightvla_core.errors import LightVLAError
from lightvla_ros.bag import Bag, BagMessage
from lightvla_ros.chunk_schedule import TimedChunk
from lightvla_ros.robots.adapter import state_values
from lightvla_ros.robots.description import RobotChannel, RobotDescription
from lightvla_ros.robots.franka import EEF, end_effector_scales
from lightvla_ros.robots.gripper import value_of_opening
from lightvla_ros.robots.pose_target import motion_between
from lightvla_ros.robots.rotations import Pose, between

JOINT_STATE, POSE = "sensor_msgs/msg/JointState", "geometry_msgs/msg/PoseStamped"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
JOINT_GROUP, JOINT_SINGLE = "interbotix_xs_msgs/msg/JointGroupCommand", "interbotix_xs_msgs/msg/JointSingleCommand"
# Trajectories of ours that are no commands.
_OWN_TRAJECTORIES = ("/action_chunk", "/preview")

Source = Literal["command", "joint state", "motion"]


@dataclass(frozen=True)
class Series:
    """What was recorded of one channel, in the contract's unit: times (n,) s, ascending, and values (n,).

    source: `command`; where the bag holds no command of this channel, `joint state`; for end-effector deltas `motion`,
        how far the end effector came in one control period from each time on
    """

    source: Source
    times: NDArray[np.float64]
    values: NDArray[np.float64]

    def at_steps(self, chunk: TimedChunk) -> NDArray[np.float64]:
        """What was recorded for each step of a chunk: (steps,), NaN where nothing was.

        A command is the one in force in the middle of the step, stamp + (i + 1/2)·dt, since recordings pair a state
        with the command that follows it; a joint state, linear between two messages, is the one at the step's end; a
        motion is that from the step's begin.
        """
        begin = np.array([chunk.stamp + i * chunk.dt for i in range(len(chunk.actions))], dtype=np.float64)
        if self.source != "command":
            moment = begin if self.source == "motion" else begin + chunk.dt
            return np.interp(moment, self.times, self.values, left=np.nan, right=np.nan)
        middle = begin + chunk.dt / 2
        index = np.searchsorted(self.times, middle, side="right") - 1
        # After the last command nothing is known, but for as long as a command usually stands.
        usual = float(np.median(np.diff(self.times))) if len(self.times) > 1 else 0.0
        known = (index >= 0) & (middle <= self.times[-1] + usual)
        return np.where(known, self.values[np.maximum(index, 0)], np.nan)


def command_topics(contract: PolicyContract, robot: RobotDescription, bag: Bag) -> dict[str, str]:
    """Topics of recorded joint commands -> arm, or '' for a topic of no one arm.

    Whatever the controllers are called: by message type, and in an arm's namespace unless the joints' names alone tell
    the arm.
    """
    channels = robot.select(contract.action_names)
    arms = {channel.arm for channel in channels}
    unique = len({channel.joint for channel in channels}) == len(channels)
    found = {}
    for topic, kind in bag.topics.items():
        if kind not in (TRAJECTORY, JOINT_GROUP, JOINT_SINGLE) or topic.endswith(_OWN_TRAJECTORIES):
            continue
        arm = next((arm for arm in arms if topic.startswith(f"/{arm}/")), "")
        if arm or (unique and kind == TRAJECTORY):
            found[topic] = arm
    return found


def state_topics(contract: PolicyContract, robot: RobotDescription, bag: Bag) -> dict[str, str]:
    """Topics of the states behind the actions -> source; for an end effector without a pose, the arm's joint states."""
    wanted = {channel.arm for channel in robot.select(contract.action_names)}
    kinds = {"joint_state": JOINT_STATE, "pose": POSE}
    held = {s.name: f"/{s.topic}" for s in robot.sources if bag.topics.get(f"/{s.topic}") == kinds[s.kind]}
    if "end_effector" in wanted - set(held):
        wanted.add("arm")
    return {topic: name for name, topic in held.items() if name in wanted}


def require_comparable(
    contract: PolicyContract, robot: RobotDescription, states: Mapping[str, str], commands: Mapping[str, str]
) -> None:
    """Raise LightVLAError for actions that none of these topics tells of; see state_topics and command_topics."""
    told = set(states.values()) | ({"end_effector"} if "arm" in states.values() else set())
    lacking = [c.name for c in robot.select(contract.action_names) if not commands and c.arm not in told]
    if lacking:
        raise _nothing_of(lacking)


class Recorder:
    """Collects, for every action channel, what was commanded and what was measured, in the contract's unit."""

    def __init__(self, contract: PolicyContract, robot: RobotDescription) -> None:
        self._contract, self._robot = contract, robot
        self._channels = robot.select(contract.action_names)
        self._commanded: dict[str, list[tuple[float, float]]] = {}
        self._measured: dict[str, list[tuple[float, float]]] = {}
        self._poses: list[tuple[float, Pose]] = []
        self._frame = ""

    def command(self, arm: str, message: BagMessage) -> None:
        """arm: of `command_topics`"""
        for channel, value in self._goals(arm, message):
            motor = channel.gripper
            if motor is not None:
                closed, opened = motor.motor(0.0), motor.motor(1.0)
                value = self._gripper_value((value - closed) / (opened - closed))
            # A command with stamp 0 starts when it comes, so its receipt is its time.
            self._commanded.setdefault(channel.name, []).append((message.time, value))

    def state(self, source: str, message: BagMessage, stamp: float) -> None:
        """source: of `state_topics`; stamp: the message's own, s"""
        # What no policy can use, such as a pose that was not set yet, is not compared with either.
        with suppress(LightVLAError):
            decoded = message.decode()
            values = state_values(decoded, source)
            if source != "end_effector":
                self._joints(source, values, stamp)
            if self._contract.end_effector is None or self._is_soon_after_the_last(stamp):
                return
            if (pose := self._pose(source, values)) is not None:
                self._poses.append((stamp, pose))
                self._frame = decoded.header.frame_id if source == "end_effector" else ""
        self._require_base_frame(message.topic)

    def series(self) -> dict[str, Series]:
        """For each channel its commands, or what was measured if the bag holds none."""
        found = {
            **{name: _series("joint state", samples) for name, samples in self._measured.items()},
            **{name: _series("command", samples) for name, samples in self._commanded.items()},
            **self._motions(),
        }
        lacking = [c.name for c in self._channels if c.name not in found]
        if lacking:
            raise _nothing_of(lacking)
        return {c.name: found[c.name] for c in self._channels}

    def _is_soon_after_the_last(self, stamp: float) -> bool:
        """Drivers report poses at up to 1 kHz; a tenth of a period is more than fine enough."""
        return bool(self._poses) and 0.0 <= stamp - self._poses[-1][0] < self._contract.period / 10

    def _require_base_frame(self, topic: str) -> None:
        source = next((s for s in self._robot.sources if s.name == "end_effector"), None)
        if source is not None and self._frame:
            source.require_base(self._frame, f"the pose of {topic} in the bag")

    def _joints(self, source: str, values: Mapping[str, float], stamp: float) -> None:
        for channel in self._channels:
            if channel.arm == source and channel.state_joint in values:
                value = values[channel.state_joint]
                if channel.gripper is not None:
                    value = self._gripper_value(channel.gripper.opening(value))
                self._measured.setdefault(channel.name, []).append((stamp, value))

    def _pose(self, source: str, values: Mapping[str, float]) -> Pose | None:
        if source == "end_effector":
            return Pose.from_values(values)
        facts = self._robot.end_effector
        if source != "arm" or facts is None:
            return None
        joints = self._robot.select(self._robot.spaces["joint_position"])
        names = [joint.state_joint for joint in joints if joint.arm == "arm"]
        joints_now = np.array([values.get(name, np.nan) for name in names])
        return facts.kinematics.forward(joints_now) if np.isfinite(joints_now).all() else None

    def _motions(self) -> dict[str, Series]:
        """How the end effector moved, channel by channel, as the actions that would have moved it so."""
        period, meaning = self._contract.period, self._contract.end_effector
        poses = dict(sorted(self._poses, key=lambda sample: sample[0]))
        times = np.array(list(poses), dtype=np.float64)
        starts = times[times + period <= times[-1]] if len(times) else times
        if meaning is None or not len(starts):
            return {}
        ends = _interpolated(times, list(poses.values()), starts + period)
        gap = max(3 * float(np.median(np.diff(times))), period)
        motions = np.stack([motion_between(poses[t], end, meaning) for t, end in zip(starts, ends, strict=True)])
        motions[_in_gap(times, starts + period, gap)] = np.nan
        scales = end_effector_scales(self._contract)
        return {name: Series("motion", starts, motions[:, i] / scales[i]) for i, name in enumerate(EEF)}

    def _gripper_value(self, opening: float) -> float:
        """0 closed .. 1 open -> the contract's convention."""
        gripper = self._contract.gripper
        return opening if gripper is None else value_of_opening(opening, gripper)

    def _goals(self, arm: str, message: BagMessage) -> list[tuple[RobotChannel, float]]:
        goal = message.decode()
        joints = [channel for channel in self._channels if arm in ("", channel.arm)]
        if message.type == JOINT_GROUP:
            # The driver takes the arm's joints as one group, in its own order; the robot's file keeps that order.
            group = [channel for channel in joints if channel.gripper is None]
            return list(zip(group, goal.cmd.tolist(), strict=False))
        if message.type == JOINT_SINGLE:
            return [(channel, float(goal.cmd)) for channel in joints if channel.joint == goal.name]
        if not goal.points:
            return []
        positions = dict(zip(goal.joint_names, goal.points[-1].positions.tolist(), strict=False))
        return [(channel, positions[channel.joint]) for channel in joints if channel.joint in positions]


def _nothing_of(names: Sequence[str]) -> LightVLAError:
    return LightVLAError(
        f"the bag holds neither usable commands nor usable states of {', '.join(names)}, "
        "so there is nothing to compare the policy's actions with"
    )


def _series(source: Source, samples: Sequence[tuple[float, float]]) -> Series:
    ordered = np.array(sorted(samples, key=lambda sample: sample[0]), dtype=np.float64)
    return Series(source, ordered[:, 0], ordered[:, 1])


def _in_gap(times: NDArray[np.float64], moments: NDArray[np.float64], gap: float) -> NDArray[np.bool_]:
    """Whether a moment lies between two samples that are further apart than `gap`, s."""
    after = np.searchsorted(times, moments)
    apart: NDArray[np.bool_] = times[after] - times[after - 1] > gap
    return apart


def _interpolated(times: NDArray[np.float64], poses: Sequence[Pose], moments: NDArray[np.float64]) -> list[Pose]:
    """The pose at each moment; all moments are after times[0] and not after times[-1]."""
    after = np.searchsorted(times, moments)
    shares = (moments - times[after - 1]) / (times[after] - times[after - 1])
    return [between(poses[i - 1], poses[i], share) for i, share in zip(after.tolist(), shares.tolist(), strict=True)]

"""`lightvla sim record-bag`: the simulated ALOHA moves and its driver's topics go into a bag. No ROS, no real time.

Messages are those of sim_node, and stamps are simulated time, so the same seed gives the same bag.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError
from lightvla_ros.bag import BagWriter, Storage, build, header, time_message
from lightvla_ros.recorded_actions import JOINT_STATE, TRAJECTORY
from lightvla_ros.replay import COMPRESSED, IMAGE
from lightvla_ros.sim.aloha import (
    ARM_JOINTS,
    ARMS,
    GRIPPER_MOTOR_CLOSED,
    GRIPPER_MOTOR_OPEN,
    JOINT_NAMES,
    START_POSE,
    SimulatedAloha,
)

Transport = Literal["raw", "compressed"]

STATE_RATE = 100  # Hz, the Interbotix driver's
COMMAND_RATE = 25  # Hz, ALOHA's control rate
CAMERA_RATE = 15  # Hz, sim_node's default
_CAMERAS = ("cam_high", "cam_left_wrist")
_JPEG_QUALITY = 90
# Simulated time begins at a moment like any other, ns: 0 means "now" in a command's stamp.
_START = 1_700_000_000 * 1_000_000_000
# Messages of one moment are received one after the other, ns, so that a bag keeps their order.
_APART = 1_000


@dataclass(frozen=True)
class Motion:
    """A smooth scripted motion about the start pose, the same for the same seed.

    amplitude: rad, a motor's for the gripper; frequency: Hz; phase: rad; each (arms, 7), the gripper last
    """

    amplitude: NDArray[np.float64]
    frequency: NDArray[np.float64]
    phase: NDArray[np.float64]

    @classmethod
    def drawn(cls, seed: int) -> Motion:
        draw = np.random.default_rng(seed)
        shape = (len(ARMS), len(ARM_JOINTS) + 1)
        amplitude = draw.uniform(0.05, 0.2, shape)
        amplitude[:, -1] = (GRIPPER_MOTOR_OPEN - GRIPPER_MOTOR_CLOSED) / 2
        return cls(amplitude, draw.uniform(0.1, 0.4, shape), draw.uniform(-math.pi, math.pi, shape))

    def at(self, time: float) -> NDArray[np.float64]:
        """Joint positions of the arms, rad, the grippers' as motor angles: (arms, 7). time: s since the start.

        It starts at the start pose with open grippers: the sine is what it is beyond its value at time 0.
        """
        swing = np.sin(2 * np.pi * self.frequency * time + self.phase) - np.sin(self.phase)
        swing[:, -1] = np.cos(2 * np.pi * self.frequency[:, -1] * time) - 1.0
        pose: NDArray[np.float64] = np.array([*START_POSE, GRIPPER_MOTOR_OPEN]) + self.amplitude * swing
        return pose


def record_bag(
    path: Path,
    seconds: float,
    seed: int = 0,
    storage: Storage = "mcap",
    transport: Transport = "raw",
    size: int = 112,
    advance: Callable[[float], object] = lambda time: None,
) -> int:
    """Record this much simulated time, s; returns how many messages were written.

    size: of the square images, px; advance: told the simulated time that is done, s
    Raises LightVLAError where the simulation cannot run or the bag exists already.
    """
    if transport not in ("raw", "compressed"):
        raise LightVLAError(f"the transport is '{transport}'; expected raw or compressed")
    recorder = _Recorder(seed, transport, size)
    try:
        with BagWriter(path, storage) as bag:
            for tick in range(1, round(seconds * STATE_RATE) + 1):
                for n, (topic, kind, message) in enumerate(recorder.tick(tick)):
                    bag.write(topic, kind, message, recorder.stamp + n * _APART)
                    recorder.written += 1
                advance(tick / STATE_RATE)
    finally:
        recorder.close()
    return recorder.written


class _Recorder:
    """One tick a joint state, as sim_node has it: command, physics, clock, joint states, and images when due."""

    def __init__(self, seed: int, transport: Transport, size: int) -> None:
        self._sim = SimulatedAloha(seed)
        self._motion = Motion.drawn(seed)
        self._steps = round(1.0 / STATE_RATE / self._sim.timestep)
        self._transport, self._size = transport, size
        self.stamp = _START
        self.written = 0

    def close(self) -> None:
        self._sim.close()

    def tick(self, tick: int) -> list[tuple[str, str, Any]]:
        """Topic, message type and message of everything that is published at this tick."""
        commands = self._command((tick - 1) / STATE_RATE) if (tick - 1) % (STATE_RATE // COMMAND_RATE) == 0 else []
        self._sim.step(self._steps)
        self.stamp = _START + tick * 1_000_000_000 // STATE_RATE
        clock = ("/clock", "rosgraph_msgs/msg/Clock", build("rosgraph_msgs/msg/Clock", clock=time_message(self.stamp)))
        states = [(f"/{arm}/joint_states", JOINT_STATE, self._state(arm)) for arm in ARMS]
        due = tick * CAMERA_RATE // STATE_RATE > (tick - 1) * CAMERA_RATE // STATE_RATE
        return [clock, *commands, *states, *(self._picture(camera) for camera in _CAMERAS if due)]

    def _command(self, time: float) -> list[tuple[str, str, Any]]:
        """Command the pose that is to be reached one command later; the driver's trajectory topics."""
        period = 1.0 / COMMAND_RATE
        messages = []
        for arm, pose in zip(ARMS, self._motion.at(time + period), strict=True):
            joints, gripper = pose[:-1].tolist(), float(pose[-1])
            self._sim.command_arm(arm, ARM_JOINTS, joints, period)
            self._sim.command_gripper(arm, gripper, period)
            messages += [
                (f"/{arm}/arm_controller/joint_trajectory", TRAJECTORY, _trajectory(ARM_JOINTS, joints, period)),
                (
                    f"/{arm}/gripper_controller/joint_trajectory",
                    TRAJECTORY,
                    _trajectory(["gripper"], [gripper], period),
                ),
            ]
        return messages

    def _state(self, arm: str) -> Any:
        reading = self._sim.joint_reading(arm)
        return build(
            JOINT_STATE,
            header=header(self.stamp),
            name=list(JOINT_NAMES),
            position=reading.position,
            velocity=reading.velocity,
            effort=reading.effort,
        )

    def _picture(self, camera: str) -> tuple[str, str, Any]:
        image, topic = self._sim.render(camera, self._size, self._size), f"/{camera}/camera/color/image_rect_raw"
        head = header(self.stamp, camera)
        if self._transport == "raw":
            height, width, channels = image.shape
            return topic, IMAGE, build(
                IMAGE, header=head, height=height, width=width, encoding="rgb8", is_bigendian=0,
                step=width * channels, data=image.reshape(-1),
            )  # fmt: skip
        quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].reshape(-1)
        jpeg = build(COMPRESSED, header=head, format="rgb8; jpeg compressed bgr8", data=data)
        return f"{topic}/compressed", COMPRESSED, jpeg


def _trajectory(names: Any, positions: list[float], duration: float) -> Any:
    """Stamp 0 starts now; one point, reached after duration, s."""
    none = np.empty(0)
    point = build(
        "trajectory_msgs/msg/JointTrajectoryPoint",
        positions=np.array(positions),
        velocities=none,
        accelerations=none,
        effort=none,
        time_from_start=build("builtin_interfaces/msg/Duration", sec=0, nanosec=round(duration * 1e9)),
    )
    return build(TRAJECTORY, header=header(0), joint_names=list(names), points=[point])

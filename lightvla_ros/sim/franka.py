"""A simulated FR3 with its hand in MuJoCo: joint goals, end-effector twists or poses in, joint readings out. No ROS.

Kinematics and joint limits are Franka's published ones. The shapes are plain capsules, and masses, gains and friction
are round numbers of ours: it shows that a graph runs, not how an FR3 moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import mujoco
import numpy as np
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError
from lightvla_ros.robots.rotations import Pose, matrix, turn

Array = NDArray[np.float64]

ARM_JOINTS = tuple(f"fr3_joint{i}" for i in range(1, 8))
FINGER_JOINTS = ("fr3_finger_joint1", "fr3_finger_joint2")
CAMERAS = ("third_person", "wrist")
START_POSE = (0.0, -0.785398, 0.0, -2.356194, 0.0, 1.570796, 0.785398)
MAX_WIDTH = 0.08

# Franka's documentation, "Limits for Franka Research 3", and its Denavit-Hartenberg parameters in Craig's convention.
_LIMITS = (
    (-2.7437, 2.7437), (-1.7837, 1.7837), (-2.9007, 2.9007), (-3.0421, -0.1518), (-2.8065, 2.8065), (0.5445, 4.5169),
    (-3.0159, 3.0159),
)  # fmt: skip
_MAX_VELOCITY = np.array([2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26])
_DH = (
    (0.0, 0.333, 0.0), (0.0, 0.0, -90.0), (0.0, 0.316, 90.0), (0.0825, 0.0, 90.0), (-0.0825, 0.384, -90.0),
    (0.0, 0.0, 90.0), (0.088, 0.0, 90.0),
)  # fmt: skip
# From the seventh link to the flange, and from there to the point between the fingertips, m; the hand's turn, degrees.
_FLANGE, _TOOL, _HAND_TURN = 0.107, 0.1034, -45.0

# MoveIt Servo's: a twist or pose older than this moves nothing, s. Damping of the inverse near singular poses, and how
# much of the way to a pose is gone in a second at the speed of its beginning, are ours.
_SERVO_TIMEOUT = 0.1
_DAMPING = 0.05
_POSE_GAIN = 10.0

_CUBE_EDGE = 0.04
_CUBE_AREA = ((0.5, 0.0), (0.1, 0.15))


@dataclass(frozen=True)
class FrankaReading:
    """position, velocity, effort: (9,) float64, seven joints (rad, rad/s, N m) and two fingers (m, m/s, N)"""

    position: Array
    velocity: Array
    effort: Array


class SimulatedFranka:
    """One arm that holds its last joint goal, or follows twists or poses while they come. Not thread-safe.

    seed: places the cube
    """

    def __init__(self, seed: int = 0) -> None:
        self.model = mujoco.MjModel.from_xml_string(_scene_xml())
        self._data = mujoco.MjData(self.model)
        self._tool = self.model.site("tool").id
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Ready pose, open hand, the cube at a seeded place; simulated time goes on."""
        time = self._data.time
        mujoco.mj_resetData(self.model, self._data)
        self._data.time = time
        self._start = self._end = np.array([*START_POSE, MAX_WIDTH / 2, MAX_WIDTH / 2])
        self._from, self._until = time, time
        self._servo_twist: Callable[[], Array] = partial(np.zeros, 6)
        self._servo_time = -math.inf
        self._data.qpos[:9] = self._data.ctrl[:] = self._end
        centre, half = (np.array(value) for value in _CUBE_AREA)
        place = np.random.default_rng(seed).uniform(centre - half, centre + half)
        self._data.joint("cube").qpos[:] = [*place, _CUBE_EDGE / 2, 1.0, 0.0, 0.0, 0.0]
        mujoco.mj_forward(self.model, self._data)

    @property
    def time(self) -> float:
        """Simulated time since construction, s."""
        return float(self._data.time)

    @property
    def timestep(self) -> float:
        """Duration of one physics step, s."""
        return float(self.model.opt.timestep)

    def step(self, steps: int = 1) -> None:
        """Advance the physics by this many time steps."""
        for _ in range(steps):
            if self.time - self._servo_time < _SERVO_TIMEOUT:
                self._follow_twist(self._servo_twist())
            self._data.ctrl[:] = self._goal()
            mujoco.mj_step(self.model, self._data)

    def command_joints(self, names: Sequence[str], positions: Sequence[float], duration: float = 0.0) -> None:
        """Move all seven joints to positions (rad) in a straight line over duration (s), as the trajectory controller.

        Raises LightVLAError for other names, a wrong length or a value that is not finite; then nothing is taken.
        """
        if sorted(names) != list(ARM_JOINTS) or len(positions) != len(names):
            raise LightVLAError(
                f"trajectory has {len(positions)} positions for {list(names)}, expected all seven joints"
            )
        _require_finite([*positions, duration])
        goal = self._goal()
        goal[:7] = [dict(zip(names, positions, strict=True))[name] for name in ARM_JOINTS]
        self._servo_time = -math.inf
        self._move(goal, duration)

    def command_twist(self, twist: Sequence[float]) -> None:
        """Move the tool by a twist (6,), m/s and rad/s, base frame, until the next or until it is too old."""
        _require_finite(twist)
        wanted = np.array(twist, dtype=np.float64)
        self._servo_twist, self._servo_time = lambda: wanted, self.time

    def command_pose(self, position: Sequence[float], orientation: Sequence[float]) -> None:
        """Move the tool towards a pose, base frame, until the next or until it is too old.

        position: (3,) m; orientation: (x, y, z, w)
        """
        _require_finite([*position, *orientation])
        target = Pose(np.array(position, dtype=np.float64), matrix(np.array(orientation, dtype=np.float64)))
        self._servo_twist, self._servo_time = partial(self._twist_towards, target), self.time

    def command_width(self, width: float) -> None:
        """Move both fingers to half of a width (m), as far as what is between them lets them."""
        _require_finite([width])
        goal = self._goal()
        goal[7:] = min(max(width, 0.0), MAX_WIDTH) / 2
        self._start[7:], self._end[7:] = goal[7:], goal[7:]

    @property
    def width(self) -> float:
        """Between the fingers, m."""
        return float(self._data.qpos[7:9].sum())

    def reading(self) -> FrankaReading:
        data = self._data
        return FrankaReading(data.qpos[:9].copy(), data.qvel[:9].copy(), data.actuator_force[:9].copy())

    def tool_pose(self) -> tuple[Array, Array]:
        """Of the point between the fingertips, base frame: position (3,) m and quaternion (x, y, z, w)."""
        wxyz = np.empty(4)
        mujoco.mju_mat2Quat(wxyz, self._data.site_xmat[self._tool])
        return self._data.site_xpos[self._tool].copy(), wxyz[[1, 2, 3, 0]]

    def tool_rotation(self) -> Array:
        """Of the tool in the base frame, (3, 3)."""
        return np.array(self._data.site_xmat[self._tool]).reshape(3, 3)

    def snapshot(self) -> Array:
        """Joint positions of everything that moves (nq,): all that a CameraRenderer on another thread needs."""
        return np.array(self._data.qpos)

    def _goal(self) -> Array:
        share = 1.0 if self.time >= self._until else (self.time - self._from) / (self._until - self._from)
        goal: Array = self._start + share * (self._end - self._start)
        return goal

    def _move(self, goal: Array, duration: float) -> None:
        low, high = self.model.actuator_ctrlrange.T
        self._start, self._end = self._goal(), np.clip(goal, low, high)
        self._from, self._until = self.time, self.time + max(duration, 0.0)

    def _twist_towards(self, target: Pose) -> Array:
        position, rotation = self._data.site_xpos[self._tool], self.tool_rotation()
        return _POSE_GAIN * np.concatenate((target.position - position, turn(rotation, target.rotation)))

    def _follow_twist(self, twist: Array) -> None:
        """Damped least squares on the Jacobian: the arm's goal moves by what the twist asks in one step."""
        linear, angular = np.zeros((3, self.model.nv)), np.zeros((3, self.model.nv))
        mujoco.mj_jacSite(self.model, self._data, linear, angular, self._tool)
        jacobian = np.vstack((linear, angular))[:, :7]
        inverse: Array = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + _DAMPING**2 * np.eye(6))
        velocity = np.clip(inverse @ twist, -_MAX_VELOCITY, _MAX_VELOCITY)
        goal = self._goal()
        goal[:7] += velocity * self.timestep
        self._move(goal, 0.0)


def _require_finite(values: Sequence[float]) -> None:
    if not all(math.isfinite(value) for value in values):
        raise LightVLAError(f"command holds a value that is not finite ({list(values)})")


def _quaternion(axis: str, degrees: float) -> str:
    half = math.radians(degrees) / 2
    x, z = (math.sin(half), 0.0) if axis == "x" else (0.0, math.sin(half))
    return f"{math.cos(half)} {x} 0 {z}"


def _link_xml(index: int) -> str:
    """This link and all beyond it. In Craig's convention a joint turns about its own z, after its fixed transform."""
    if index == len(_DH):
        return _hand_xml()
    a, d, alpha = _DH[index]
    # The fixed transform is a turn about x and then a shift along the turned z.
    shift_y, shift_z = -d * math.sin(math.radians(alpha)), d * math.cos(math.radians(alpha))
    low, high = _LIMITS[index]
    thick = 0.06 if index < 4 else 0.045
    return f"""
    <body name="fr3_link{index + 1}" pos="{a} {shift_y} {shift_z}" quat="{_quaternion("x", alpha)}" gravcomp="1">
      <joint name="{ARM_JOINTS[index]}" axis="0 0 1" range="{low} {high}" damping="10" armature="0.2"/>
      <geom type="capsule" fromto="0 0 -0.06 0 0 0.06" size="{thick}" mass="{2.5 if index < 4 else 1.5}"
            rgba="0.92 0.92 0.94 1" contype="0" conaffinity="0"/>{_link_xml(index + 1)}
    </body>"""


def _hand_xml() -> str:
    fingers = "".join(
        f"""
        <body name="finger{i + 1}" pos="0 0 0.0584" quat="{_quaternion("z", turn)}" gravcomp="1">
          <joint name="{FINGER_JOINTS[i]}" type="slide" axis="0 1 0" range="0 {MAX_WIDTH / 2}" damping="20"/>
          <geom type="box" pos="0 0.0075 0.0275" size="0.01 0.0075 0.0275" mass="0.05" friction="1.5 0.01 0.001"
                condim="4" rgba="0.2 0.2 0.22 1"/>
        </body>"""
        for i, turn in enumerate((0.0, 180.0))
    )
    return f"""
      <body name="hand" pos="0 0 {_FLANGE}" quat="{_quaternion("z", _HAND_TURN)}" gravcomp="1">
        <geom type="box" pos="0 0 0.03" size="0.03 0.1 0.03" mass="0.7" rgba="0.85 0.85 0.87 1" contype="0"
              conaffinity="0"/>
        <camera name="wrist" pos="0.06 0 0.02" xyaxes="0 -1 0 -1 0 0" fovy="70"/>
        <site name="tool" pos="0 0 {_TOOL}"/>{fingers}
      </body>"""


def _scene_xml() -> str:
    gains = (600, 600, 600, 600, 250, 150, 50)
    arm = "".join(
        f'<position joint="{joint}" kp="{4 * kp}" kv="{kp / 3}" inheritrange="1" forcerange="-{force} {force}"/>'
        for joint, kp, force in zip(ARM_JOINTS, gains, (87, 87, 87, 87, 12, 12, 12), strict=True)
    )
    hand = "".join(
        f'<position joint="{joint}" kp="800" inheritrange="1" forcerange="-20 20"/>' for joint in FINGER_JOINTS
    )
    half = _CUBE_EDGE / 2
    return f"""
<mujoco model="franka">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.002" integrator="implicitfast"/>
  <asset>
    <texture type="skybox" builtin="gradient" rgb1="0.75 0.8 0.86" rgb2="0.45 0.5 0.56" width="64" height="384"/>
  </asset>
  <worldbody>
    <light pos="0.5 0 2.5" dir="0 0 -1"/>
    <geom name="table" type="box" pos="0.4 0 -0.02" size="0.7 0.7 0.02" rgba="0.58 0.53 0.46 1"/>
    <camera name="third_person" pos="1.6 0 0.8" xyaxes="0 1 0 -0.5 0 0.87" fovy="45"/>
    <body name="fr3_link0">
      <geom type="cylinder" pos="0 0 0.1" size="0.08 0.1" rgba="0.92 0.92 0.94 1" contype="0" conaffinity="0"/>
      {_link_xml(0)}
    </body>
    <body name="cube" pos="0.5 0 {half}">
      <freejoint name="cube"/>
      <geom type="box" size="{half} {half} {half}" mass="0.05" condim="4" friction="1 0.005 0.0001"
            rgba="0.85 0.12 0.1 1"/>
    </body>
  </worldbody>
  <actuator>{arm}{hand}</actuator>
</mujoco>"""

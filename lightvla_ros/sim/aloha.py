"""The simulated ALOHA: gym-aloha's two ViperX arms on a table with coloured cubes, in MuJoCo physics.

Commands in, joint readings and images out, in the Interbotix driver's names and units. No ROS and no clock here.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError

_INSTALL_SIM = "pip install -e '.[sim]' && pip install --no-deps gym-aloha"

try:
    import mujoco

    from lightvla_ros.sim.renderer import CameraRenderer
except ImportError as error:
    raise LightVLAError(f"the simulated ALOHA needs MuJoCo ({error}); install it with: {_INSTALL_SIM}") from error
except Exception as error:  # MuJoCo already loads the GL library that MUJOCO_GL names when it is imported
    chosen = os.environ.get("MUJOCO_GL", "")
    raise LightVLAError(f"MuJoCo cannot be imported with MUJOCO_GL={chosen} ({error}); unset MUJOCO_GL") from error

ARMS = ("follower_left", "follower_right")
ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
JOINT_NAMES = (*ARM_JOINTS, "gripper", "left_finger", "right_finger")
CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
START_POSE = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)

# ALOHA 1's follower gripper, from its published constants; between them motor angle (rad) and finger (m) are linear.
GRIPPER_MOTOR_OPEN, GRIPPER_MOTOR_CLOSED = 1.4910, -0.6213
GRIPPER_FINGER_OPEN, GRIPPER_FINGER_CLOSED = 0.05800, 0.01844
_METRES_PER_RADIAN = (GRIPPER_FINGER_OPEN - GRIPPER_FINGER_CLOSED) / (GRIPPER_MOTOR_OPEN - GRIPPER_MOTOR_CLOSED)

CUBE_COLOURS = {"red": (0.85, 0.12, 0.1), "green": (0.15, 0.65, 0.2), "blue": (0.12, 0.3, 0.85)}
_CUBE_EDGE, _CUBE_MASS = 0.04, 0.05
# Where both arms reach: centre and half extent on the table, m (x to the robot's right, y away from the operator).
_CUBE_AREA = ((0.0, 0.5), (0.15, 0.12))
_CUBE_DISTANCE = 0.08

# Wrist view of the RealSense D405 on the real arms, degrees; the assets' 20 show little but the fingers.
_WRIST_FOVY = 58.0
_ARM_COLOUR, _TABLE_COLOUR = (0.24, 0.25, 0.28, 1.0), (0.58, 0.53, 0.46, 1.0)

_ASSET_ARM = {"follower_left": "vx300s_left", "follower_right": "vx300s_right"}
_ASSET_CAMERA = {"cam_high": "top", "cam_left_wrist": "left_wrist", "cam_right_wrist": "right_wrist"}


@dataclass(frozen=True)
class JointReading:
    """One arm, in the order of JOINT_NAMES, each (9,) float64.

    position: rad, the fingers m; velocity: rad/s, the fingers m/s;
    effort: the actuators' N m, the fingers' N (the real driver reports motor currents)
    """

    position: NDArray[np.float64]
    velocity: NDArray[np.float64]
    effort: NDArray[np.float64]


@dataclass
class _Goals:
    """Straight lines of the actuators' targets over simulated time, one an actuator: units rad and m, times s."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    start_time: NDArray[np.float64]
    end_time: NDArray[np.float64]

    @classmethod
    def held(cls, targets: NDArray[np.float64]) -> _Goals:
        return cls(targets.copy(), targets.copy(), np.zeros_like(targets), np.zeros_like(targets))

    def at(self, time: float) -> NDArray[np.float64]:
        span = np.maximum(self.end_time - self.start_time, 1e-9)
        share = np.clip((time - self.start_time) / span, 0.0, 1.0)
        return self.start + share * (self.end - self.start)

    def move(self, indices: Sequence[int], targets: Sequence[float], time: float, duration: float) -> None:
        picked = list(indices)
        self.start[picked] = self.at(time)[picked]
        self.end[picked] = targets
        self.start_time[picked] = time
        self.end_time[picked] = time + duration


class SimulatedAloha:
    """Two position-controlled arms. Like the driver, an arm holds its last goal for ever: there is no watchdog.

    seed: places and turns the cubes; the same seed gives the same scene
    Not thread-safe: whoever steps it also commands it (or holds a lock), and `render` stays on one thread.
    Raises LightVLAError where MuJoCo or gym-aloha is missing.
    """

    def __init__(self, seed: int = 0) -> None:
        self.model = mujoco.MjModel.from_xml_string(_scene_xml(_assets_directory()))
        _set_looks(self.model)
        self._data = mujoco.MjData(self.model)
        self._joints = {arm: self._joint_columns(arm) for arm in ARMS}
        self._renderer: CameraRenderer | None = None
        self._renderer_size = (0, 0)
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Put the arms at the start pose with open grippers and the cubes at seeded places; simulated time goes on."""
        time = self._data.time
        mujoco.mj_resetData(self.model, self._data)
        self._data.time = time
        low, high = self.model.actuator_ctrlrange.T
        fingers = (GRIPPER_FINGER_OPEN, -GRIPPER_FINGER_OPEN)
        targets = np.clip(np.tile([*START_POSE, *fingers], len(ARMS)), low, high)
        self._data.qpos[: targets.size] = targets
        self._goals = _Goals.held(targets)
        self._data.ctrl[:] = targets
        for colour, pose in zip(CUBE_COLOURS, _cube_poses(np.random.default_rng(seed)), strict=True):
            self._data.joint(f"{colour}_cube").qpos[:] = pose
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
            self._data.ctrl[:] = self._goals.at(self._data.time)
            mujoco.mj_step(self.model, self._data)

    def command_arm(self, arm: str, names: Sequence[str], positions: Sequence[float], duration: float = 0.0) -> None:
        """Move joints of one arm to positions (rad), in a straight line over duration (s), and hold them there.

        Goals beyond the actuator's range go to its end. Raises LightVLAError for an unknown or doubled name, a wrong
        length or a value that is not finite; then nothing of the command is taken.
        """
        unknown = sorted(set(names) - set(ARM_JOINTS))
        if unknown:
            raise LightVLAError(f"arm command names the joint {unknown[0]}, expected some of {', '.join(ARM_JOINTS)}")
        if not names or len(set(names)) != len(names):
            raise LightVLAError(f"arm command names {list(names)}, expected each joint at most once and at least one")
        if len(positions) != len(names):
            raise LightVLAError(f"arm command has {len(positions)} positions for {len(names)} joints, expected as many")
        self._command(arm, [ARM_JOINTS.index(name) for name in names], positions, duration)

    def command_gripper(self, arm: str, motor_angle: float, duration: float = 0.0) -> None:
        """Move one gripper to a motor angle (rad, 1.4910 open, −0.6213 closed), as far as its fingers go."""
        finger = finger_from_motor(motor_angle)
        self._command(arm, [len(ARM_JOINTS), len(ARM_JOINTS) + 1], [finger, -finger], duration)

    def _command(self, arm: str, columns: list[int], positions: Sequence[float], duration: float) -> None:
        if not all(math.isfinite(value) for value in (*positions, duration)):
            raise LightVLAError(f"command holds a value that is not finite ({list(positions)} in {duration} s)")
        if duration < 0.0:
            raise LightVLAError(f"command is to be reached in {duration} s, expected 0 or later")
        first = ARMS.index(arm) * (len(ARM_JOINTS) + 2)
        actuators = [first + column for column in columns]
        low, high = self.model.actuator_ctrlrange[actuators].T
        self._goals.move(actuators, np.clip(positions, low, high).tolist(), self.time, duration)

    def joint_reading(self, arm: str) -> JointReading:
        """What the driver of this arm (follower_left or follower_right) would report now."""
        columns, gripper = self._joints[arm], JOINT_NAMES.index("gripper")
        position, velocity = self._data.qpos[columns], self._data.qvel[columns]
        effort = self._data.actuator_force[columns]
        position[gripper] = motor_from_finger(float(position[gripper]))
        velocity[gripper] /= _METRES_PER_RADIAN
        effort[gripper] *= _METRES_PER_RADIAN
        return JointReading(position, velocity, effort)

    def snapshot(self) -> NDArray[np.float64]:
        """Joint positions of everything that moves (nq,): all that a CameraRenderer on another thread needs."""
        return np.array(self._data.qpos)

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """A camera's view now, RGB uint8 (height, width, 3). camera: one of CAMERAS or another of the scene's."""
        if self._renderer is None or height > self._renderer_size[0] or width > self._renderer_size[1]:
            self.close()
            self._renderer_size = (max(height, self._renderer_size[0]), max(width, self._renderer_size[1]))
            self._renderer = CameraRenderer(self.model, *self._renderer_size)
        return self._renderer.render(scene_camera(camera), height, width, self._data.qpos)

    def close(self) -> None:
        """Free the GL context that `render` made."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _joint_columns(self, arm: str) -> list[int]:
        """For JOINT_NAMES, the columns of qpos, qvel and actuator_force alike: the arms come first in all three.

        The gripper's motor is not simulated: it stands for the left finger that it moves.
        """
        simulated = ["left_finger" if name == "gripper" else name for name in JOINT_NAMES]
        return [int(self.model.joint(f"{_ASSET_ARM[arm]}/{name}").qposadr[0]) for name in simulated]


def scene_camera(camera: str) -> str:
    """The scene's name of a camera of the driver; other names pass unchanged."""
    return _ASSET_CAMERA.get(camera, camera)


def finger_from_motor(angle: float) -> float:
    """Finger position (m) at a gripper motor angle (rad)."""
    return GRIPPER_FINGER_CLOSED + (angle - GRIPPER_MOTOR_CLOSED) * _METRES_PER_RADIAN


def motor_from_finger(position: float) -> float:
    """Gripper motor angle (rad) at a finger position (m)."""
    return GRIPPER_MOTOR_CLOSED + (position - GRIPPER_FINGER_CLOSED) / _METRES_PER_RADIAN


def _assets_directory() -> Path:
    # Found, not imported: gym_aloha's import brings in dm_control and gymnasium.
    found = importlib.util.find_spec("gym_aloha")
    assets = Path(found.origin).parent / "assets" if found and found.origin else None
    if assets is None or not (assets / "vx300s_left.xml").is_file():
        raise LightVLAError(f"the simulated ALOHA needs the arm models of gym-aloha; install them with: {_INSTALL_SIM}")
    return assets


def _set_looks(model: mujoco.MjModel) -> None:
    """Dark arms on a light table, as on the real bench: the assets' greys are hard to tell apart without shadows."""
    for i in range(model.ngeom):
        name = model.geom(i).name
        if name.startswith("vx300s"):
            model.geom_rgba[i] = _ARM_COLOUR
        elif name == "table":
            model.geom_rgba[i] = _TABLE_COLOUR
    for camera in ("left_wrist", "right_wrist"):
        model.camera(camera).fovy[:] = _WRIST_FOVY


def _cube_poses(random: np.random.Generator) -> list[NDArray[np.float64]]:
    """Free-joint poses (x, y, z m, quaternion w, x, y, z) of the cubes, on the table and apart from each other."""
    centre, half = (np.array(value) for value in _CUBE_AREA)
    places: list[NDArray[np.float64]] = []
    while len(places) < len(CUBE_COLOURS):
        place = random.uniform(centre - half, centre + half)
        if all(np.linalg.norm(place - other) >= _CUBE_DISTANCE for other in places):
            places.append(place)
    yaws = random.uniform(-math.pi, math.pi, len(places))
    return [
        np.array([*place, _CUBE_EDGE / 2, math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)])
        for place, yaw in zip(places, yaws, strict=True)
    ]


def _cube_xml(colour: str) -> str:
    half, inertia = _CUBE_EDGE / 2, _CUBE_MASS * _CUBE_EDGE**2 / 6
    red, green, blue = CUBE_COLOURS[colour]
    # gym-aloha's compiler settings derive inertia only from geoms of groups 4 and 5, so it is written out.
    return f"""
    <body name="{colour}_cube" pos="0 0.5 {half}">
      <freejoint name="{colour}_cube"/>
      <inertial pos="0 0 0" mass="{_CUBE_MASS}" diaginertia="{inertia} {inertia} {inertia}"/>
      <geom type="box" size="{half} {half} {half}" condim="4" friction="1 0.005 0.0001" rgba="{red} {green} {blue} 1"/>
    </body>"""


def _actuator_xml(side: str) -> str:
    """Gains and force limits as in gym-aloha's tasks; ranges are inherited from the joints, where they are the same."""
    gains = {
        "waist": (800, 150),
        "shoulder": (1600, 300),
        "elbow": (800, 100),
        "forearm_roll": (10, 100),
        "wrist_angle": (50, None),
        "wrist_rotate": (20, None),
        "left_finger": (200, None),
        "right_finger": (200, None),
    }
    return "".join(
        f'<position joint="{side}/{name}" kp="{kp}" inheritrange="1"'
        + (f' forcerange="{-limit} {limit}"/>' if limit else "/>")
        for name, (kp, limit) in gains.items()
    )


def _scene_xml(assets: Path) -> str:
    """The MJCF scene: arms first, cubes after them, so that the arms' joints and actuators share their indices."""
    return f"""
<mujoco model="aloha">
  <compiler meshdir="{assets}"/>
  <include file="{assets}/scene.xml"/>
  <include file="{assets}/vx300s_dependencies.xml"/>
  <asset>
    <texture type="skybox" builtin="gradient" rgb1="0.75 0.8 0.86" rgb2="0.45 0.5 0.56" width="64" height="384"/>
  </asset>
  <worldbody>
    <include file="{assets}/vx300s_left.xml"/>
    <include file="{assets}/vx300s_right.xml"/>
    {"".join(map(_cube_xml, CUBE_COLOURS))}
  </worldbody>
  <actuator>{"".join(map(_actuator_xml, _ASSET_ARM.values()))}</actuator>
</mujoco>"""

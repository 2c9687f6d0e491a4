"""What the simulated robots' drivers say and hear: topics, messages and units, one class a robot.

Threads and pacing are the node's; physics is in aloha and franka.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.action import ActionServer
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from lightvla_core.errors import LightVLAError
from lightvla_ros.lifecycle import NEWEST_QOS
from lightvla_ros.sim.aloha import ARM_JOINTS, ARMS, JOINT_NAMES, SimulatedAloha, scene_camera
from lightvla_ros.sim.franka import ARM_JOINTS as FR3_JOINTS
from lightvla_ros.sim.franka import FINGER_JOINTS, MAX_WIDTH, SimulatedFranka

try:
    from interbotix_xs_msgs.msg import JointGroupCommand, JointSingleCommand
except ImportError:  # only in an Interbotix workspace; the trajectory topics serve everywhere
    JointGroupCommand = JointSingleCommand = None
try:
    from franka_msgs.action import Grasp, Move
except ImportError:  # only in a franka_ros2 workspace
    Grasp = Move = None
try:
    from control_msgs.action import GripperCommand
except ImportError:
    GripperCommand = None

_RELIABLE_DEPTH = 10


class Inputs:
    """Subscriptions that command the simulation under its lock; a refusal is logged when it is new on its topic."""

    def __init__(self, node: Any, lock: Any, now: Callable[[], int]) -> None:
        """now: the time that stamps carry, ns"""
        self.node, self.lock, self._now = node, lock, now
        self._refused: dict[str, str] = {}

    def take(self, kind: Any, topic: str, command: Callable[[Any], None]) -> None:
        def on_message(message: Any) -> None:
            try:
                with self.lock:
                    command(message)
            except LightVLAError as error:
                if self._refused.get(topic) != str(error):
                    self.node.get_logger().error(f"refused a command on {topic}: {error}")
                self._refused[topic] = str(error)
            else:
                self._refused.pop(topic, None)

        self.node.create_subscription(kind, topic, on_message, NEWEST_QOS)

    def last_point(self, message: Any) -> tuple[list[float], float]:
        """Positions of a trajectory's last point, and the time left to reach it, s.

        As joint_trajectory_controller has it: stamp 0 starts now, and an end in the past is refused.
        """
        if not message.points:
            raise LightVLAError("trajectory has no points, expected at least one")
        point = message.points[-1]
        duration = point.time_from_start.sec + point.time_from_start.nanosec * 1e-9
        start = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        if start:
            duration += (start - self._now()) * 1e-9
            if duration < 0.0:
                raise LightVLAError(
                    f"trajectory ended {-duration:.3f} s ago, expected an end in the future (or stamp 0)"
                )
        return list(point.positions), duration


class AlohaDriver:
    """Two arms as interbotix_xsarm_control has them, and as ros2_control's controllers take them."""

    title = "simulated ALOHA"
    scene_camera = staticmethod(scene_camera)

    def __init__(self, seed: int) -> None:
        self.sim = SimulatedAloha(seed)

    def camera_topic(self, camera: str) -> str:
        return f"{camera}/camera/color/image_rect_raw"

    def connect(self, node: Any, inputs: Inputs) -> None:
        self._inputs = inputs
        self._states = {arm: node.create_publisher(JointState, f"{arm}/joint_states", _RELIABLE_DEPTH) for arm in ARMS}
        for arm in ARMS:
            for kind, topic, command in self._commands():
                inputs.take(kind, f"{arm}/{topic}", partial(command, arm))

    def readings(self) -> Any:
        return {arm: self.sim.joint_reading(arm) for arm in ARMS}

    def publish(self, readings: Any, stamp: Any) -> None:
        for arm, reading in readings.items():
            self._states[arm].publish(_joint_state(JOINT_NAMES, reading, stamp))

    def _commands(self) -> Iterator[tuple[Any, str, Callable[[str, Any], None]]]:
        yield JointTrajectory, "arm_controller/joint_trajectory", self._arm_trajectory
        yield JointTrajectory, "gripper_controller/joint_trajectory", self._gripper_trajectory
        yield Float64MultiArray, "arm_controller/commands", self._arm_array
        yield Float64MultiArray, "gripper_controller/commands", self._gripper_array
        if JointGroupCommand is not None:
            yield JointGroupCommand, "commands/joint_group", self._joint_group
            yield JointSingleCommand, "commands/joint_single", self._joint_single

    def _arm_trajectory(self, arm: str, message: Any) -> None:
        positions, duration = self._inputs.last_point(message)
        self.sim.command_arm(arm, message.joint_names, positions, duration)

    def _gripper_trajectory(self, arm: str, message: Any) -> None:
        positions, duration = self._inputs.last_point(message)
        if list(message.joint_names) != ["gripper"] or len(positions) != 1:
            raise LightVLAError(
                f"gripper trajectory has {len(positions)} positions for the joints {list(message.joint_names)}, "
                "expected one for the joint gripper"
            )
        self.sim.command_gripper(arm, positions[0], duration)

    def _arm_array(self, arm: str, message: Any) -> None:
        self.sim.command_arm(arm, ARM_JOINTS, list(message.data))

    def _gripper_array(self, arm: str, message: Any) -> None:
        if len(message.data) != 1:
            raise LightVLAError(f"gripper command has {len(message.data)} numbers, expected one")
        self.sim.command_gripper(arm, message.data[0])

    def _joint_group(self, arm: str, message: Any) -> None:
        if message.name != "arm":
            raise LightVLAError(f"joint group is {message.name!r}, expected 'arm'")
        self.sim.command_arm(arm, ARM_JOINTS, list(message.cmd))

    def _joint_single(self, arm: str, message: Any) -> None:
        if message.name != "gripper":
            raise LightVLAError(f"single joint is {message.name!r}, expected 'gripper'")
        self.sim.command_gripper(arm, message.cmd)


class FrankaDriver:
    """One FR3 as franka_ros2 and MoveIt Servo have it: servo in speed units, frame fr3_link0 or the tool's."""

    title = "simulated Franka"

    def __init__(self, seed: int) -> None:
        self.sim = SimulatedFranka(seed)
        self._servers: list[Any] = []

    @staticmethod
    def scene_camera(camera: str) -> str:
        return camera

    def camera_topic(self, camera: str) -> str:
        return f"{camera}/camera/color/image_raw"

    def connect(self, node: Any, inputs: Inputs) -> None:
        self._inputs = inputs
        self._arm = node.create_publisher(JointState, "franka/joint_states", _RELIABLE_DEPTH)
        self._fingers = node.create_publisher(JointState, "franka_gripper/joint_states", qos_profile_sensor_data)
        self._merged = node.create_publisher(JointState, "joint_states", _RELIABLE_DEPTH)
        self._pose = node.create_publisher(PoseStamped, "franka_robot_state_broadcaster/current_pose", _RELIABLE_DEPTH)
        inputs.take(JointTrajectory, "fr3_arm_controller/joint_trajectory", self._trajectory)
        inputs.take(TwistStamped, "servo_node/delta_twist_cmds", self._twist)
        inputs.take(PoseStamped, "servo_node/pose_target_cmds", self._pose_target)
        self._serve_hand(node)

    def readings(self) -> Any:
        return self.sim.reading(), self.sim.tool_pose()

    def publish(self, readings: Any, stamp: Any) -> None:
        reading, (position, orientation) = readings
        self._merged.publish(_joint_state((*FR3_JOINTS, *FINGER_JOINTS), reading, stamp))
        self._arm.publish(_joint_state(FR3_JOINTS, reading, stamp, slice(0, 7)))
        self._fingers.publish(_joint_state(FINGER_JOINTS, reading, stamp, slice(7, 9)))
        pose = PoseStamped()
        pose.header.stamp, pose.header.frame_id = stamp, "fr3_link0"
        p, q = pose.pose.position, pose.pose.orientation
        p.x, p.y, p.z = position.tolist()
        q.x, q.y, q.z, q.w = orientation.tolist()
        self._pose.publish(pose)

    def _trajectory(self, message: Any) -> None:
        positions, duration = self._inputs.last_point(message)
        self.sim.command_joints(list(message.joint_names), positions, duration)

    def _twist(self, message: Any) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        twist = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
        frame = message.header.frame_id
        if frame == "fr3_hand_tcp":
            rotation = self.sim.tool_rotation()
            twist = np.concatenate((rotation @ twist[:3], rotation @ twist[3:]))
        elif frame != "fr3_link0":
            raise LightVLAError(f"twist is in the frame {frame!r}, expected fr3_link0 or fr3_hand_tcp")
        self.sim.command_twist(twist.tolist())

    def _pose_target(self, message: Any) -> None:
        frame = message.header.frame_id
        if frame != "fr3_link0":
            raise LightVLAError(f"pose target is in the frame {frame!r}, expected fr3_link0")
        p, q = message.pose.position, message.pose.orientation
        self.sim.command_pose([p.x, p.y, p.z], [q.x, q.y, q.z, q.w])

    def _serve_hand(self, node: Any) -> None:
        """The hand's actions. Unlike the real ones they end at once, while the fingers still move."""

        def serve(kind: Any, name: str, run: Callable[[Any], Any]) -> None:
            self._servers.append(ActionServer(node, kind, f"franka_gripper/{name}", run))

        if Move is not None:
            serve(Move, "move", lambda goal: self._franka_goal(goal, goal.request.width, Move.Result()))
            serve(Grasp, "grasp", lambda goal: self._franka_goal(goal, goal.request.width, Grasp.Result()))
        if GripperCommand is not None:
            serve(GripperCommand, "gripper_action", self._gripper_command)

    def _franka_goal(self, goal: Any, width: float, result: Any) -> Any:
        self._command_width(width)
        goal.succeed()
        result.success = True
        return result

    def _gripper_command(self, goal: Any) -> Any:
        # As franka_ros2 has it, the position is one finger's.
        self._command_width(2 * goal.request.command.position)
        goal.succeed()
        result = GripperCommand.Result()
        result.position, result.reached_goal = goal.request.command.position, True
        return result

    def _command_width(self, width: float) -> None:
        if not 0.0 <= width <= MAX_WIDTH:
            raise LightVLAError(f"gripper width is {width} m, expected 0 to {MAX_WIDTH}")
        with self._inputs.lock:
            self.sim.command_width(width)


DRIVERS: dict[str, type[AlohaDriver] | type[FrankaDriver]] = {"aloha": AlohaDriver, "franka": FrankaDriver}


def _joint_state(names: Sequence[str], reading: Any, stamp: Time, part: slice = slice(None)) -> Any:
    message = JointState(name=list(names))
    message.header.stamp = stamp
    message.position, message.velocity = reading.position[part].tolist(), reading.velocity[part].tolist()
    message.effort = reading.effort[part].tolist()
    return message

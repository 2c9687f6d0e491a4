"""The node `sim`: a simulated robot on its driver's topics.

Threads, images and pacing live here; topics and units in drivers, physics in aloha and franka, pictures in renderer.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError

# First of all that imports ROS: it refuses a mixture of two installations.
from lightvla_ros.lifecycle import NEWEST_QOS, Parameter, diagnostic_status, run  # isort: split

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from lightvla_ros.sim.pacing import Pacer

try:
    from lightvla_ros.sim.drivers import DRIVERS, Inputs
    from lightvla_ros.sim.renderer import CameraRenderer, camera_id
except LightVLAError as error:
    print(error, file=sys.stderr)
    raise SystemExit(2) from None

STATE_RATE = 100.0  # Hz, the Interbotix driver's; franka_ros2's is 1000
_MAX_SEED = 2**31 - 1
_SLOW = 0.95
_RELIABLE_DEPTH = 10
_STOP_POLL = 0.05

PARAMETERS = (
    Parameter("robot", "aloha", "which robot is simulated", choices=tuple(DRIVERS)),
    Parameter("cameras", ["cam_high", "cam_left_wrist"], "cameras to render; the ALOHA has cam_high, cam_left_wrist, "
              "cam_right_wrist, and the scene a few more views such as `angle`; the Franka has third_person, wrist"),
    Parameter("image_height", 112, "height of every image, px", 16, 1080),
    Parameter("image_width", 112, "width of every image, px", 16, 1920),
    Parameter("camera_rate", 15.0, "images of each camera per simulated second, Hz", 0.1, 60.0),
    Parameter("pace", "real_time", "real_time: stamps are system time, and images are dropped where rendering is slow; "
              "clock: stamps are simulated time as on /clock, which slows down so that nothing is dropped (start the "
              "other nodes with use_sim_time:=true)", choices=("real_time", "clock")),
    Parameter("seed", -1, "seed that places the cubes at the start and at each ~/reset; -1 draws a new one each time",
              -1, _MAX_SEED),
)  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """What the cameras are to show: joint positions (nq,) and when they were so, ns."""

    qpos: NDArray[np.float64]
    stamp: int


class CameraThread(threading.Thread):
    """Renders the newest frame it was offered, on its own thread and GL context, and hands the images on.

    scene_camera: the scene's name of a camera
    show: called on this thread with camera name, RGB uint8 (height, width, 3) and stamp, ns
    """

    def __init__(
        self,
        model: Any,
        cameras: Sequence[str],
        size: tuple[int, int],
        scene_camera: Callable[[str], str],
        show: Callable[[str, NDArray[np.uint8], int], None],
    ) -> None:
        super().__init__(name="cameras", daemon=True)
        self._model, self._cameras, self._size, self._show = model, cameras, size, show
        self._scene_camera = scene_camera
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._busy = self._stopping = False
        self._ready = threading.Event()
        self.failure: Exception | None = None
        self.backend = ""
        self.rendered = self.dropped = 0
        self.seconds = 0.0

    def start_and_wait(self) -> None:
        """Start and wait for the GL context; raises what making it raised."""
        self.start()
        self._ready.wait()
        if self.failure is not None:
            raise self.failure

    def offer(self, frame: Frame) -> None:
        with self._changed:
            self.dropped += self._frame is not None
            self._frame = frame
            self._changed.notify_all()

    def idle(self, timeout: float) -> bool:
        """Wait up to timeout (s) until everything offered has been shown; whether it has (or never will)."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._stopping or self.failure is not None or (self._frame is None and not self._busy), timeout
            )

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.join()

    def run(self) -> None:
        try:
            self._render_until_stopped()
        except Exception as error:  # told to the node's thread, which ends the process
            with self._changed:
                self.failure = error
                self._changed.notify_all()
        finally:
            self._ready.set()

    def _render_until_stopped(self) -> None:

        for camera in self._cameras:
            camera_id(self._model, self._scene_camera(camera))
        renderer = CameraRenderer(self._model, *self._size)
        self.backend = renderer.backend
        self._ready.set()
        try:
            while (frame := self._next()) is not None:
                for camera in self._cameras:
                    began = time.monotonic()
                    image = renderer.render(self._scene_camera(camera), *self._size, frame.qpos)
                    self.seconds += time.monotonic() - began
                    self.rendered += 1
                    self._show(camera, image, frame.stamp)
        finally:
            renderer.close()

    def _next(self) -> Frame | None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopping or self._frame is not None)
            if self._stopping:
                return None
            frame, self._frame, self._busy = self._frame, None, True
            return frame


class SimNode(Node):
    """Publishes states, images, /clock and diagnostics; takes what the robot's driver takes; ~/reset.

    The physics runs on a thread of its own with absolute deadlines, one tick a joint state; commands and resets come
    from the executor's thread, under one lock. Raises LightVLAError when it cannot start.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("sim", **kwargs)
        values = self._declare()
        self._follows_clock = values["pace"] == "clock"

        self._driver = DRIVERS[values["robot"]](self._draw_seed())
        self._sim = self._driver.sim
        self._steps = round(1.0 / STATE_RATE / self._sim.timestep)
        self._frame_period = 1.0 / float(values["camera_rate"])
        self._next_frame = self._frame_period
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        # Never the node's own clock: with use_sim_time that would follow the /clock published here.
        self._system = Clock(clock_type=ClockType.SYSTEM_TIME)
        self._warned_slow = False
        self._create_publishers(values["cameras"])
        size = (values["image_height"], values["image_width"])
        self._cameras = CameraThread(
            self._sim.model, values["cameras"], size, self._driver.scene_camera, self._publish_image
        )
        self._cameras.start_and_wait()
        self._started: int = self._system.now().nanoseconds
        self._driver.connect(self, Inputs(self, self._lock, self._now))
        self.create_service(Trigger, "~/reset", self._reset)
        self._pacer = Pacer(1.0 / STATE_RATE, time.monotonic())
        self._physics = threading.Thread(target=self._run_physics, name="physics", daemon=True)
        self._physics.start()
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(1.0, self._publish_diagnostics, clock=self._steady)

    def stop(self) -> None:
        """End both threads; safe to call twice."""
        self._stopping.set()
        self._cameras.stop()
        self._physics.join()

    def log_failure(self, what: str, error: BaseException) -> None:
        self.get_logger().error(str(error) if isinstance(error, LightVLAError) else f"{what} failed: {error!r}")

    def _declare(self) -> dict[str, Any]:
        for parameter in PARAMETERS:
            descriptor = parameter.descriptor()
            descriptor.read_only = parameter.name != "seed"
            try:
                self.declare_parameter(parameter.name, parameter.default, descriptor)
            except (InvalidParameterTypeException, InvalidParameterValueException) as error:
                raise LightVLAError(str(error)) from None
            if (refusal := parameter.refusal(self.get_parameter(parameter.name).value)) is not None:
                raise LightVLAError(refusal)
        return {parameter.name: self.get_parameter(parameter.name).value for parameter in PARAMETERS}

    def _create_publishers(self, cameras: Sequence[str]) -> None:

        self._clock_publisher = self.create_publisher(ClockMessage, "/clock", _RELIABLE_DEPTH)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", _RELIABLE_DEPTH)
        self._images = {
            camera: self.create_publisher(Image, self._driver.camera_topic(camera), NEWEST_QOS) for camera in cameras
        }

    def _reset(self, request: Any, response: Any) -> Any:
        seed = self._draw_seed()
        with self._lock:
            self._sim.reset(seed)
        response.success, response.message = True, f"reset with seed {seed}"
        self.get_logger().info(response.message)
        return response

    def _draw_seed(self) -> int:
        seed = int(self.get_parameter("seed").value)
        return seed if seed >= 0 else random.SystemRandom().randint(0, _MAX_SEED)

    def _now(self) -> int:
        """The time that stamps carry, ns."""
        if self._follows_clock:
            return self._started + round(self._sim.time * 1e9)
        return int(self._system.now().nanoseconds)

    def _run_physics(self) -> None:
        try:
            while not self._stopping.is_set():
                if (wait := self._pacer.wait(time.monotonic())) > 0.0:
                    time.sleep(wait)
                self._pacer.tick(time.monotonic())
                self._tick()
        except Exception as error:  # told to the executor's thread, which ends the process
            self._failure = error

    def _tick(self) -> None:
        with self._lock:
            self._sim.step(self._steps)
            stamp = self._now()
            readings = self._driver.readings()
            frame = Frame(self._sim.snapshot(), stamp) if self._frame_is_due() else None
        self._clock_publisher.publish(ClockMessage(clock=_time(stamp)))
        self._driver.publish(readings, _time(stamp))
        if frame is None:
            return
        while self._follows_clock and not self._cameras.idle(_STOP_POLL) and not self._stopping.is_set():
            pass
        self._cameras.offer(frame)

    def _frame_is_due(self) -> bool:
        # Half a physics step of grace: simulated time is a sum of floats.
        if self._sim.time + self._sim.timestep / 2 < self._next_frame:
            return False
        self._next_frame += self._frame_period
        return True

    def _publish_image(self, camera: str, image: NDArray[np.uint8], stamp: int) -> None:
        height, width, channels = image.shape
        message = Image(height=height, width=width, encoding="rgb8", step=width * channels)
        message.header.stamp, message.header.frame_id = _time(stamp), camera
        # From bytes, because rclpy converts a NumPy array element by element (97 ms instead of 0.3 for 640x480).
        message.data = image.tobytes()
        self._images[camera].publish(message)

    def _publish_diagnostics(self) -> None:
        if (failure := self._failure or self._cameras.failure) is not None:
            raise failure
        factor, lateness = self._pacer.report(time.monotonic())
        slow = factor < _SLOW
        if slow and not self._follows_clock and not self._warned_slow:
            self._warned_slow = True
            self.get_logger().warning(
                f"the simulation runs at {factor:.2f} of real time on this machine; start it with pace:=clock, and the "
                "other nodes with use_sim_time:=true"
            )
        cameras = self._cameras
        values = {
            "real-time factor": factor,
            "largest lateness of a step (s)": lateness,
            "images rendered": cameras.rendered,
            "frames dropped": cameras.dropped,
            "mean rendering time (s)": cameras.seconds / max(cameras.rendered, 1),
            "GL backend": cameras.backend,
        }
        level = DiagnosticStatus.WARN if slow else DiagnosticStatus.OK
        message = "slower than real time" if slow else "keeps up with real time"
        array = DiagnosticArray(status=[diagnostic_status(f"sim: {self._driver.title}", values, message, level)])
        array.header.stamp = _time(self._now())
        self._diagnostics.publish(array)


def _time(nanoseconds: int) -> Any:
    seconds, rest = divmod(nanoseconds, 10**9)
    return Time(sec=seconds, nanosec=rest)


def _make_node() -> Any:
    """Not a lifecycle node, as drivers are not: `run` needs only its `stop` and `log_failure`."""
    return SimNode()


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; the exit status is 0 then, and not 0 when it could not start."""
    # The renderer's thread must not hold the interpreter for its default 5 ms when a physics step is due.
    sys.setswitchinterval(0.0005)
    return run(_make_node, args)


if __name__ == "__main__":
    raise SystemExit(main())

"""Offscreen camera rendering for MuJoCo, and the choice of the GL library behind it.

No scene and no ROS here. A GL context belongs to the thread that made it, so a renderer does too.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from lightvla_core.errors import LightVLAError

_INSTALL_GL = "sudo apt-get install -y libegl1 libgl1-mesa-dri"

_NO_GL = f"the simulated cameras need an OpenGL library and found none; install it with: {_INSTALL_GL}"
_BACKENDS = ("egl", "osmesa")
_EGL_PLATFORM_DEVICE = 0x313F
_MAX_DEVICES = 16


class CameraRenderer:
    """Renders the fixed cameras of one model, without shadows and multisampling (7 ms instead of 70 in software GL).

    max_height, max_width: the largest image that will be asked for, px
    backend: egl or osmesa; None lets choose_backend decide
    Use it, and close it, on the thread that built it; nothing but that thread's own MjData is written.
    Raises LightVLAError where no GL context can be made.
    """

    def __init__(self, model: mujoco.MjModel, max_height: int, max_width: int, backend: str | None = None) -> None:
        # Software GL would otherwise start one busy thread a core and starve the control loop beside it; it reads this
        # when its first device is opened.
        os.environ.setdefault("LP_NUM_THREADS", "0")
        self.backend = backend or choose_backend()
        self._model = model
        self._data = mujoco.MjData(model)
        self._gl = _make_context(self.backend, max_height, max_width)
        # The offscreen buffer is allocated in the size that stands in the model when the context is made.
        model.vis.global_.offheight, model.vis.global_.offwidth = max_height, max_width
        model.vis.quality.offsamples = 0
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 10)
        for expensive in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[expensive] = 0
        self._options = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._max = (max_height, max_width)

    def render(self, camera: str, height: int, width: int, qpos: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The view of a camera at joint positions qpos (nq,) as RGB uint8 (height, width, 3), top row first."""
        if height > self._max[0] or width > self._max[1]:
            raise LightVLAError(
                f"a {height}x{width} image was asked of a renderer built for {self._max[0]}x{self._max[1]}; "
                "build it with a larger max_height and max_width"
            )
        self._camera.fixedcamid = camera_id(self._model, camera)
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, self._data, self._options, None, self._camera, everything, self._scene)
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        pixels = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context)
        return pixels[::-1]

    def close(self) -> None:
        self._context.free()
        self._gl.free()


def camera_id(model: mujoco.MjModel, camera: str) -> int:
    """Index of a named camera; raises LightVLAError that lists the cameras there are."""
    index = int(mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera))
    if index < 0:
        known = ", ".join(model.camera(i).name for i in range(model.ncam))
        raise LightVLAError(f"the simulated scene has no camera {camera}; it has {known}")
    return index


def choose_backend() -> str:
    """MUJOCO_GL where it is set; else egl if it finds a device to render on, else osmesa if its library loads.

    Decided before PyOpenGL is imported, because that can serve only one of them per process.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen and chosen not in _BACKENDS:
        raise LightVLAError(f"MUJOCO_GL is {chosen!r}, expected {' or '.join(_BACKENDS)} (or unset it)")
    if chosen != "osmesa" and _egl_has_device():
        return "egl"
    if chosen != "egl" and _load("libOSMesa.so", "libOSMesa.so.8", "libOSMesa.so.6") is not None:
        return "osmesa"
    raise LightVLAError(_NO_GL)


def _make_context(backend: str, height: int, width: int) -> Any:
    try:
        context = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
        context.make_current()
    except Exception as error:  # PyOpenGL raises anything from AttributeError to its own EGLError here
        raise LightVLAError(
            f"the simulated cameras could not open an OpenGL context through {backend} "
            f"({type(error).__name__}: {_first_line(error)}); install software rendering with: {_INSTALL_GL}"
        ) from error
    return context


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0]


def _load(*names: str) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _egl_has_device() -> bool:
    """Whether EGL loads and one of its devices (a GPU or Mesa's software rasterizer) initializes."""
    egl = _load("libEGL.so.1", "libEGL.so")
    if egl is None:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    egl.eglInitialize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    query = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_of = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query or not display_of:
        return False
    query_devices = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int)
    )(query)
    get_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(display_of)
    devices, count = (ctypes.c_void_p * _MAX_DEVICES)(), ctypes.c_int(0)
    if not query_devices(_MAX_DEVICES, devices, ctypes.byref(count)):
        return False
    displays = (get_display(_EGL_PLATFORM_DEVICE, device, None) for device in devices[: count.value])
    return any(display and egl.eglInitialize(display, None, None) for display in displays)

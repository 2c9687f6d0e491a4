"""Package metadata. In setup.py because Humble's setuptools reads no [project] table."""

from glob import glob

from setuptools import find_packages, setup

NAME = "lightvla_ros"

ROS_MESSAGES = ["std-msgs", "sensor-msgs", "trajectory-msgs", "std-srvs", "diagnostic-msgs", "lifecycle-msgs"]
ROS_MESSAGES += ["rosgraph-msgs", "geometry-msgs", "builtin-interfaces"]


def ros_wheels(distro: str) -> list[str]:
    """rclpy, a middleware and the message packages of one ROS distribution, as the Python index carries them."""
    return [f"ros-{distro}-{name}" for name in ("rclpy", "rmw-fastrtps-cpp", *ROS_MESSAGES)]


# What builds the drivers' messages of test/interfaces, beside a C++ compiler.
GENERATORS = ["rosidl-default-generators", "rosidl-core-generators", "ament-package", "ament-cmake", "ament-cmake-ros"]
GENERATORS += ["ament-cmake-include-directories", "ament-cmake-gtest", "ament-cmake-gmock", "ament-cmake-pytest"]


def generators(distro: str, *also: str) -> list[str]:
    """rosidl of one ROS distribution: the packages that every one of them has, and those that this one needs."""
    tools = ["cmake>=3.22,<4", "catkin-pkg", "empy", "lark"]
    return tools + [f"ros-{distro}-{name}" for name in (*GENERATORS, *also)]


POLICY = ["torch>=2.5", "torchvision", "timm>=0.9.16", "transformers>=4.40", "tokenizers>=0.19", "safetensors>=0.4"]
POLICY += ["opencv-python-headless>=4.8", "pillow>=10", "simplejpeg>=1.7"]
REPLAY = ["rosbags>=0.11", "matplotlib>=3.6"]
TOOLS = ["pytest>=8", "pytest-timeout", "hypothesis>=6.100", "peft>=0.11", "ruff>=0.6", "mypy>=1.10", "types-PyYAML"]

setup(
    name=NAME,
    version="0.1.0",
    description="LightVLA: token-pruned vision-language-action policies on ROS 2 arms",
    license="Apache-2.0",
    maintainer="lightvla_ros maintainers",
    maintainer_email="maintainers@lightvla-ros.org",
    packages=find_packages(include=["lightvla_core*", "lightvla_ros*"]),
    package_data={"lightvla_core": ["py.typed"], "lightvla_ros": ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.launch.py")),
        (f"share/{NAME}/config", glob("config/*.*")),
        (f"share/{NAME}/config/contracts", glob("config/contracts/*.yaml")),
        (f"share/{NAME}/config/sros2", glob("config/sros2/*.xml")),
        (f"share/{NAME}/config/robots", glob("config/robots/*.yaml")),
    ],
    python_requires=">=3.10",
    # What the executor needs on the robot's machine; torch is not part of it.
    install_requires=["setuptools", "numpy>=1.21", "pyyaml", "typer>=0.12", "rich>=13"],
    extras_require={
        "policy": POLICY,
        "ros": ros_wheels("jazzy"),
        "ros-kilted": ros_wheels("kilted"),
        "ros-interfaces": generators("jazzy", "python-cmake-module"),
        "ros-kilted-interfaces": generators("kilted", "ament-cmake-ros-core"),
        # And gym-aloha without its own dependencies (see tools/setup_environment.sh).
        "sim": ["mujoco>=3.1,<3.9", "imageio[ffmpeg]>=2.34"],
        "replay": REPLAY,
        "train": [*POLICY, "peft>=0.11"],
        "export": [*POLICY, "onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.1"],
        "dev": [*REPLAY, *TOOLS],
    },
    zip_safe=True,
    entry_points={
        "console_scripts": [
            "lightvla = lightvla_core.cli:main",
            "policy_node = lightvla_ros.policy_node:main",
            "executor_node = lightvla_ros.executor_node:main",
            "sim_node = lightvla_ros.sim.sim_node:main",
            "demo_operator = lightvla_ros.demo_operator:main",
        ]
    },
)

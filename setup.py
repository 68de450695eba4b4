"""Build and install mmfuse_ros, with colcon (ament_python) or with pip."""

from glob import glob

from setuptools import find_packages, setup

NAME = "mmfuse_ros"
MESSAGES = (
    "sensor-msgs",
    "std-msgs",
    "diagnostic-msgs",
    "geometry-msgs",
    "std-srvs",
    "lifecycle-msgs",
    "rosgraph-msgs",
)


def ros_wheels(distro: str) -> list[str]:
    """Return the PyPI requirements that stand in for an apt ROS 2 of this distro."""
    return [f"ros-{distro}-rclpy[fastrtps]"] + [f"ros-{distro}-{name}" for name in MESSAGES]


setup(
    name=NAME,
    version="0.1.0",
    description="Multimodal perception node: two cameras, audio, pressure and EMG in, "
    "one embedding and calibrated alarms out",
    license="MIT",
    maintainer="mmfuse_ros contributors",
    maintainer_email="mmfuse-ros@users.noreply.github.com",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.launch.py")),
        (f"share/{NAME}/config", glob("config/*.yaml") + glob("config/*.xml")),
        (f"share/{NAME}/config/sros2", glob("config/sros2/*")),
    ],
    python_requires=">=3.10",
    install_requires=[
        "numpy>=1.24",
        "scipy>=1.10",
        "scikit-learn>=1.2",
        "opencv-python-headless>=4.6",
        "torch>=2.6",
        "transformers>=4.48",
        "huggingface_hub",
        "safetensors>=0.4",
        "rosbags>=0.10",
        "rich>=13",
        "matplotlib>=3.6",
        "PyYAML>=6",
    ],
    extras_require={
        "jazzy": ros_wheels("jazzy"),
        "kilted": ros_wheels("kilted"),
        "openvino": ["openvino>=2024.4"],
        "retrieval": ["pyarrow>=14"],
        "test": [
            "pytest>=8",
            "pytest-timeout",
            "hypothesis",
            "ruff",
            "mypy",
            "psutil",
            "pyarrow>=14",
            "openvino>=2024.4",
            "colcon-core",
            "colcon-ros",
            "colcon-python-setup-py",
        ],
    },
    zip_safe=False,
    entry_points={
        "console_scripts": [
            f"mmfuse = {NAME}.cli.main:main",
            f"fusion_node = {NAME}.ros.node:main",
            f"sensor_sim = {NAME}.ros.sensor_sim:main",
        ],
    },
)

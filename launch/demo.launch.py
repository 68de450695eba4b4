"""The fusion node and simulated sensors: `ros2 launch mmfuse_ros demo.launch.py`."""

import os
from pathlib import Path

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription

HERE = Path(__file__).resolve().parent
PROFILE = str(HERE.parent / "config" / "fastdds.xml")
POLICY = "RMW_FASTRTPS_USE_QOS_FROM_XML"  # makes rmw_fastrtps heed the profile's policies


def generate_launch_description() -> LaunchDescription:
    """Return both processes; untrained weights unless `weights:=pretrained` is given."""
    names = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
    chosen = any(name in os.environ for name in (*names, "FASTDDS_BUILTIN_TRANSPORTS"))
    return LaunchDescription(
        [
            DeclareLaunchArgument("weights", default_value="random", description="or pretrained"),
            DeclareLaunchArgument("namespace", default_value="", description="of both nodes"),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(HERE / "mmfuse.launch.py")),
                launch_arguments={
                    "weights": LaunchConfiguration("weights"),
                    "namespace": LaunchConfiguration("namespace"),
                    "respawn": "false",
                }.items(),
            ),
            Node(
                package="mmfuse_ros",
                executable="sensor_sim",
                namespace=LaunchConfiguration("namespace"),
                additional_env={} if chosen else {**dict.fromkeys(names, PROFILE), POLICY: "1"},
                output="screen",
            ),
        ]
    )

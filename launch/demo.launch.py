"""The fusion node and simulated sensors: `ros2 launch mmfuse_ros demo.launch.py`."""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription
from mmfuse_ros.cli.processes import transport_environment

HERE = Path(__file__).resolve().parent


def generate_launch_description() -> LaunchDescription:
    """Return both processes; untrained weights unless `weights:=pretrained` is given."""
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
                additional_env=transport_environment(),
                output="screen",
            ),
        ]
    )

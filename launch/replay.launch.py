"""A recording into the node: `ros2 launch mmfuse_ros replay.launch.py bag:=DIR`."""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription
from mmfuse_ros.cli.processes import transport_environment

HERE = Path(__file__).resolve().parent


def generate_launch_description() -> LaunchDescription:
    """Return the player, which publishes /clock, and the node, which follows it."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description="folder of a rosbag2 recording"),
            DeclareLaunchArgument("rate", default_value="1.0", description="speed"),
            DeclareLaunchArgument("params_file", default_value="", description="YAML file"),
            DeclareLaunchArgument("weights", default_value="", description="or random"),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(HERE / "mmfuse.launch.py")),
                launch_arguments={
                    "params_file": LaunchConfiguration("params_file"),
                    "weights": LaunchConfiguration("weights"),
                    "use_sim_time": "true",
                    "respawn": "false",
                }.items(),
            ),
            ExecuteProcess(
                cmd=[
                    str(HERE.parents[2] / "lib" / "mmfuse_ros" / "mmfuse"),
                    "replay",
                    LaunchConfiguration("bag"),
                    "--clock",
                    "--loop",
                    "--wait",
                    "60",
                    "--rate",
                    LaunchConfiguration("rate"),
                ],
                additional_env=transport_environment(),
                output="screen",
            ),
        ]
    )

"""Bring up the fusion node: `ros2 launch mmfuse_ros mmfuse.launch.py params_file:=my.yaml`."""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription

CONFIG = Path(__file__).resolve().parent.parent / "config" / "mmfuse.yaml"
# Fast DDS' default transport loses most of large best-effort images; this profile's loses none.
PROFILE = CONFIG.with_name("fastdds.xml")

TOPICS = {
    "camera_1": "camera_1/image",
    "camera_2": "camera_2/image",
    "audio": "audio",
    "pressure": "pressure",
    "emg": "emg",
}


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the node and, on request, the simulated sensors."""
    arguments = [
        DeclareLaunchArgument("params_file", default_value=str(CONFIG), description="YAML file"),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
        DeclareLaunchArgument("use_sim_time", default_value="false", description="follow /clock"),
        DeclareLaunchArgument("autostart", default_value="true", description="go to active"),
        DeclareLaunchArgument("respawn", default_value="true", description="restart on a crash"),
        DeclareLaunchArgument("log_level", default_value="info", description="severity to log"),
        DeclareLaunchArgument("sim", default_value="false", description="start sensor_sim too"),
        DeclareLaunchArgument(
            "fastdds_profile",
            default_value=str(PROFILE),
            description="Fast DDS profile of the processes started here; empty for none",
        ),
        *(
            DeclareLaunchArgument(name, default_value=topic, description=f"topic of {name}")
            for name, topic in TOPICS.items()
        ),
    ]
    remappings = [(topic, LaunchConfiguration(name)) for name, topic in TOPICS.items()]
    # Remapping rules match whole names: the compressed image topic needs its own.
    remappings += [
        (f"{topic}/compressed", [LaunchConfiguration(name), "/compressed"])
        for name, topic in TOPICS.items()
        if name.startswith("camera")
    ]
    node = Node(
        package="mmfuse_ros",
        executable="fusion_node",
        name="mmfuse",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            LaunchConfiguration("params_file"),
            {
                "use_sim_time": LaunchConfiguration("use_sim_time"),
                "autostart": LaunchConfiguration("autostart"),
            },
        ],
        remappings=remappings,
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        respawn=LaunchConfiguration("respawn"),
        respawn_delay=1.0,
        output="screen",
        emulate_tty=True,
    )
    sim = Node(
        package="mmfuse_ros",
        executable="sensor_sim",
        namespace=LaunchConfiguration("namespace"),
        remappings=remappings,
        condition=IfCondition(LaunchConfiguration("sim")),
        output="screen",
    )
    profile = [
        # Jazzy and Kilted read the first as well as the second, Humble only the first.
        SetEnvironmentVariable(name, LaunchConfiguration("fastdds_profile"))
        for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
    ]
    return LaunchDescription([*arguments, *profile, node, sim])

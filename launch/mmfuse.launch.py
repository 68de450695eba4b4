"""Bring up the fusion node: `ros2 launch mmfuse_ros mmfuse.launch.py params_file:=my.yaml`."""

from collections.abc import Callable
from pathlib import Path

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription
from mmfuse_ros.cli.processes import transport_environment
from mmfuse_ros.config import PRESETS
from mmfuse_ros.ros import topics

CONFIG = Path(__file__).resolve().parent.parent / "config"
TOPICS = {**{m.value: topic for m, topic in topics.TOPICS.items()}, "phase": topics.PHASE}


def fusion_node(context: LaunchContext) -> list[Node]:
    """Return the node, with the parameter file and single parameters that the arguments name."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    preset = given("preset")
    if preset not in ("", *PRESETS):
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    file = "mmfuse" if preset in ("", "balanced") else preset
    profile = given("fastdds_profile")
    single = {f"model.{name}": given(name) for name in ("preset", "device", "weights")}
    return [
        Node(
            package="mmfuse_ros",
            executable="fusion_node",
            name="mmfuse",
            namespace=given("namespace"),
            parameters=[
                given("params_file") or str(CONFIG / f"{file}.yaml"),
                {name: value for name, value in single.items() if value},
                {
                    "use_sim_time": LaunchConfiguration("use_sim_time"),
                    "autostart": LaunchConfiguration("autostart"),
                },
            ],
            remappings=remappings(given),
            arguments=["--ros-args", "--log-level", given("log_level")],
            # Fast DDS' default transport loses most of large best-effort images.
            additional_env=transport_environment(profile) if profile else {},
            respawn=LaunchConfiguration("respawn"),
            respawn_delay=1.0,
            output="screen",
            emulate_tty=True,
        )
    ]


def remappings(given: Callable[[str], str]) -> list[tuple[str, str]]:
    """Return a rule for each topic and for compressed images: rules match whole names."""
    rules = [(topic, given(name)) for name, topic in TOPICS.items()]
    cameras = [name for name in TOPICS if name.startswith("camera")]
    return rules + [(f"{TOPICS[n]}/compressed", f"{given(n)}/compressed") for n in cameras]


def arguments() -> list[DeclareLaunchArgument]:
    """Return the launch arguments of the node."""
    named = {
        "params_file": ("", "YAML file of parameters; empty takes the preset's"),
        "preset": ("", f"one of {', '.join(PRESETS)}; empty leaves it to params_file"),
        "device": ("", "cpu, cuda or cuda:N; empty leaves it to params_file"),
        "weights": ("", "pretrained or random; empty leaves it to params_file"),
        "namespace": ("", "namespace of the node"),
        "use_sim_time": ("false", "follow /clock"),
        "autostart": ("true", "configure and activate the node"),
        "respawn": ("true", "start the node again when it has ended"),
        "log_level": ("info", "severity to log"),
        "fastdds_profile": (str(CONFIG / "fastdds.xml"), "Fast DDS profile; empty for none"),
        **{name: (topic, f"topic of {name}") for name, topic in TOPICS.items()},
    }
    return [
        DeclareLaunchArgument(name, default_value=value, description=text)
        for name, (value, text) in named.items()
    ]


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and the node."""
    return LaunchDescription([*arguments(), OpaqueFunction(function=fusion_node)])

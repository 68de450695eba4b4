"""The relative topic of each stream; remap it to what the robot has."""

from __future__ import annotations

from mmfuse_ros.samples import Modality

PHASE = "phase"  # std_msgs/String, what the robot is doing
TOPICS = {
    Modality.CAMERA_1: "camera_1/image",
    Modality.CAMERA_2: "camera_2/image",
    Modality.AUDIO: "audio",
    Modality.PRESSURE: "pressure",
    Modality.EMG: "emg",
}

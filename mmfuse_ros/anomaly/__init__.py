"""Anomaly detection: calibrated on normal recordings, with a stated false-alarm rate."""

from mmfuse_ros.anomaly.calibration import Promise
from mmfuse_ros.anomaly.debounce import Debounce
from mmfuse_ros.anomaly.detector import Detector, Scored
from mmfuse_ros.anomaly.drift import DriftMonitor

__all__ = ["Debounce", "Detector", "DriftMonitor", "Promise", "Scored"]

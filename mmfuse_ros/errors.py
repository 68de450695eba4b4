"""Errors of mmfuse_ros: one root, one class for each kind of cause.

A message states the rule, the value that broke it and the remedy.
"""


class MmfuseError(Exception):
    """Root of every error that mmfuse_ros raises on purpose."""


class ConfigError(MmfuseError, ValueError):
    """A parameter breaks its rule; the message names it, its value and its remedy."""


class InputError(MmfuseError, ValueError):
    """An input array or message has a wrong type, shape, range, rate or content.

    Attributes:
        reason: a short stable name of the rule that was broken, for counters.
    """

    def __init__(self, message: str, reason: str = "invalid") -> None:
        super().__init__(message)
        self.reason = reason


class CheckpointError(MmfuseError):
    """Weights or a checkpoint are missing, unreadable or made for another model."""


class CalibrationError(MmfuseError, ValueError):
    """A calibration cannot be fitted as asked, read, or used with this model."""


class ModelError(MmfuseError):
    """A stage of the model failed at run time; `__cause__` holds the reason."""


class StoreError(MmfuseError):
    """An embedding store cannot be read, or another process changed it meanwhile."""

"""Whether a preset's pretrained weights can be had, without loading them."""

from __future__ import annotations

from mmfuse_ros.model.presets import get_config

_FILES = ["config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin"]


def pretrained_available(preset: str, *, allow_download: bool) -> bool:
    """Return whether both encoders' weights are in the hub's cache, after a download if allowed.

    Raises:
        ConfigError: no preset of that name.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    config = get_config(preset)
    for name in (config.vision.model_name, config.audio.model_name):
        try:
            snapshot_download(
                name, allow_patterns=_FILES, local_files_only=not allow_download, max_workers=2
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
            return False
    return True

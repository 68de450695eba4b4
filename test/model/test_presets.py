"""Presets: as a configuration in Python, and as a node's YAML."""

import subprocess
import sys

import pytest
import yaml

from mmfuse_ros import get_config
from mmfuse_ros.config import PRESETS, Config
from mmfuse_ros.errors import ConfigError
from mmfuse_ros.model.system import RoboticFeedbackSystem


@pytest.mark.parametrize("preset", PRESETS)
def test_yaml_gives_the_node_the_same_model(preset):
    config = get_config(preset)
    config.emg.num_channels = 16
    tree = yaml.safe_load(config.to_yaml("mmfuse"))
    flat = {
        f"{section}.{leaf}": value
        for section, leaves in tree["mmfuse"]["ros__parameters"].items()
        for leaf, value in leaves.items()
    }
    node = Config.from_flat(flat)
    assert node.model.preset == preset
    assert node.model.fusion == config.fusion.fusion_method
    assert node.emg.channels == 16
    assert (node.model.vision, node.model.audio) == ("", "")


def test_changes_build_the_system(weights):
    config = get_config("lightweight")
    config.fusion.fusion_dim = 96
    config.vision.model_name = str(weights / "vision")
    config.audio.model_name = str(weights / "hubert")
    config.pressure.num_channels = 6
    system = RoboticFeedbackSystem.from_config(config, device="cpu")
    assert system.get_modality_dimensions() == {
        "vision": 24,
        "audio": 48,
        "pressure": 256,
        "emg": 256,
        "fused": 96,
    }
    assert system.pressure.channels == 6
    with pytest.raises(ConfigError, match=r"fusion.fusion_dim must be the preset's \(256\)"):
        config.to_yaml()


def test_guide_keywords_build_the_system(weights):
    config = get_config("high_capacity")
    system = RoboticFeedbackSystem(
        fusion_dim=config.fusion.fusion_dim,
        fusion_method=config.fusion.fusion_method,
        use_attention=config.fusion.use_attention,
        device=config.device,
        weights=weights,
    )
    assert (system.fusion_dim, system.fusion_method) == (768, "attention")


def test_each_call_returns_its_own_copy():
    get_config("balanced").fusion.fusion_dim = 7
    assert get_config("balanced").fusion.fusion_dim == 512


def test_an_unknown_preset_is_named():
    with pytest.raises(ConfigError, match="got 'tiny'"):
        get_config("tiny")


def test_get_config_loads_neither_torch_nor_transformers():
    script = (
        "import sys; from mmfuse_ros import get_config; get_config('balanced').to_yaml()\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

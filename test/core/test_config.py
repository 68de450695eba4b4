"""Parameters: declared once, checked once, worded well."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmfuse_ros.cli.configuration import read_parameter_file
from mmfuse_ros.cli.parameters import markdown, preset_config, yaml_text
from mmfuse_ros.config import Config, parameters
from mmfuse_ros.errors import ConfigError
from mmfuse_ros.samples import Modality, mask_modalities, modality_mask

ROOT = Path(__file__).resolve().parents[2]


def test_defaults_round_trip():
    config = Config()
    assert Config.from_flat(config.to_flat()) == config
    assert config.enabled == tuple(Modality)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sync.tolerance_s": -0.1}, r"sync.tolerance_s must be at least 0, got -0.1"),
        ({"camera_2.offset_s": 99.0}, r"camera_2.offset_s must be at most 10, got 99"),
        ({"audio.window_s": 8.0}, r"audio.window_s must be at most buffer.age_s \(5 s\), got 8"),
        ({"model.preset": "huge"}, r"model.preset must be one of lightweight, .*got 'huge'"),
        ({"model.seed": "x"}, r"model.seed must be of type int, got 'x'"),
        ({"model.seed": True}, r"model.seed must be of type int, got True"),
        ({"sync.tolerance_s": float("nan")}, r"sync.tolerance_s must be finite, got nan"),
        ({"sync.required": ["nose"]}, r"sync.required must hold only camera_1.*got 'nose'"),
        ({"sync.required": 5}, r"sync.required must be a list of strings, got 5"),
        ({"sync.required": None}, r"sync.required must be a list of strings, got None"),
        ({"sync.required": "audio"}, r"sync.required must be a list of strings, got 'audio'"),
        (
            {"sync.toleranse_s": 1.0},
            r"unknown parameter 'sync.toleranse_s'; did you mean sync.tolerance_s",
        ),
        ({"camera_1.enabled": False}, r"sync.trigger must be an enabled stream, got 'camera_1'"),
        (
            {"audio.enabled": False, "sync.required": ["audio"]},
            r"sync.required must hold only enabled streams, got 'audio'",
        ),
        ({"anomaly.debounce_k": 9}, r"debounce_k must be at most anomaly.debounce_n \(3\), got 9"),
        ({f"{m}.enabled": False for m in Modality}, r"at least one stream must be enabled"),
    ],
)
def test_refusals_name_rule_and_value(values, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_flat(values)


def test_whole_numbers_are_accepted_for_floats():
    assert Config.from_flat({"sync.tolerance_s": 1}).sync.tolerance_s == 1.0


def test_fixed_rate_needs_no_trigger():
    config = Config.from_flat({"camera_1.enabled": False, "sync.rate_hz": 10.0})
    assert Modality.CAMERA_1 not in config.enabled


def test_every_parameter_is_explained():
    for p in parameters():
        assert p.help.endswith("."), p.name
        if isinstance(p.default, float):
            # A number without a unit in its name is a share, a probability or a similarity.
            bare = ("min_coverage", "alpha", "threshold")
            assert p.name.endswith(("_s", "_hz", *bare)), p.name


@pytest.mark.parametrize(
    ("file", "preset"),
    [("mmfuse", "balanced"), ("lightweight", "lightweight"), ("high_capacity", "high_capacity")],
)
def test_shipped_yaml_is_the_declaration(file, preset):
    path = ROOT / "config" / f"{file}.yaml"
    remedy = f"run: mmfuse parameters --preset {preset} > config/{file}.yaml"
    assert path.read_text() == yaml_text(preset_config(preset)) + "\n", remedy
    assert Config.from_flat(read_parameter_file(path)) == preset_config(preset)


def test_readme_table_is_the_declaration():
    assert markdown() in (ROOT / "README.md").read_text(), "run: mmfuse parameters --markdown"


def test_masks():
    assert modality_mask((Modality.CAMERA_1, Modality.EMG)) == 0b10001
    assert mask_modalities(0b00110) == (Modality.CAMERA_2, Modality.AUDIO)
    assert [m.bit for m in Modality] == [1, 2, 4, 8, 16]

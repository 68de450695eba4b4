"""The code blocks of the guide's model chapters run as they are, in order, in one namespace.

Three things stand around the untouched text: `MMFUSE_WEIGHTS` names a directory of tiny weights,
as it would name the pretrained ones of an offline robot; the names that the guide leaves to its
reader (`get_camera_frames`, `training_data`, ...) are there; and on a machine without CUDA
`device="cuda"` reads "cpu", for the system refuses a device that is not there. The guide's own
placeholder `system(...)` gets the inputs of the quick start.
"""

import re
import warnings
from pathlib import Path

import pytest
import torch

TEXT = (Path(__file__).parent / "guide_blocks.md").read_text(encoding="utf-8")


def _blocks():
    for chapter in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        title = chapter.splitlines()[0]
        for code in re.findall(r"```python\n(.*?)```", chapter, flags=re.DOTALL):
            yield title, code


@pytest.fixture
def reader(inputs):
    """What the guide leaves to its reader."""
    executed = []
    targets = torch.randn(4, 512)
    samples = inputs(4)
    training = {
        "cameras": samples["camera_images"],
        "labels": targets,
        **{k: samples[k] for k in ("audio", "pressure", "emg")},
    }
    return {
        "num_steps": 3,
        "get_camera_frames": lambda: list(inputs(1)["camera_images"].values()),
        "get_audio_chunk": lambda: inputs(1)["audio"],
        "get_pressure_reading": lambda: inputs(1)["pressure"],
        "get_emg_reading": lambda: inputs(1)["emg"],
        "control_policy": lambda embedding: embedding[0, :7],
        "execute_action": executed.append,
        "executed": executed,
        "training_data": [training] * 8,
        "compute_loss": lambda fused, labels: (fused - labels.to(fused.device)).square().mean(),
    }


@pytest.fixture
def run(monkeypatch, weights, reader):
    """Run every block up to and with the first of a title; return the namespace."""
    monkeypatch.setenv("MMFUSE_WEIGHTS", str(weights))

    def run(title):
        begun = False
        for block_title, code in _blocks():
            if begun and block_title != title:
                break
            begun = begun or block_title == title
            if not torch.cuda.is_available():
                code = code.replace('device="cuda"', 'device="cpu"')
            code = code.replace(
                "system(...)",
                "system({'camera1': camera1, 'camera2': camera2}, audio, pressure, emg)",
            )
            with warnings.catch_warnings():
                # The quick start feeds standard normal numbers as pixels and sound.
                warnings.filterwarnings("ignore", message=".* must be in .*, got")
                exec(compile(code, f"guide: {block_title}", "exec"), reader)
        return reader

    return run


def test_quick_start(run):
    assert run("Basic usage")["fused"].shape == (1, 512)


def test_presets(run):
    config = run("Configuration presets")["config"]
    assert (config.preset, config.batch_size, config.fusion.fusion_dim) == (
        "high_capacity",
        16,
        768,
    )


def test_perception_loop(run):
    assert [a.shape for a in run("Perception loop")["executed"]] == [(7,)] * 3


def test_fine_tuning_lowers_the_loss(run, reader):
    losses = []
    compute = reader["compute_loss"]

    def recording(fused, labels):
        losses.append(compute(fused, labels))
        return losses[-1]

    reader["compute_loss"] = recording
    run("Fine-tuning")
    assert len(losses) == 8
    assert losses[-1] < losses[0]


def test_every_other_block(run):
    namespace = run("Eval mode")
    assert namespace["system"].fusion_method == "attention"
    assert not namespace["system"].training
    assert namespace["embedding"].shape == (1, 512)

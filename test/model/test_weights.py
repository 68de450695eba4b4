"""Where weights come from, and that nothing falls back in silence."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from mmfuse_ros.errors import CheckpointError
from mmfuse_ros.model.encoders import tensor_hash
from mmfuse_ros.model.loading import load_audio, load_vision, make_config
from mmfuse_ros.model.preprocess import AudioSpec, ImageSpec
from mmfuse_ros.model.presets import get_config
from mmfuse_ros.model.system import RoboticFeedbackSystem


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """No weights on disk, and no way to fetch them."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("MMFUSE_WEIGHTS", raising=False)


def test_missing_weights_are_one_clear_error(empty_cache):
    with pytest.raises(CheckpointError) as caught:
        RoboticFeedbackSystem(device="cpu")
    message = str(caught.value)
    for part in (
        "vision weights 'openai/clip-vit-base-patch32' must be in the local cache",
        "allow_download",
        "local directory (model.vision",
        "weights 'random'",
    ):
        assert part in message


@pytest.mark.parametrize("path", ["/no/such/dir", "./nothing", "~/no_such_dir"])
def test_a_missing_directory_is_named(path):
    with pytest.raises(CheckpointError, match=f"got '{path}', which does not exist"):
        load_vision(path, ImageSpec())


def test_an_empty_directory_says_what_it_lacks(tmp_path):
    with pytest.raises(CheckpointError, match=r"must hold config\.json and model\.safetensors"):
        load_audio(tmp_path, AudioSpec())


def test_the_environment_chooses_the_default_and_is_logged(monkeypatch, caplog, weights):
    monkeypatch.setenv("MMFUSE_WEIGHTS", str(weights))
    with caplog.at_level(logging.WARNING):
        system = RoboticFeedbackSystem(device="cpu")
    assert system.vision.dim == 24
    assert "from MMFUSE_WEIGHTS" in caplog.text


def test_an_argument_goes_before_the_environment(monkeypatch, weights):
    monkeypatch.setenv("MMFUSE_WEIGHTS", "nonsense")
    assert RoboticFeedbackSystem(device="cpu", weights=weights).audio.dim == 48


@pytest.fixture
def copy(weights, tmp_path):
    shutil.copytree(weights, tmp_path / "copy")
    return tmp_path / "copy"


def test_an_incomplete_file_is_refused(copy):
    """`transformers` would fill the gap with random numbers and go on."""
    file = copy / "vision" / "model.safetensors"
    tensors = load_file(file)
    del tensors["visual_projection.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing 1 \(visual_projection\.weight\)"):
        load_vision(copy / "vision", ImageSpec())


def test_a_damaged_file_is_refused(copy):
    file = copy / "audio" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"audio weights in .* must be readable"):
        load_audio(copy / "audio", AudioSpec())


def test_another_kind_of_model_is_refused(tmp_path):
    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"vision weights must be of type clip.* got 'bert'"):
        load_vision(tmp_path, ImageSpec())


def test_constants_come_from_the_processor_beside_the_weights(weights, copy, caplog):
    assert load_vision(weights / "vision", ImageSpec()).spec == ImageSpec(
        32, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    )
    assert not load_audio(weights / "hubert", AudioSpec()).spec.do_normalize
    (copy / "vision" / "preprocessor_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        spec = load_vision(copy / "vision", ImageSpec()).spec
    assert spec == ImageSpec(32, 32)
    assert "has no preprocessor_config.json" in caplog.text


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"resample": 2}, "resample is 2"),
        ({"do_center_crop": False}, "do_center_crop is False"),
        ({"crop_size": {"height": 24, "width": 24}}, "crop to the model's 32 pixels, got 24"),
        ({"size": {"height": 32, "width": 40}}, "distorts the picture"),
        ({"size": {"shortest_edge": 20}}, "smaller than crop_size"),
    ],
)
def test_other_processing_is_refused(copy, change, match):
    file = copy / "vision" / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=match):
        load_vision(copy / "vision", ImageSpec())


def test_old_and_nested_processor_files_are_read(copy):
    folder = copy / "vision"
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": 32, "crop_size": 32, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]})
    )
    assert load_vision(folder, ImageSpec()).spec == ImageSpec(32, 32, (0, 0, 0), (1, 1, 1))
    nested = {"image_processor": json.loads((folder / "preprocessor_config.json").read_text())}
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps(nested))
    assert load_vision(folder, ImageSpec()).spec.mean == (0, 0, 0)


def test_weights_of_a_whole_clip_load(tmp_path, tiny_clip, clip_processor):
    """A hub repository holds the text tower too; only the image tower is taken."""
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = CLIPConfig(
        text_config={**text, "num_attention_heads": 1, "vocab_size": 20},
        vision_config=tiny_clip,
        projection_dim=24,
    )
    whole = CLIPModel(config).eval()
    whole.save_pretrained(tmp_path)
    clip_processor().save_pretrained(tmp_path)
    encoder = load_vision(tmp_path, ImageSpec())
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = whole.visual_projection(whole.vision_model(pixels).pooler_output)
        assert torch.allclose(encoder.encode(pixels), expected, atol=1e-5)


def test_ready_models_are_taken_as_they_are(clip_model, speech_model):
    system = RoboticFeedbackSystem(device="cpu", vision=clip_model, audio=speech_model)
    assert system.vision.model is clip_model
    assert not system.vision.random


@pytest.mark.parametrize("preset", ["lightweight", "balanced", "high_capacity"])
def test_preset_architectures_are_the_published_ones(preset):
    """Sizes of the public checkpoints, counted on the meta device without any memory."""
    from transformers import AutoModel, CLIPVisionModelWithProjection

    config = get_config(preset)
    with torch.device("meta"):
        vision = CLIPVisionModelWithProjection(make_config(config.vision.architecture))
        audio = AutoModel.from_config(make_config(config.audio.architecture))
    millions = [round(sum(p.numel() for p in m.parameters()) / 1e6, 1) for m in (vision, audio)]
    assert (
        millions
        == {
            "lightweight": [8.3, 23.5],
            "balanced": [87.8, 94.4],
            "high_capacity": [304.0, 315.4],
        }[preset]
    )
    if preset == "balanced":
        state = vision.state_dict()
        assert state["vision_model.embeddings.patch_embedding.weight"].shape == (768, 3, 32, 32)
        assert state["visual_projection.weight"].shape == (512, 768)


def test_the_hash_follows_the_tensors(clip_model):
    before = tensor_hash(clip_model)
    with torch.no_grad():
        parameter = next(clip_model.parameters())
        parameter.flatten()[0] += 1
        assert tensor_hash(clip_model) != before
        parameter.flatten()[0] -= 1
    assert len(before) == 64

"""Fine-tuning: what learns, what stays, and that it does learn."""

import pytest
import torch

from mmfuse_ros.errors import ConfigError, InputError
from mmfuse_ros.model.checkpoint import open_checkpoint, save_checkpoint
from mmfuse_ros.model.training import train_classifier

METHODS = ("concat_project", "weighted_sum", "attention")


def _gradients(system, inputs):
    system.train()
    system.zero_grad()
    system(**inputs(4)).square().mean().backward()
    return {
        name: parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        for name, parameter in system.named_parameters()
    }


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_sensors_and_fusion_and_nothing_frozen(make_system, inputs, method):
    reached = _gradients(make_system(fusion_method=method), inputs)
    for name, moved in reached.items():
        part = name.split(".")[0]
        if part in ("vision", "audio"):
            assert not moved, name
        elif "tokens" not in name and name != "fusion.attend.in_proj_bias":
            assert moved, name  # tokens stand in for what is missing; nothing is


def test_tokens_learn_when_their_modality_is_missing(make_system, inputs):
    system = make_system()
    batch = inputs(2)
    del batch["audio"]
    system(**batch).square().mean().backward()
    assert system.fusion.tokens["audio"].grad.abs().sum() > 0
    assert system.fusion.tokens["emg"].grad.abs().sum() == 0


def test_frozen_parts_stay_in_eval(make_system):
    system = make_system().train()
    assert system.fusion.training
    assert system.pressure.training
    assert not any(m.training for m in system.vision.modules())
    assert not any(m.training for m in system.audio.modules())
    system.unfreeze_encoders("vision")
    assert system.vision.model.training
    assert not system.audio.model.training
    system.freeze_encoders()
    assert not system.vision.model.training
    system.unfreeze_encoders()
    system.eval()
    assert not any(m.training for m in system.modules())


def test_unfrozen_encoders_get_gradients(make_system, inputs):
    system = make_system()
    system.unfreeze_encoders()
    assert system.frozen == frozenset()
    reached = _gradients(system, inputs)
    assert reached["vision.model.visual_projection.weight"]
    assert reached["audio.model.feature_projection.projection.weight"]
    with pytest.raises(ConfigError, match="one of vision, audio, got 'emg'"):
        system.unfreeze_encoders("emg")


def test_gradient_checkpointing_recomputes_and_changes_nothing(make_system, inputs):
    """The same gradient; each transformer layer starts once more in the backward pass."""
    calls, gradients = [], []
    for checkpointing in (False, True):
        system = make_system()
        system.unfreeze_encoders("vision")
        system.train()
        system.fusion.eval()  # no dropout: both runs must compare
        if checkpointing:
            system.gradient_checkpointing_enable()
        layer = system.vision.model.vision_model.encoder.layers[0]
        count = []
        layer.mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        system(**inputs(2)).square().mean().backward()
        calls.append(len(count))
        gradients.append(layer.mlp.fc1.weight.grad)
    assert calls == [1, 2]
    assert torch.allclose(*gradients, atol=1e-7)


@pytest.fixture
def labelled(inputs):
    """24 windows of three classes that differ in EMG amplitude and in pressure."""
    batch = inputs(24)
    labels = torch.arange(24) % 3
    batch["emg"] = batch["emg"] * torch.tensor([1.0, 2.0, 2.0])[labels].view(-1, 1, 1)
    batch["pressure"] = batch["pressure"] * torch.tensor([1.0, 1.0, 1.2])[labels].view(-1, 1)
    return batch, labels


def test_training_overfits_a_small_set_and_the_checkpoint_keeps_it(
    make_system, labelled, weights, tmp_path
):
    system = make_system()
    batch, labels = labelled
    encoders = {n: t.clone() for n, t in system.vision.state_dict().items()}
    done = train_classifier(system, batch, labels, epochs=40)
    assert done.accuracy == 1.0
    assert done.losses[-1] < 0.1 * done.losses[0]
    assert all(torch.equal(t, encoders[n]) for n, t in system.vision.state_dict().items())
    save_checkpoint(system, tmp_path)
    opened = open_checkpoint(tmp_path, device="cpu", weights=weights).eval()
    with torch.no_grad():
        assert torch.equal(done.head(opened(**batch)).argmax(dim=1), labels)


def test_training_uses_dropout_and_leaves_the_mode_as_it_was(make_system, labelled):
    system, modes = make_system(), []
    done = train_classifier(
        system,
        *labelled,
        epochs=1,
        on_epoch=lambda *_: modes.append((system.fusion.training, system.vision.training)),
    )
    assert modes == [(True, False)]
    assert not system.training
    assert not done.head.weight.requires_grad


def test_training_repeats_with_its_seed(make_system, labelled):
    runs = [train_classifier(make_system(), *labelled, epochs=2).losses for _ in range(2)]
    other = train_classifier(make_system(), *labelled, epochs=2, seed=1).losses
    assert runs[0] == runs[1]
    assert other != runs[0]


def test_training_opens_encoders_that_are_unfrozen(make_system, labelled):
    system = make_system()
    system.unfreeze_encoders("audio")
    before = system.audio.model.feature_projection.projection.weight.clone()
    train_classifier(system, *labelled, epochs=1)
    assert not torch.equal(system.audio.model.feature_projection.projection.weight, before)


@pytest.mark.parametrize(
    "labels", [torch.rand(24), torch.zeros(24, 1, dtype=torch.long), torch.full((24,), -1)]
)
def test_wrong_labels_are_refused(make_system, labelled, labels):
    with pytest.raises(InputError, match=r"labels must be \(N,\) class numbers from 0"):
        train_classifier(make_system(), labelled[0], labels)

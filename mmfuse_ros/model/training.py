"""Fine-tuning on labelled windows: frozen encoders run once, the trainable parts many times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmfuse_ros.errors import InputError
from mmfuse_ros.model.encoders import seeded
from mmfuse_ros.model.system import CAMERAS, RoboticFeedbackSystem


@dataclass(frozen=True)
class Trained:
    """What training leaves beside the changed system.

    Attributes:
        head: linear classifier on the fused vector.
        losses: mean cross-entropy of each epoch.
        accuracy: share of the training rows that the system and the head get right.
    """

    head: nn.Linear
    losses: tuple[float, ...]
    accuracy: float


def train_classifier(
    system: RoboticFeedbackSystem,
    inputs: Mapping[str, Any],
    labels: torch.Tensor,
    *,
    epochs: int = 30,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train the unfrozen parts of a system, and a linear head, to tell labelled windows apart.

    Args:
        inputs: arguments of the system's call, N rows each.
        labels: (N,) class numbers from 0.
        on_epoch: receives the epoch and its mean loss.

    The vectors of frozen encoders are computed once and kept, (N, D) each.

    Raises:
        InputError: the labels do not fit, or as of the system's call.
    """
    rows = len(labels)
    if labels.ndim != 1 or labels.is_floating_point() or rows == 0 or int(labels.min()) < 0:
        raise InputError(
            f"labels must be (N,) class numbers from 0, got {tuple(labels.shape)} {labels.dtype}"
        )
    labels = labels.to(system.device, torch.long)
    with seeded(seed, "training"):
        cached, live = _split(system, inputs, batch_size)
        head = nn.Linear(system.fusion_dim, int(labels.max()) + 1).to(system.device)
        parameters = [p for p in system.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW([*parameters, *head.parameters()], lr=learning_rate)
        losses = []
        was_training = system.training
        system.train()
        for epoch in range(epochs):
            total = 0.0
            for index in torch.randperm(rows).split(batch_size):
                fused = _forward(system, cached, live, index)
                loss = nn.functional.cross_entropy(head(fused), labels[index.to(labels.device)])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(index)
            losses.append(total / rows)
            if on_epoch:
                on_epoch(epoch, losses[-1])
        system.eval()
        with torch.no_grad():
            logits = [
                head(_forward(system, cached, live, index))
                for index in torch.arange(rows).split(batch_size)
            ]
        accuracy = (torch.cat(logits).argmax(dim=1) == labels).float().mean().item()
        system.train(was_training)
    return Trained(head.requires_grad_(False), tuple(losses), accuracy)


def _split(
    system: RoboticFeedbackSystem, inputs: Mapping[str, Any], batch_size: int
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the vectors of what is frozen, and the inputs of what is not."""
    given = {name: value for name, value in inputs.items() if value is not None}
    frozen = {
        name: given.pop(name)
        for name, encoder in (("camera_images", "vision"), ("audio", "audio"))
        if encoder in system.frozen and name in given
    }
    if not frozen:
        return {}, given
    sizes = [len(v) for v in _leaves(frozen)]
    pieces = []
    with torch.no_grad():
        for index in torch.arange(sizes[0]).split(batch_size):
            pieces.append(system.encode(**_rows(frozen, index)))
    cached = {name: torch.cat([p[name] for p in pieces]) for name in pieces[0]}
    return {name: v for name, v in cached.items() if name not in CAMERAS}, given


def _forward(
    system: RoboticFeedbackSystem,
    cached: Mapping[str, torch.Tensor],
    live: Mapping[str, Any],
    index: torch.Tensor,
) -> torch.Tensor:
    vectors = {name: v[index.to(v.device)] for name, v in cached.items()}
    if live:
        vectors.update(system.encode(**_rows(live, index)))
    return system.fuse(vectors)


def _rows(inputs: Mapping[str, Any], index: torch.Tensor) -> dict[str, Any]:
    return {
        name: _rows(value, index) if isinstance(value, Mapping) else value[index.to(value.device)]
        for name, value in inputs.items()
    }


def _leaves(inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    return [
        leaf
        for value in inputs.values()
        for leaf in (_leaves(value) if isinstance(value, Mapping) else [value])
    ]

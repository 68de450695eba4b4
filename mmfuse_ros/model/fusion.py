"""Fusion heads: four modality vectors to one, near-isometric before any training.

Each modality is scaled to one common length, so that none speaks louder for its encoder's scale
or its dimension. Linear maps with orthonormal rows or columns then keep distances, exactly or
within the Johnson-Lindenstrauss bound, and the trainable non-linear branches are residual and
small at first. So an untrained fused vector already has the geometry of its inputs.

No layer depends on the batch, and a missing modality has a learned token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from mmfuse_ros.model.encoders import isometric_, small_linear
from mmfuse_ros.model.presets import check_fusion

MODALITIES = ("vision", "audio", "pressure", "emg")


class Fusion(nn.Module):
    """What the three heads share: normalisation, tokens and the residual MLP.

    Args:
        dims: length of each modality's vector, in the order of the head.
        dim: length of the fused vector.
        dropout: of the residual branches, while training.
    """

    def __init__(self, dims: Mapping[str, int], dim: int, dropout: float) -> None:
        super().__init__()
        self.dims, self.dim = dict(dims), dim
        # All modalities together make a fused vector with elements of about unit RMS.
        self.length = math.sqrt(dim / len(dims))
        self.tokens = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(width) * 0.02) for name, width in dims.items()}
        )
        self.mlp = ResidualMlp(dim, dropout)

    def forward(
        self, vectors: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Fuse (B, D_m) vectors under (B,) masks -> (B, dim).

        A modality that `vectors` lacks is missing in every row.
        """
        rows = next(iter(present.values())).shape[0]
        inputs = {}
        for name, token in self.tokens.items():
            missing = token.expand(rows, -1)
            if name in vectors:
                scaled = (
                    nn.functional.normalize(vectors[name].to(token.dtype), dim=1) * self.length
                )
                inputs[name] = torch.where(present[name].unsqueeze(1), scaled, missing)
            else:
                inputs[name] = missing
        return self.mlp(self.combine(inputs))

    def combine(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Map one normalised (B, D_m) vector of each modality to (B, dim)."""
        raise NotImplementedError


class ConcatProject(Fusion):
    """Concatenate, then one projection."""

    def __init__(self, dims: Mapping[str, int], dim: int, dropout: float) -> None:
        super().__init__(dims, dim, dropout)
        self.project = nn.Linear(sum(dims.values()), dim, bias=False)
        isometric_(self.project.weight)

    def combine(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.project(torch.cat(list(inputs.values()), dim=1))


class _Projected(Fusion):
    """A projection for each modality into the fused space."""

    def __init__(self, dims: Mapping[str, int], dim: int, dropout: float) -> None:
        super().__init__(dims, dim, dropout)
        self.project = nn.ModuleDict()
        for name, width in dims.items():
            layer = nn.Linear(width, dim, bias=False)
            isometric_(layer.weight)
            self.project[name] = layer

    def projected(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return (B, M, dim), one vector of each modality."""
        return torch.stack([self.project[name](x) for name, x in inputs.items()], dim=1)


class WeightedSum(_Projected):
    """Add the projections under learned weights, a softmax that is even at first."""

    def __init__(self, dims: Mapping[str, int], dim: int, dropout: float) -> None:
        super().__init__(dims, dim, dropout)
        self.logits = nn.Parameter(torch.zeros(len(dims)))

    def combine(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        # Weights of mean one: an even start is the plain, isometric sum.
        weights = self.logits.softmax(dim=0) * len(self.logits)
        return torch.einsum("bmd,m->bd", self.projected(inputs), weights)


class Attention(_Projected):
    """Let the modalities attend to each other, then add them."""

    def __init__(self, dims: Mapping[str, int], dim: int, dropout: float, heads: int = 8) -> None:
        super().__init__(dims, dim, dropout)
        self.norm = nn.LayerNorm(dim)
        self.attend = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.kind = nn.Parameter(torch.randn(len(dims), dim) * 0.02)
        nn.init.orthogonal_(self.attend.out_proj.weight, gain=0.1)

    def combine(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        tokens = self.projected(inputs)  # (B, M, dim)
        query = self.norm(tokens + self.kind)
        mixed, _ = self.attend(query, query, query, need_weights=False)
        # The branch is scaled as the tokens are: a sum of M of them has unit RMS.
        return (tokens + mixed / math.sqrt(len(self.kind))).sum(dim=1)


class ResidualMlp(nn.Module):
    """x + f(x), f small at first."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, dim),
            nn.GELU(),
            nn.Dropout(dropout),
            small_linear(dim, dim),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


def make_fusion(
    method: str, dims: Mapping[str, int], dim: int, *, heads: int = 8, dropout: float = 0.1
) -> Fusion:
    """Return a fusion head by name: concat_project, weighted_sum or attention.

    Raises:
        ConfigError: no method of that name.
    """
    check_fusion(method)
    if method == "concat_project":
        return ConcatProject(dims, dim, dropout)
    if method == "weighted_sum":
        return WeightedSum(dims, dim, dropout)
    return Attention(dims, dim, dropout, heads)

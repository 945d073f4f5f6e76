"""The projector: from the vision tower's width to the decoder's."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_corematching.models.activations import activation
from mlx_corematching.models.config import LlavaConfig


class Projector(nn.Module):
    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        features = config.vision.hidden_size * len(config.feature_layers)
        hidden = config.text.hidden_size
        self.act = activation(config.projector_act)
        self.linear_1 = nn.Linear(features, hidden, bias=config.projector_bias)
        self.linear_2 = nn.Linear(hidden, hidden, bias=config.projector_bias)

    def __call__(self, features: mx.array) -> mx.array:
        """[..., features] to [..., hidden]."""
        return self.linear_2(self.act(self.linear_1(features)))

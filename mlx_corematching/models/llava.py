"""A LLaVA: vision tower, projector, decoder."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_corematching.core.cache import LayerCache
from mlx_corematching.core.prefill import Prefill
from mlx_corematching.core.settings import CoreMatching
from mlx_corematching.models.config import LlavaConfig
from mlx_corematching.models.decoder import LanguageModel
from mlx_corematching.models.projector import Projector
from mlx_corematching.models.vision import VisionTower


class Llava(nn.Module):
    """The whole model. `config` is its checkpoint's; `balanced` its default settings."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = VisionTower(config.vision, config.feature_layers)
        self.multi_modal_projector = Projector(config)
        self.language_model = LanguageModel(config.text)

    @property
    def balanced(self) -> CoreMatching:
        """The settings measured for this checkpoint, or the default preset."""
        own = (self.config.corematching or {}).get("balanced")
        return CoreMatching.from_dict(own) if own else CoreMatching.balanced()

    def image_features(self, pixels: Sequence[np.ndarray]) -> list[mx.array]:
        """What the decoder sees of each picture: [3, size, size] to [image tokens, hidden] each."""
        if not len(pixels):
            return []
        features = self.vision_tower(mx.array(np.stack(pixels)), self.config.keep_class_token)
        return list(self.multi_modal_projector(features))

    def embed(
        self, ids: Sequence[int], image_rows: np.ndarray, features: Sequence[mx.array]
    ) -> mx.array:
        """Token embeddings with the pictures' features in their places: [1, tokens, hidden].

        Args:
            ids: token ids, one a position. [tokens]
            image_rows: where the image tokens are, ascending, all pictures'. Int [image tokens].
            features: one [image tokens of that picture, hidden] for each picture, in order.
        """
        tokens = np.array(ids, np.int32)
        # An image token's id may lie past the end of the embedding matrix.
        tokens[image_rows] = 0
        h = self.language_model.model.embed_tokens(mx.array(tokens))
        if len(image_rows):
            h[mx.array(image_rows.astype(np.int32))] = mx.concatenate(list(features)).astype(
                h.dtype
            )
        return h[None]

    def prefill(self, h: mx.array, caches: Sequence[LayerCache], method: Prefill) -> mx.array:
        """Read new prompt tokens, [1, tokens, hidden]; the logits after the last: [vocabulary]."""
        return self.language_model.logits(self.language_model.model.prefill(h, caches, method))[
            0, 0
        ]

"""A LLaVA: vision tower, projector, decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_corematching.core.cache import LayerCache
from mlx_corematching.core.prefill import Prefill
from mlx_corematching.core.settings import CoreMatching
from mlx_corematching.models.config import LlavaConfig
from mlx_corematching.models.decoder import LanguageModel
from mlx_corematching.models.features import FeatureCache
from mlx_corematching.models.projector import Projector
from mlx_corematching.models.vision import VisionTower


class Eyes(nn.Module):
    """From pictures to what the decoder sees of them."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.keep_class_token = config.keep_class_token
        self.vision_tower = VisionTower(config.vision, config.feature_layers)
        self.multi_modal_projector = Projector(config)

    def opened(self) -> Eyes:
        """Itself: the weights are in memory."""
        return self

    def __call__(self, pixels: mx.array) -> mx.array:
        """[pictures, channels, size, size] to [pictures, image tokens, hidden]."""
        return self.multi_modal_projector(self.vision_tower(pixels, self.keep_class_token))


class StreamedEyes(nn.Module):
    """Eyes that stay on disk: `opened` gives ones whose weights are read as they are used."""

    def __init__(self, read: Callable[[], Eyes]) -> None:
        super().__init__()
        self._read = read

    def opened(self) -> Eyes:
        return self._read()


class Llava(nn.Module):
    """The whole model. `config` is its checkpoint's; `balanced` its default settings.

    Attributes:
        memory: `resident`, or `streaming` where eyes and dense FFNs stay on disk.
        features: of the pictures looked at before.
    """

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.config = config
        self.name = ""
        self.memory = "resident"
        self.features = FeatureCache()
        self.eyes: Eyes | StreamedEyes = Eyes(config)
        self.language_model = LanguageModel(config.text)

    @property
    def balanced(self) -> CoreMatching:
        """The settings measured for this checkpoint, or the default preset."""
        return self.config.balanced

    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Every module that has weights, with its name's beginning; what streams is read anew."""
        yield "", self.eyes.opened()
        yield "language_model.", self.language_model
        for index, layer in enumerate(self.language_model.layers):
            if layer.mlp.opened() is not layer.mlp:
                yield f"language_model.model.layers.{index}.mlp.", layer.mlp.opened()

    def image_features(self, pixels: Sequence[np.ndarray]) -> list[mx.array]:
        """What the decoder sees of each picture: [3, size, size] to [image tokens, hidden] each."""
        if not len(pixels):
            return []
        return list(self.eyes.opened()(mx.array(np.stack(pixels))))

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
        h = self.language_model.embed(mx.array(tokens))
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

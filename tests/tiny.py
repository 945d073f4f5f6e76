"""Small LLaVA models with random weights, made in memory."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_corematching.models.config import LlavaConfig
from mlx_corematching.models.llava import Llava

IMAGE_TOKEN = 4


def tiny_config(text: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    """A config.json: 16 image tokens a picture, 4 decoder layers of 96 neurons."""
    return {
        "model_type": "llava",
        "image_token_index": IMAGE_TOKEN,
        "vision_feature_layer": -2,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": 64,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            **(text or {}),
        },
        **top,
    }


def tiny_model(
    text: dict[str, Any] | None = None, *, seed: int = 0, bits: int | None = None, **top: Any
) -> Llava:
    model = Llava(LlavaConfig.from_dict(tiny_config(text, **top)))
    model.name = "tiny"
    random = np.random.RandomState(seed)
    weights = []
    for name, value in sorted(tree_flatten(model.parameters())):
        noise = random.standard_normal(value.shape).astype(np.float32)
        around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        size = 0.1 if value.ndim == 1 else value.shape[-1] ** -0.5
        weights.append((name, mx.array(around + size * noise)))
    model.load_weights(weights)
    if bits:
        nn.quantize(
            model.language_model,
            group_size=32,
            bits=bits,
            class_predicate=lambda _, module: hasattr(module, "to_quantized"),
        )
    mx.eval(model.parameters())
    return model


def tiny_prompt(
    model: Llava, *, pictures: int = 1, before: int = 3, after: int = 6, seed: int = 0
) -> tuple[list[int], np.ndarray, list[np.ndarray]]:
    """Token ids, the image tokens' places, and the pictures' pixels of a random prompt."""
    random = np.random.RandomState(seed)
    vision = model.config.vision
    run = model.config.image_tokens

    def words(count: int) -> list[int]:
        return (5 + random.randint(0, model.config.text.vocab_size - 5, count)).tolist()

    ids, rows = words(before), []
    for _ in range(pictures):
        rows.extend(range(len(ids), len(ids) + run))
        ids += [IMAGE_TOKEN] * run + words(after)
    shape = (vision.num_channels, vision.image_size, vision.image_size)
    pixels = [random.standard_normal(shape).astype(np.float32) for _ in range(pictures)]
    return ids, np.array(rows, np.int64), pixels

"""Shapes of well-known LLaVA models, for models without a checkpoint."""

from __future__ import annotations

from typing import Any

from mlx_corematching.errors import InputError
from mlx_corematching.models.config import LlavaConfig

# Hidden size, neurons, layers, heads, key-value heads, vocabulary.
_TEXT = {
    "llava-1.5-7b": (4096, 11008, 32, 32, 32, 32064),
    "llava-1.5-13b": (5120, 13824, 40, 40, 40, 32064),
}
_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "vocab_size",
)  # fmt: skip

SHAPES = tuple(_TEXT)


def shape_config(
    shape: str,
    *,
    layers: int | None = None,
    image_tokens: int | None = None,
    tower_layers: int = 24,
) -> dict[str, Any]:
    """A config.json: LLaVA-1.5's layout (CLIP ViT-L/14 at 336) with a decoder of that shape.

    Args:
        shape: a name in SHAPES, or six numbers: hidden,neurons,layers,heads,kv_heads,vocabulary.
        layers: decoder layers, where not the shape's own.
        image_tokens: tokens that one picture becomes; a square number.
        tower_layers: of the vision tower, the last of which is never run.

    Raises:
        InputError: the shape is neither, or the numbers do not fit together.
    """
    if shape in _TEXT:
        sizes = _TEXT[shape]
    else:
        try:
            sizes = tuple(int(number) for number in shape.split(","))  # type: ignore[assignment]
        except ValueError:
            sizes = ()  # type: ignore[assignment]
        if len(sizes) != len(_FIELDS):
            raise InputError(
                f"there is no shape {shape!r}; give {', '.join(SHAPES)}, or six whole numbers: "
                "hidden,neurons,layers,heads,kv_heads,vocabulary"
            )
    hidden, _, _, heads, kv_heads, vocabulary = sizes
    if min(sizes) < 1 or hidden % heads or heads % kv_heads or hidden // heads % 2:
        raise InputError(
            f"the shape {shape} cannot be: all six numbers are above 0, heads divide the hidden "
            "size into even parts, and kv_heads divide the heads"
        )
    if vocabulary < 16:
        raise InputError(f"a vocabulary of {vocabulary} is too small; it has to be 16 or more")
    text: dict[str, Any] = {"model_type": "llama", "max_position_embeddings": 4096}
    text |= dict(zip(_FIELDS, sizes, strict=True)) | {"rms_norm_eps": 1e-5}
    if layers is not None and layers < 1:
        raise InputError(f"{layers} layers are too few for a decoder; it has 1 or more")
    if layers is not None:
        text["num_hidden_layers"] = layers
    if tower_layers < 2:
        raise InputError("a vision tower has 2 layers or more, the last of which is not run")
    wanted = 576 if image_tokens is None else image_tokens
    side = round(max(wanted, 0) ** 0.5)
    if side < 1 or side * side != wanted:
        raise InputError(
            f"{image_tokens} image tokens are no square of patches; {max(side, 1) ** 2} is one"
        )
    config = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": 4,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": tower_layers,
            "num_attention_heads": 16,
            "image_size": 14 * side,
            "patch_size": 14,
        },
        "text_config": text,
    }
    LlavaConfig.from_dict(config)  # raises for what does not fit together
    return config

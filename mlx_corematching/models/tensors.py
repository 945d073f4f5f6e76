"""Every tensor of a LLaVA checkpoint, by its canonical name (the hub's key layout).

The converter checks a source against this list and the loader a converted folder.
"""

from __future__ import annotations

from mlx_corematching.models.config import LlavaConfig

TOWER = "vision_tower.vision_model"
PROJECTOR = "multi_modal_projector"
DECODER = "language_model.model"
LM_HEAD = "language_model.lm_head.weight"

Shape = tuple[int, ...]


def expected_tensors(config: LlavaConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of a converted checkpoint, unquantised.

    FFN matrices are neuron-major: `down_proj` is [intermediate, hidden], the transpose of
    the source's; gate and up are [intermediate, hidden] in both. All else is as in the source.
    """
    return {**_tower(config), **_projector(config), **_decoder(config)}


def optional_tensors(config: LlavaConfig) -> frozenset[str]:
    """Those of `expected_tensors` that no forward pass reads, so that a checkpoint may lack them.

    They are the tower's final layernorm (the features come from before it) and the encoder
    layers above the last feature layer.
    """
    unread = tuple(
        f"{TOWER}.encoder.layers.{index}."
        for index in range(config.vision_layers_needed, config.vision.num_hidden_layers)
    )
    return frozenset(
        name for name in _tower(config) if name.startswith((f"{TOWER}.post_layernorm.", *unread))
    )


def is_ffn(name: str) -> bool:
    """Whether a canonical name is one of the decoder's three FFN matrices."""
    return name.startswith(f"{DECODER}.layers.") and ".mlp." in name


def is_down_proj(name: str) -> bool:
    """Whether a canonical name is the FFN matrix that is transposed at conversion."""
    return is_ffn(name) and name.endswith(".down_proj.weight")


# Matrices that the model holds one above the other in one, so that they take one product.
_JOINED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


def unjoined(name: str) -> tuple[str, tuple[str, ...]]:
    """The model's name for a checkpoint's tensor, and the tensors that are joined under it.

    For a tensor that stays by itself these are its own name and nothing.
    """
    if name.startswith(DECODER):
        for whole, parts in _JOINED.items():
            for part in parts:
                layer, found, kind = name.rpartition(f"{part}.")
                if found:
                    return f"{layer}{whole}.{kind}", tuple(f"{layer}{p}.{kind}" for p in parts)
    return name, ()


def _tower(config: LlavaConfig) -> dict[str, Shape]:
    vision = config.vision
    width, inner = vision.hidden_size, vision.intermediate_size
    shapes: dict[str, Shape] = {
        f"{TOWER}.embeddings.patch_embedding.weight": (
            width,
            vision.num_channels,
            vision.patch_size,
            vision.patch_size,
        ),
        f"{TOWER}.embeddings.position_embedding.weight": (vision.num_positions, width),
    }
    if vision.class_token:
        shapes[f"{TOWER}.embeddings.class_embedding"] = (width,)
    if vision.patch_bias:
        shapes[f"{TOWER}.embeddings.patch_embedding.bias"] = (width,)
    norms = [f"{TOWER}.post_layernorm"]
    if vision.pre_layernorm:
        # The name is misspelt in every CLIP checkpoint.
        norms.append(f"{TOWER}.pre_layrnorm")
    linears: dict[str, Shape] = {}
    for index in range(vision.num_hidden_layers):
        layer = f"{TOWER}.encoder.layers.{index}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linears[f"{layer}.self_attn.{name}"] = (width, width)
        linears[f"{layer}.mlp.fc1"] = (inner, width)
        linears[f"{layer}.mlp.fc2"] = (width, inner)
    for name in norms:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)
    for name, shape in linears.items():
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]
    return shapes


def _projector(config: LlavaConfig) -> dict[str, Shape]:
    hidden = config.text.hidden_size
    features = config.vision.hidden_size * len(config.feature_layers)
    shapes: dict[str, Shape] = {}
    for name, inputs in (("linear_1", features), ("linear_2", hidden)):
        shapes[f"{PROJECTOR}.{name}.weight"] = (hidden, inputs)
        if config.projector_bias:
            shapes[f"{PROJECTOR}.{name}.bias"] = (hidden,)
    return shapes


def _decoder(config: LlavaConfig) -> dict[str, Shape]:
    text = config.text
    hidden = text.hidden_size
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    shapes: dict[str, Shape] = {
        f"{DECODER}.embed_tokens.weight": (text.vocab_size, hidden),
        f"{DECODER}.norm.weight": (hidden,),
    }
    if not text.tie_word_embeddings:
        shapes[LM_HEAD] = (text.vocab_size, hidden)
    for index in range(text.num_hidden_layers):
        layer = f"{DECODER}.layers.{index}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            shapes[f"{layer}.self_attn.{name}.weight"] = (rows, hidden)
            if text.qkv_bias:
                shapes[f"{layer}.self_attn.{name}.bias"] = (rows,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, queries)
        if text.o_bias:
            shapes[f"{layer}.self_attn.o_proj.bias"] = (hidden,)
        for name in ("gate_proj", "up_proj", "down_proj"):
            shapes[f"{layer}.mlp.{name}.weight"] = (text.intermediate_size, hidden)
    return shapes

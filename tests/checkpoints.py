"""Small LLaVA checkpoints in Hugging Face format, with random weights, written to disk.

    write_checkpoint(folder, CONFIGS["qwen2-tied"], seed=3)

Numpy alone makes them, so that the same seed gives the same bytes everywhere. Names and
shapes are spelt out here once more, apart from the converter's own tables, so that a mistake
there cannot hide here; `test_convert_parity.py` has transformers load every one of them.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

LAYOUTS = ("hub", "transformers5", "saved5")
IMAGE_TOKEN = 4
VOCABULARY = 320
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")

_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 32,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}


def _llava(text: dict[str, Any], vision: dict[str, Any] = _CLIP, **top: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": IMAGE_TOKEN,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vision_config": dict(vision),
        "text_config": {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
            **text,
        },
        **top,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    # LLaVA-1.5 as the hub has it: every head its own keys, an old-style config.
    "llama": _llava({"model_type": "llama", "rope_theta": 10000.0}),
    "llama-gqa-llama3": _llava(
        {
            "model_type": "llama",
            "num_key_value_heads": 2,
            "head_dim": 32,
            "attention_bias": True,
            "rope_theta": 500000.0,
            "max_position_embeddings": 1024,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        }
    ),
    "llama-linear": _llava(
        {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}
    ),
    "llama-yarn": _llava(
        {
            "model_type": "llama",
            "num_key_value_heads": 2,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        }
    ),
    # What transformers 5 writes.
    "llama-rope-parameters": _llava(
        {
            "model_type": "llama",
            "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0},
        },
        image_token_id=IMAGE_TOKEN,
    ),
    "mistral": _llava(
        {
            "model_type": "mistral",
            "num_key_value_heads": 2,
            "sliding_window": 24,
            "rope_theta": 10000.0,
        }
    ),
    "qwen2-tied": _llava(
        {
            "model_type": "qwen2",
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
        },
        vision_feature_layer=[-2, -1],
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    ),
    "siglip-qwen2": _llava(
        {
            "model_type": "qwen2",
            "num_key_value_heads": 4,
            "rope_theta": 1000000.0,
        },
        _SIGLIP,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    ),
}


def make_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights by the hub's names, in Hugging Face's orientation."""
    shapes = {**_tower_shapes(config), **_projector_shapes(config), **_decoder_shapes(config)}
    random = np.random.RandomState(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = random.standard_normal(shape).astype(np.float32)
        if "norm" in name or "layrnorm" in name:
            tensors[name] = np.float32(name.endswith("weight")) + np.float32(0.1) * noise
        else:
            tensors[name] = np.float32(0.1) * noise
    return tensors


def write_checkpoint(
    folder: str | Path,
    config: dict[str, Any],
    *,
    seed: int = 0,
    layout: str = "hub",
    shards: int = 1,
    dtype: str = "float32",
    pickle: bool = False,
    tokenizer: bool = False,
    preprocessor: bool = False,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a checkpoint as the hub has them and return its folder.

    Args:
        folder: made if it is not there.
        config: written as config.json; see CONFIGS.
        layout: `hub`; `transformers5`, the names in memory; `saved5`, what transformers 5
            saves.
        shards: more than one come with an index.
        dtype: float32, float16 or bfloat16.
        pickle: write `pytorch_model.bin` instead of safetensors (needs torch).
        tokenizer: add a byte-level tokenizer with a chat template.
        preprocessor: add preprocessor_config.json.
        tensors: by the hub's names, instead of `make_tensors(config, seed)`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    if tensors is None:
        tensors = make_tensors(config, seed)
    named = {rename(name, layout): value for name, value in tensors.items()}
    names = sorted(named)
    weight_map = {}
    for number in range(shards):
        file = _shard_name(number, shards, pickle)
        part = {name: named[name] for name in names[number::shards]}
        (_write_pickle if pickle else write_safetensors)(folder / file, part, dtype)
        weight_map.update(dict.fromkeys(part, file))
    if shards > 1:
        index = "pytorch_model.bin.index.json" if pickle else "model.safetensors.index.json"
        _write_json(folder / index, {"metadata": {}, "weight_map": weight_map})
    if tokenizer:
        write_tokenizer(folder)
    if preprocessor:
        write_preprocessor(folder, config)
    return folder


def rename(name: str, layout: str) -> str:
    """A hub name as another layout spells it."""
    if layout == "hub":
        return name
    if layout == "saved5":
        return name.replace("vision_tower.vision_model.", "vision_tower.")
    assert layout == "transformers5", layout
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    if name.startswith("language_model.model."):
        return "model.language_model." + name[len("language_model.model.") :]
    return "model." + name.replace("vision_tower.vision_model.", "vision_tower.")


def write_safetensors(file: Path, tensors: dict[str, np.ndarray], dtype: str = "float32") -> None:
    """A safetensors file, put together by hand; float arrays are written as `dtype`."""
    header, blobs, offset = {}, [], 0
    for name, value in tensors.items():
        kind, blob = _encode(value, dtype)
        header[name] = {
            "dtype": kind,
            "shape": list(value.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def bfloat16_bits(value: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16 (nearest, ties to even), as its uint16 bits."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(value), np.uint16(0x7FC0), rounded)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer with the special tokens of LLaVA and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *letters))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIAL_TOKENS.index("<s>"))]
    )
    made.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "padding_side": "left",
        },
    )
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message['role'].upper() }}: "
        "{% for part in message['content'] %}"
        "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}"
        "{% endfor %}"
        "{{ eos_token if message['role'] == 'assistant' else ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        encoding="utf-8",
    )


def write_preprocessor(folder: Path, config: dict[str, Any]) -> None:
    size = config["vision_config"]["image_size"]
    siglip = config["vision_config"]["model_type"] == "siglip_vision_model"
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "SiglipImageProcessor" if siglip else "CLIPImageProcessor",
            "do_resize": True,
            "size": {"height": size, "width": size} if siglip else {"shortest_edge": size},
            "do_center_crop": not siglip,
            **({} if siglip else {"crop_size": {"height": size, "width": size}}),
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5] * 3 if siglip else [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.5] * 3 if siglip else [0.26862954, 0.26130258, 0.27577711],
            "do_convert_rgb": True,
        },
    )


def _tower_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    vision = config["vision_config"]
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    clip = vision["model_type"] == "clip_vision_model"
    patches = (vision["image_size"] // patch) ** 2
    tower = "vision_tower.vision_model."
    shapes: dict[str, tuple[int, ...]] = {}
    if clip:
        shapes[tower + "embeddings.class_embedding"] = (width,)
    else:
        shapes[tower + "embeddings.patch_embedding.bias"] = (width,)
    shapes[tower + "embeddings.patch_embedding.weight"] = (width, 3, patch, patch)
    shapes[tower + "embeddings.position_embedding.weight"] = (patches + clip, width)
    if clip:
        shapes |= _pair(tower + "pre_layrnorm", width)
    shapes |= _pair(tower + "post_layernorm", width)
    for index in range(vision["num_hidden_layers"]):
        layer = f"{tower}encoder.layers.{index}."
        shapes |= _pair(layer + "layer_norm1", width) | _pair(layer + "layer_norm2", width)
        for name in "qkv":
            shapes |= _pair(f"{layer}self_attn.{name}_proj", width, width)
        shapes |= _pair(layer + "self_attn.out_proj", width, width)
        shapes |= _pair(layer + "mlp.fc1", inner, width) | _pair(layer + "mlp.fc2", width, inner)
    return shapes


def _projector_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, layers = config["text_config"]["hidden_size"], config["vision_feature_layer"]
    width = config["vision_config"]["hidden_size"]
    inputs = width * (1 if isinstance(layers, int) else len(layers))
    return _pair("multi_modal_projector.linear_1", hidden, inputs) | _pair(
        "multi_modal_projector.linear_2", hidden, hidden
    )


def _decoder_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    text = config["text_config"]
    hidden, inner, heads = (
        text["hidden_size"],
        text["intermediate_size"],
        text["num_attention_heads"],
    )
    head = text.get("head_dim", hidden // heads)
    keys = head * text.get("num_key_value_heads", heads)
    biases = text.get("attention_bias", False)
    decoder = "language_model.model."
    shapes: dict[str, tuple[int, ...]] = {
        decoder + "embed_tokens.weight": (text["vocab_size"], hidden)
    }
    for index in range(text["num_hidden_layers"]):
        layer = f"{decoder}layers.{index}."
        for name, rows in (("q", head * heads), ("k", keys), ("v", keys)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, hidden)
            if biases or text["model_type"] == "qwen2":
                shapes[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
        shapes[layer + "self_attn.o_proj.weight"] = (hidden, head * heads)
        if biases:
            shapes[layer + "self_attn.o_proj.bias"] = (hidden,)
        shapes[layer + "mlp.gate_proj.weight"] = (inner, hidden)
        shapes[layer + "mlp.up_proj.weight"] = (inner, hidden)
        shapes[layer + "mlp.down_proj.weight"] = (hidden, inner)
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
    shapes[decoder + "norm.weight"] = (hidden,)
    if not text.get("tie_word_embeddings", False):
        shapes["language_model.lm_head.weight"] = (text["vocab_size"], hidden)
    return shapes


def _pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _encode(value: np.ndarray, dtype: str) -> tuple[str, bytes]:
    if value.dtype.kind != "f":
        return {"i": "I", "u": "U"}[value.dtype.kind] + str(
            8 * value.dtype.itemsize
        ), value.tobytes()
    if dtype == "bfloat16":
        return "BF16", bfloat16_bits(value).tobytes()
    with np.errstate(over="ignore"):
        return {"float32": "F32", "float16": "F16"}[dtype], value.astype(dtype).tobytes()


def _write_pickle(file: Path, tensors: dict[str, np.ndarray], dtype: str) -> None:
    import torch

    kind = getattr(torch, dtype)
    torch.save({name: torch.tensor(value).to(kind) for name, value in tensors.items()}, file)


def _shard_name(number: int, shards: int, pickle: bool) -> str:
    stem, end = ("pytorch_model", "bin") if pickle else ("model", "safetensors")
    return f"{stem}.{end}" if shards == 1 else f"{stem}-{number + 1:05d}-of-{shards:05d}.{end}"


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

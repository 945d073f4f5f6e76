"""LLaVA checkpoints of any size with random weights, in the format that the hub has them in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_corematching.errors import InputError
from mlx_corematching.inputs.prompts import VICUNA_TEMPLATE
from mlx_corematching.models.config import LlavaConfig
from mlx_corematching.models.shards import INDEX
from mlx_corematching.models.tensors import DECODER, LM_HEAD, Shape, expected_tensors, is_down_proj

if TYPE_CHECKING:
    import mlx.core as mx

_EMBEDDINGS = f"{DECODER}.embed_tokens.weight"

# Bytes a number.
_DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}

# Readers differ in what they assume where these are left out.
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

# One shard is held in memory while it is made.
_SHARD_BYTES = 256 << 20

_SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")

# Prompts and answers are ASCII, so that no answer is cut inside a character.
_LETTERS = "\t\n" + "".join(map(chr, range(ord(" "), ord("~") + 1)))


def write_random_source(
    folder: Path, config: Mapping[str, Any], *, seed: int = 0, dtype: str = "float32"
) -> None:
    """Write a LLaVA-1.5 checkpoint with random weights: one to convert, or for mlx-vlm to load.

    Matrices are normal with a standard deviation of fan_in ** -0.5, norms are near one and
    biases small, so that activations and logits stay finite and varied. The special tokens'
    logits are zero, so that an answer runs to its full length.

    Args:
        folder: made if it is not there.
        config: of the form of config.json, with a Llama decoder and a CLIP tower; it decides
            the sizes. What else it leaves out is LLaVA-1.5's, but for smaller token ids. mlx-vlm
            reads one `vision_feature_layer` alone, and knows no biases in the decoder and no
            `hidden_act` but quick_gelu.
        seed: the same seed gives the same weights.
        dtype: float32, float16 or bfloat16.

    Raises:
        InputError: the config or the dtype cannot be used, or the folder is not empty.
    """
    if dtype not in _DTYPES:
        raise InputError(f"the dtype is {dtype!r}; it has to be one of {', '.join(_DTYPES)}")
    raw = _complete(config, dtype)
    model = LlavaConfig.from_dict(raw)
    if model.text.model_type != "llama" or model.vision.model_type != "clip_vision_model":
        raise InputError("a random checkpoint has a Llama decoder and a CLIP vision tower")
    vocabulary = _vocabulary(model, raw["text_config"])
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; choose another folder")
    _write_json(folder / "config.json", raw)
    _write_tokenizer(folder, vocabulary)
    _write_processor(folder, model)
    _write_weights(folder, model, [vocabulary[token] for token in _SPECIAL], seed, dtype)


def _complete(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """config.json: the caller's, and in full where its readers assume different things."""
    for part in ("text_config", "vision_config"):
        missing = [name for name in _SIZES if name not in config.get(part, {})]
        if missing:
            raise InputError(f"config.json: {part} lacks {', '.join(missing)}")
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        **config,
        "image_token_index": config.get("image_token_index", config.get("image_token_id", 4)),
        "torch_dtype": dtype,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_act": "quick_gelu",
            "image_size": 336,
            "patch_size": 14,
            **config["vision_config"],
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
            **config["text_config"],
        },
    }


def _vocabulary(model: LlavaConfig, text: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id, in byte-level spelling: special tokens, letters, and words to fill it up."""
    special = [0, text["bos_token_id"], text["eos_token_id"], text["pad_token_id"]]
    special.append(model.image_token_id)
    size, fewest = model.text.vocab_size, len(_SPECIAL) + len(_LETTERS)
    if size < fewest:
        raise InputError(f"config.json: text_config.vocab_size is {size}; {fewest} are needed")
    if len({token for token in special if token in range(size)}) < len(special):
        raise InputError(
            f"config.json: the ids of {', '.join(_SPECIAL)} are {special}; they have to differ "
            f"and to lie below vocab_size, {size}"
        )
    vocabulary = dict(zip(_SPECIAL, special, strict=True))
    letters = iter(_LETTERS)
    for token in sorted(set(range(size)) - set(special)):
        letter = next(letters, None)
        # A word and a space, which comes last because runtimes differ in whether they trim one
        # that an answer begins with.
        vocabulary[f"w{token}{_byte_level(' ')}" if letter is None else _byte_level(letter)] = token
    return vocabulary


def _byte_level(letter: str) -> str:
    """GPT-2's printable stand-in for an ASCII character."""
    return letter if letter > " " else chr(ord(letter) + 256)


def _write_tokenizer(folder: Path, vocabulary: Mapping[str, int]) -> None:
    """A byte-level tokenizer that spells prompts letter by letter, and LLaVA-1.5's template."""
    begin = {"id": "<s>", "type_id": 0}
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    _write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": vocabulary[token],
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for token in sorted(_SPECIAL, key=vocabulary.__getitem__)
            ],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": begin}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [
                    {"SpecialToken": begin},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {
                    "<s>": {"id": "<s>", "ids": [vocabulary["<s>"]], "tokens": ["<s>"]}
                },
            },
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": dict(vocabulary),
                "merges": [],
            },
        },
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
        },
    )
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": vocabulary["<s>"],
            "eos_token_id": vocabulary["</s>"],
            "pad_token_id": vocabulary["<pad>"],
        },
    )
    (folder / "chat_template.jinja").write_text(VICUNA_TEMPLATE, encoding="utf-8")


def _write_processor(folder: Path, model: LlavaConfig) -> None:
    """LLaVA-1.5's preparation of pictures, at the tower's size."""
    size = model.vision.image_size
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "do_resize": True,
            "size": {"shortest_edge": size},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "do_convert_rgb": True,
        },
    )
    _write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": "<image>",
            "patch_size": model.vision.patch_size,
            # The class token, which the strategy `default` takes away again.
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "full" if model.keep_class_token else "default",
        },
    )


def _write_weights(
    folder: Path, model: LlavaConfig, special: list[int], seed: int, dtype: str
) -> None:
    """The shards and their index, one shard in memory at a time."""
    import mlx.core as mx
    import numpy as np

    shapes = {
        name: shape[::-1] if is_down_proj(name) else shape
        for name, shape in expected_tensors(model).items()
    }
    sizes = {name: math.prod(shape) * _DTYPES[dtype] for name, shape in shapes.items()}
    head = _EMBEDDINGS if model.text.tie_word_embeddings else LM_HEAD
    numbers = {name: number for number, name in enumerate(shapes)}
    weight_map: dict[str, str] = {}
    shards = _shards(sizes)
    for shard, names in enumerate(shards, start=1):
        file = f"model-{shard:05d}-of-{len(shards):05d}.safetensors"
        arrays: dict[str, mx.array] = {}
        for name in names:
            values = np.random.default_rng((seed, numbers[name])).standard_normal(
                shapes[name], np.float32
            )
            scale, centre = _spread(name, shapes[name])
            values *= scale
            values += centre
            if name == head:
                values[special] = 0
            arrays[name] = mx.array(values).astype(getattr(mx, dtype))
            mx.eval(arrays[name])
        mx.save_safetensors(str(folder / file), arrays, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    _write_json(
        folder / INDEX,
        {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map},
    )


def _shards(sizes: Mapping[str, int]) -> list[list[str]]:
    """The tensors of each file: as many as fit, and at least one."""
    shards: list[list[str]] = []
    used = 0
    for name, size in sizes.items():
        if not shards or used + size > _SHARD_BYTES:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _spread(name: str, shape: Shape) -> tuple[float, float]:
    """Standard deviation and mean of a tensor."""
    if name.endswith(".bias"):
        return 0.02, 0.0
    if "norm" in name:
        return 0.1, 1.0
    if name == _EMBEDDINGS:
        # A look-up reads one row. Smaller ones drown in the layers, and every token says the same.
        return 1.0, 0.0
    return math.prod(shape[1:]) ** -0.5, 0.0


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

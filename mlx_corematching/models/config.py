"""The settings of a LLaVA checkpoint: `config.json`, old and new, checked once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_corematching.core.settings import CoreMatching
from mlx_corematching.errors import InputError
from mlx_corematching.files import read_json

# transformers leaves out of config.json what equals its own default for the family.
_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    },
}

_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "siglip_vision_model": {
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}

# What LlavaConfig assumes when config.json has no vision_config at all (ViT-L/14 at 336).
_LLAVA_VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}

_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")

ACTIVATIONS = ("gelu", "quick_gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "silu")


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP or SigLIP vision tower."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    num_channels: int
    hidden_act: str
    layer_norm_eps: float

    @property
    def class_token(self) -> bool:
        """CLIP puts a class token before the patches; SigLIP has none."""
        return self.model_type == "clip_vision_model"

    @property
    def pre_layernorm(self) -> bool:
        """CLIP normalises the embeddings before the first layer; SigLIP does not."""
        return self.model_type == "clip_vision_model"

    @property
    def patch_bias(self) -> bool:
        """SigLIP's patch embedding has a bias; CLIP's has none."""
        return self.model_type == "siglip_vision_model"

    @property
    def grid(self) -> int:
        """Patches along one side of the square input."""
        return self.image_size // self.patch_size

    @property
    def num_positions(self) -> int:
        return self.grid**2 + int(self.class_token)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> VisionConfig:
        model_type = given.get("model_type", "clip_vision_model")
        if model_type not in _VISION_DEFAULTS:
            raise InputError(
                f"the vision tower is of type '{model_type}', and only "
                f"{' and '.join(_VISION_DEFAULTS)} are supported"
            )
        values = {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 224,
            "num_channels": 3,
            **_VISION_DEFAULTS[model_type],
            **given,
            "model_type": model_type,
        }
        config = cls(**{name: values[name] for name in cls.__dataclass_fields__})
        _check_whole("vision_config", config, _SIZES_VISION)
        _check_activation("vision_config.hidden_act", config.hidden_act)
        _check_multiple("vision_config", config, "hidden_size", "num_attention_heads")
        return config


@dataclass(frozen=True)
class TextConfig:
    """A Llama, Mistral or Qwen2 decoder."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    qkv_bias: bool
    o_bias: bool
    tie_word_embeddings: bool
    # One entry a layer: how far back it attends, in positions; None is everything.
    windows: tuple[int | None, ...]

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> TextConfig:
        family = given.get("model_type", "llama")
        if family == "mllama_text_model" or "cross_attention_layers" in given:
            raise InputError(_CROSS_ATTENTION)
        if family not in _TEXT_DEFAULTS:
            raise InputError(
                f"the decoder is of type '{family}', and only "
                f"{', '.join(_TEXT_DEFAULTS)} are supported"
            )
        values: dict[str, Any] = {
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            **_TEXT_DEFAULTS[family],
            **given,
        }
        if values["hidden_act"] != "silu":
            raise InputError(
                f"the decoder's activation is '{values['hidden_act']}', and core neurons are "
                "defined for SwiGLU decoders (silu) only"
            )
        if values.get("mlp_bias"):
            raise InputError("decoders with biases in their FFN (mlp_bias) are not supported")
        heads = values["num_attention_heads"]
        theta, scaling = _rope(values)
        attention_bias = family == "llama" and bool(values.get("attention_bias", False))
        config = cls(
            model_type=family,
            vocab_size=values["vocab_size"],
            hidden_size=values["hidden_size"],
            intermediate_size=values["intermediate_size"],
            num_hidden_layers=values["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            max_position_embeddings=values["max_position_embeddings"],
            rms_norm_eps=values["rms_norm_eps"],
            rope_theta=theta,
            rope_scaling=scaling,
            qkv_bias=family == "qwen2" or attention_bias,
            o_bias=attention_bias,
            tie_word_embeddings=bool(values["tie_word_embeddings"]),
            windows=_windows(family, values),
        )
        _check_whole("text_config", config, _SIZES_TEXT)
        _check_multiple("text_config", config, "num_attention_heads", "num_key_value_heads")
        return config


@dataclass(frozen=True)
class LlavaConfig:
    """A whole checkpoint: vision tower, projector, decoder."""

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    projector_act: str
    projector_bias: bool
    feature_layers: tuple[int, ...]
    """Hidden states read from the tower, counted from 0 (the embeddings) to num_hidden_layers."""
    keep_class_token: bool
    """`vision_feature_select_strategy` is `full`: the first feature of a picture is kept too."""
    eos_token_ids: tuple[int, ...]
    quantization: dict[str, Any] | None = None
    corematching: dict[str, Any] | None = None
    raw: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def balanced(self) -> CoreMatching:
        """The settings measured for this checkpoint, or the default preset."""
        own = (self.corematching or {}).get("balanced")
        return CoreMatching.from_dict(own) if own else CoreMatching.balanced()

    @property
    def vision_layers_needed(self) -> int:
        """How many encoder layers of the tower are ever run."""
        return max(self.feature_layers)

    @property
    def image_tokens(self) -> int:
        """Tokens that one picture becomes."""
        positions = self.vision.num_positions
        return positions if self.keep_class_token else positions - 1

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> LlavaConfig:
        """Read a `config.json`, whichever transformers wrote it.

        Raises:
            InputError: it is not a LLaVA that this runtime can run; the message says why.
        """
        model_type = given.get("model_type")
        if model_type == "mllama":
            raise InputError(_CROSS_ATTENTION)
        if "mm_vision_tower" in given:
            raise InputError(
                "config.json is of the original LLaVA release (mm_vision_tower); use the same "
                "model in Hugging Face format, whose name ends in -hf"
            )
        if model_type != "llava":
            raise InputError(
                f"config.json is of model_type '{model_type}', and only 'llava' is supported"
            )
        text = dict(given.get("text_config") or {})
        # LlavaConfig hands its own flag on to the decoder, and the decoder's back.
        text["tie_word_embeddings"] = bool(
            text.get("tie_word_embeddings") or given.get("tie_word_embeddings")
        )
        vision = VisionConfig.from_dict(dict(given.get("vision_config") or _LLAVA_VISION))
        strategy = given.get("vision_feature_select_strategy", "default")
        if strategy not in ("default", "full"):
            raise InputError(
                f"vision_feature_select_strategy is '{strategy}', and only 'default' and 'full' "
                "are known"
            )
        projector_act = given.get("projector_hidden_act", "gelu")
        _check_activation("projector_hidden_act", projector_act)
        return cls(
            vision=vision,
            text=TextConfig.from_dict(text),
            image_token_id=given.get("image_token_index", given.get("image_token_id", 32000)),
            projector_act=projector_act,
            projector_bias=given.get("multimodal_projector_bias", True),
            feature_layers=_feature_layers(given.get("vision_feature_layer", -2), vision),
            keep_class_token=strategy == "full",
            eos_token_ids=tuple(
                _as_ids(given.get("eos_token_id")) + _as_ids(text.get("eos_token_id"))
            ),
            quantization=given.get("quantization"),
            corematching=given.get("corematching"),
            raw=given,
        )

    @classmethod
    def from_folder(cls, folder: Path) -> LlavaConfig:
        """Read `folder/config.json`; raises InputError as `from_dict` does."""
        return cls.from_dict(read_json(folder / "config.json"))


_CROSS_ATTENTION = (
    "this model reads pictures through cross-attention layers (mllama), which have no image "
    "tokens to prune; use a LLaVA model"
)

_SIZES_VISION = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "image_size", "patch_size", "num_channels",
)  # fmt: skip
_SIZES_TEXT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
)  # fmt: skip


def _check_whole(where: str, config: Any, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(
                f"config.json: {where}.{name} is {value!r}, not a whole number above 0"
            )


def _check_multiple(where: str, config: Any, whole: str, part: str) -> None:
    if getattr(config, whole) % getattr(config, part):
        raise InputError(f"config.json: {where}.{whole} is not a multiple of {part}")


def _check_activation(where: str, name: str) -> None:
    if name not in ACTIVATIONS:
        raise InputError(
            f"config.json: {where} is '{name}', and only {', '.join(ACTIVATIONS)} are supported"
        )


def _rope(values: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """RoPE base and scaling, from `rope_theta`/`rope_scaling` or the newer `rope_parameters`."""
    scaling = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    theta = float(scaling.pop("rope_theta", values.get("rope_theta", 10000.0)))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise InputError(
            f"config.json: RoPE scaling of type '{kind}' is not supported "
            f"({', '.join(_ROPE_TYPES)} are)"
        )
    # Dynamic scaling leaves RoPE as it is up to max_position_embeddings, the context we allow.
    if kind in ("default", "dynamic"):
        return theta, None
    return theta, {**scaling, "rope_type": kind}


def _windows(family: str, values: dict[str, Any]) -> tuple[int | None, ...]:
    layers = values["num_hidden_layers"]
    window = values.get("sliding_window")
    if family == "llama" or (family == "qwen2" and not values.get("use_sliding_window", False)):
        window = None
    kinds = values.get("layer_types")
    if kinds is None and family == "qwen2":
        first = values.get("max_window_layers", 28)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if kinds is None:
        kinds = ["sliding_attention"] * layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _feature_layers(value: int | list[int], vision: VisionConfig) -> tuple[int, ...]:
    states = vision.num_hidden_layers + 1
    chosen = [value] if isinstance(value, int) else list(value)
    for layer in chosen:
        if not -states <= layer < states:
            raise InputError(
                f"config.json: vision_feature_layer {layer} does not exist in a tower of "
                f"{vision.num_hidden_layers} layers"
            )
    return tuple(layer % states for layer in chosen)


def _as_ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)

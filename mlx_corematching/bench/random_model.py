"""Models of any shape with random weights: in memory, or as a converted checkpoint on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_corematching.errors import InputError
from mlx_corematching.models.config import LlavaConfig
from mlx_corematching.models.tensors import DECODER, expected_tensors, optional_tensors

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_corematching.models.llava import Llava
    from mlx_corematching.models.shelf import Weights

GROUP_SIZE = 64


@dataclass(frozen=True)
class RandomWeights:
    """Every tensor of a converted checkpoint, random, made when it is asked for.

    Weights have a standard deviation of fan-in ** -0.5, so that activations neither grow nor
    fade from layer to layer. Packed weights are random bits, which is the quickest way.

    Attributes:
        config: the model's.
        bits: of the decoder's matrices, 4 or 8; None leaves them in `dtype`.
        dtype: of everything else.
    """

    config: LlavaConfig
    bits: int | None
    dtype: mx.Dtype

    def __post_init__(self) -> None:
        if self.bits and (size := self.ungrouped) is not None:
            raise InputError(
                f"rows of {size} weights do not divide into groups of {GROUP_SIZE}; use "
                "--quantize none, or other sizes"
            )

    @property
    def ungrouped(self) -> int | None:
        """A row length of the decoder's matrices that quantisation groups do not divide."""
        rows = {s[-1] for n, s in self.shapes.items() if n.startswith("language_model.")}
        return next((size for size in sorted(rows) if size % GROUP_SIZE), None)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        unread = optional_tensors(self.config)
        return {n: s for n, s in expected_tensors(self.config).items() if n not in unread}

    def read(self, prefix: str) -> Weights:
        """As `Shelf.read`: by the model's names, the prefix taken off."""
        from mlx_corematching.models.shelf import joined

        made: Weights = {}
        for name, shape in self.shapes.items():
            if name.startswith(prefix):
                made.update(self.tensors(name, shape))
        return {name.removeprefix(prefix): array for name, array in joined(made).items()}

    def tensors(self, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, mx.array]]:
        """What is stored for one tensor."""
        import mlx.core as mx

        # A look-up takes one row and adds nothing up.
        fan_in = 1 if "embed" in name else shape[-1]
        size = fan_in**-0.5
        if len(shape) == 1:
            centre = float("norm" in name and name.endswith("weight"))
            yield name, mx.full(shape, centre, self.dtype)
        elif self.bits and name.startswith("language_model."):
            # Whole numbers from 0 to 2^bits - 1, spread evenly around 0.
            top = 2**self.bits - 1
            step = size * (12 / ((top + 1) ** 2 - 1)) ** 0.5
            words = _random_words((shape[0], shape[1] * self.bits // 32))
            groups = (shape[0], shape[1] // GROUP_SIZE)
            module = name.removesuffix(".weight")
            yield name, words
            yield f"{module}.scales", mx.full(groups, step, self.dtype)
            yield f"{module}.biases", mx.full(groups, -step * top / 2, self.dtype)
        else:
            if name.endswith("patch_embedding.weight"):
                size = (shape[1] * shape[2] * shape[3]) ** -0.5
            yield name, mx.random.normal(shape, self.dtype, scale=size)


def _random_words(shape: tuple[int, int]) -> mx.array:
    """Random uint32, a gigabyte a second or more."""
    import mlx.core as mx
    import numpy as np

    words = np.frombuffer(np.random.default_rng().bytes(4 * shape[0] * shape[1]), np.uint32)
    return mx.array(words.reshape(shape))


def complete_config(config: Mapping[str, Any], bits: int | None) -> LlavaConfig:
    """The config of a converted checkpoint of that shape."""
    whole = {**config, "corematching": {"format": 1, "down_proj": "neuron_major"}}
    if bits:
        whole["quantization"] = {"group_size": GROUP_SIZE, "bits": bits}
    return LlavaConfig.from_dict(whole)


def random_model(weights: RandomWeights) -> Llava:
    """A model in memory; nothing is read from disk."""
    import mlx.core as mx

    from mlx_corematching.core.quantized import on_cpu
    from mlx_corematching.loading import fill_model
    from mlx_corematching.models.llava import Llava

    model = Llava(weights.config)
    fill_model(model, weights.read, mx.float32 if weights.bits and on_cpu() else None)
    return model


def write_checkpoint(folder: Path, weights: RandomWeights) -> None:
    """A converted checkpoint without a tokenizer, a file a layer, so that memory stays small."""
    import mlx.core as mx

    from mlx_corematching.models.shards import INDEX

    files: dict[str, list[str]] = {}
    for name in weights.shapes:
        layer = name.removeprefix(f"{DECODER}.layers.").partition(".")[0]
        where = f"layer-{int(layer):03d}" if layer.isdigit() else "rest"
        files.setdefault(f"model-{where}.safetensors", []).append(name)
    index: dict[str, str] = {}
    for file, names in files.items():
        arrays = {
            part: array
            for name in names
            for part, array in weights.tensors(name, weights.shapes[name])
        }
        mx.save_safetensors(str(folder / file), arrays, metadata={"format": "mlx"})
        index |= dict.fromkeys(arrays, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(weights.config.raw))

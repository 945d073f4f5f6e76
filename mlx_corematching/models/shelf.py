"""A converted checkpoint's weights on disk, read when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from mlx_corematching.models.tensors import unjoined

Weights = dict[str, mx.array]


class Shelf:
    """Where each tensor lies. Every reading is a new one: nothing is kept between two.

    Args:
        files: the safetensors file of each stored tensor.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)

    def read(self, prefix: str = "") -> Weights:
        """The tensors whose names begin so, the prefix taken off, by the model's own names.

        Matrices that the model holds as one are joined. Lazy: a tensor's bytes are read when
        it is evaluated, and go when it does.
        """
        names = [name for name in self._files if name.startswith(prefix)]
        found: Weights = {}
        for file in sorted({self._files[name] for name in names}):
            arrays = mx.load(str(file))
            assert isinstance(arrays, dict)
            found.update({name: arrays[name] for name in names if self._files[name] == file})
        return {name.removeprefix(prefix): array for name, array in joined(found).items()}


def joined(weights: Weights) -> Weights:
    """A checkpoint's tensors by the model's names, those joined that the model holds as one."""
    result: Weights = {}
    for name, array in weights.items():
        whole, parts = unjoined(name)
        if whole in result:
            continue
        result[whole] = mx.concatenate([weights[part] for part in parts]) if parts else array
    return result

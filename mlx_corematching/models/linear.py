"""The decoder's linear layers."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_corematching.core.quantized import quantized_product


class Linear(nn.Linear):
    """`nn.Linear` whose quantised form is the one below."""

    def to_quantized(  # type: ignore[override]
        self, group_size: int = 64, bits: int = 4, mode: str = "affine", **_: Any
    ) -> QuantizedLinear:
        return QuantizedLinear.from_linear(self, group_size, bits, mode)


class QuantizedLinear(nn.QuantizedLinear):
    """`nn.QuantizedLinear` that is quick with many rows on every backend."""

    def __call__(self, x: mx.array) -> mx.array:
        out = quantized_product(
            x,
            self["weight"],
            self["scales"],
            self["biases"],
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
        )
        return out + self["bias"] if "bias" in self else out

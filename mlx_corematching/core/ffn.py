"""The decoder's FFN with neuron-major weights, dense and compact.

All three matrices are [neurons, hidden]: row n is all of neuron n, and quantisation groups run
along it. Choosing neurons is then a row gather on the stored weights, without re-quantising.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu


class NeuronMatrix(nn.Module):
    """A float matrix with one neuron a row: `weight` is [neurons, hidden]."""

    def __init__(self, weight: mx.array) -> None:
        super().__init__()
        self.weight = weight

    @property
    def neurons(self) -> int:
        return self.weight.shape[0]

    def project(self, x: mx.array) -> mx.array:
        """[..., hidden] to [..., neurons]."""
        return x @ self.weight.T

    def combine(self, activations: mx.array) -> mx.array:
        """[..., neurons] to [..., hidden]."""
        return activations @ self.weight

    def take(self, neurons: mx.array) -> NeuronMatrix:
        """The rows of the given neurons, in that order."""
        return NeuronMatrix(self.weight[neurons])

    def above(self, other: NeuronMatrix) -> NeuronMatrix:
        """These rows, then the other's, in one matrix."""
        return NeuronMatrix(mx.concatenate([self.weight, other.weight]))

    def to_quantized(
        self, group_size: int = 64, bits: int = 4, mode: str = "affine", **_: Any
    ) -> QuantizedNeuronMatrix:
        weight, scales, biases = mx.quantize(self.weight, group_size, bits, mode=mode)
        return QuantizedNeuronMatrix(weight, scales, biases, group_size, bits)


class QuantizedNeuronMatrix(NeuronMatrix):
    """The same with packed rows, and one scale and bias a group: [neurons, hidden / group_size]."""

    def __init__(
        self, weight: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int
    ) -> None:
        super().__init__(weight)
        self.scales = scales
        self.biases = biases
        self.group_size = group_size
        self.bits = bits

    def project(self, x: mx.array) -> mx.array:
        return self._product(x, transpose=True)

    def combine(self, activations: mx.array) -> mx.array:
        return self._product(activations, transpose=False)

    def take(self, neurons: mx.array) -> QuantizedNeuronMatrix:
        return self._with(self.weight[neurons], self.scales[neurons], self.biases[neurons])

    def above(self, other: NeuronMatrix) -> QuantizedNeuronMatrix:
        return self._with(
            mx.concatenate([self.weight, other.weight]),
            mx.concatenate([self.scales, other.scales]),
            mx.concatenate([self.biases, other.biases]),
        )

    def _product(self, x: mx.array, transpose: bool) -> mx.array:
        return mx.quantized_matmul(
            x,
            self.weight,
            self.scales,
            self.biases,
            transpose=transpose,
            group_size=self.group_size,
            bits=self.bits,
        )

    def _with(self, weight: mx.array, scales: mx.array, biases: mx.array) -> QuantizedNeuronMatrix:
        return QuantizedNeuronMatrix(weight, scales, biases, self.group_size, self.bits)


class FeedForward(nn.Module):
    """`y = W_down (silu(W_gate x) * (W_up x))`, every neuron."""

    def __init__(self, hidden: int, neurons: int) -> None:
        super().__init__()
        self.gate_proj = NeuronMatrix(mx.zeros((neurons, hidden)))
        self.up_proj = NeuronMatrix(mx.zeros((neurons, hidden)))
        self.down_proj = NeuronMatrix(mx.zeros((neurons, hidden)))

    @property
    def neurons(self) -> int:
        return self.gate_proj.neurons

    def activations(self, x: mx.array) -> mx.array:
        """[..., hidden] to [..., neurons]."""
        return swiglu(self.gate_proj.project(x), self.up_proj.project(x))

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj.combine(self.activations(x))

    def compact(self, neurons: mx.array) -> CompactFeedForward:
        """An FFN of the given neurons alone; nothing is computed before it is first used."""
        return CompactFeedForward(
            self.gate_proj.take(neurons).above(self.up_proj.take(neurons)),
            self.down_proj.take(neurons),
        )


class CompactFeedForward:
    """An FFN of chosen neurons, gate and up side by side in one product.

    It belongs to a conversation, not to the model, so it is no `nn.Module`.
    """

    def __init__(self, gate_up: NeuronMatrix, down: NeuronMatrix) -> None:
        self.gate_up = gate_up
        self.down = down

    @property
    def neurons(self) -> int:
        return self.down.neurons

    @property
    def nbytes(self) -> int:
        parts = (*self.gate_up.parameters().values(), *self.down.parameters().values())
        return sum(array.nbytes for array in parts)

    def __call__(self, x: mx.array) -> mx.array:
        if self.neurons == 0:
            return mx.zeros_like(x)
        gate, up = mx.split(self.gate_up.project(x), 2, axis=-1)
        return self.down.combine(swiglu(gate, up))

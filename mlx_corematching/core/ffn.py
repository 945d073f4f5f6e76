"""The decoder's FFN with neuron-major weights, dense and compact.

All three matrices are [neurons, hidden]: row n is all of neuron n, and quantisation groups run
along it. Choosing neurons is then a row gather on the stored weights, without re-quantising.
Gate lies above up in one matrix of [2 * neurons, hidden], so that both take one product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu

from mlx_corematching.core.quantized import quantized_product


class NeuronMatrix(nn.Module):
    """A float matrix with one neuron a row: `weight` is [neurons, hidden]."""

    def __init__(self, weight: mx.array) -> None:
        super().__init__()
        self.weight = weight

    @property
    def rows(self) -> int:
        return self.weight.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    @property
    def arrays(self) -> list[mx.array]:
        """What the matrix is stored in."""
        return [self.weight]

    def project(self, x: mx.array) -> mx.array:
        """[..., hidden] to [..., neurons]."""
        return x @ self.weight.T

    def combine(self, activations: mx.array) -> mx.array:
        """[..., neurons] to [..., hidden]."""
        return activations @ self.weight

    def take(self, rows: mx.array) -> NeuronMatrix:
        """The given rows, in that order."""
        return NeuronMatrix(self.weight[rows])

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

    @property
    def arrays(self) -> list[mx.array]:
        return [self.weight, self.scales, self.biases]

    def project(self, x: mx.array) -> mx.array:
        return self._product(x, transpose=True)

    def combine(self, activations: mx.array) -> mx.array:
        return self._product(activations, transpose=False)

    def take(self, rows: mx.array) -> QuantizedNeuronMatrix:
        weight, scales, biases = (array[rows] for array in self.arrays)
        return QuantizedNeuronMatrix(weight, scales, biases, self.group_size, self.bits)

    def _product(self, x: mx.array, transpose: bool) -> mx.array:
        return quantized_product(
            x,
            self.weight,
            self.scales,
            self.biases,
            transpose=transpose,
            group_size=self.group_size,
            bits=self.bits,
        )


class FeedForward(nn.Module):
    """`y = W_down (silu(W_gate x) * (W_up x))`, every neuron."""

    def __init__(self, gate_up: NeuronMatrix, down: NeuronMatrix) -> None:
        super().__init__()
        self.gate_up_proj = gate_up
        self.down_proj = down

    @classmethod
    def empty(cls, hidden: int, neurons: int) -> FeedForward:
        """One whose weights are loaded afterwards."""
        return cls(
            NeuronMatrix(mx.zeros((2 * neurons, hidden))), NeuronMatrix(mx.zeros((neurons, hidden)))
        )

    @property
    def neurons(self) -> int:
        return self.down_proj.rows

    def opened(self) -> FeedForward:
        """The FFN with its weights at hand: itself, as they are in memory."""
        return self

    def activations(self, x: mx.array) -> mx.array:
        """[..., hidden] to [..., neurons]."""
        return _gated(self.gate_up_proj, x)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj.combine(self.activations(x))

    def compact(self, neurons: mx.array) -> CompactFeedForward:
        """An FFN of the given neurons alone; nothing is computed before it is first used."""
        both = mx.concatenate([neurons, neurons + self.neurons])
        return CompactFeedForward(self.gate_up_proj.take(both), self.down_proj.take(neurons))


class StreamedFeedForward(nn.Module):
    """An FFN that stays on disk: `opened` gives one whose weights are read as they are used.

    Args:
        neurons: how many it has.
        read: makes that FFN, its weights unevaluated, anew at each call.
    """

    def __init__(self, neurons: int, read: Callable[[], FeedForward]) -> None:
        super().__init__()
        self.neurons = neurons
        self._read = read

    def opened(self) -> FeedForward:
        """The FFN with its weights at hand for as long as it is referred to."""
        return self._read()

    def __call__(self, x: mx.array) -> mx.array:
        return self.opened()(x)


class CompactFeedForward:
    """An FFN of chosen neurons.

    It belongs to a conversation, not to the model, so it is no `nn.Module`.
    """

    def __init__(self, gate_up: NeuronMatrix, down: NeuronMatrix) -> None:
        self.gate_up = gate_up
        self.down = down

    @property
    def neurons(self) -> int:
        return self.down.rows

    @property
    def nbytes(self) -> int:
        return self.gate_up.nbytes + self.down.nbytes

    @property
    def arrays(self) -> list[mx.array]:
        """The gathered weights, to be evaluated."""
        return [*self.gate_up.arrays, *self.down.arrays]

    def __call__(self, x: mx.array) -> mx.array:
        if self.neurons == 0:
            return mx.zeros_like(x)
        return self.down.combine(_gated(self.gate_up, x))


def _gated(gate_up: NeuronMatrix, x: mx.array) -> mx.array:
    gate, up = mx.split(gate_up.project(x), 2, axis=-1)
    return swiglu(gate, up)

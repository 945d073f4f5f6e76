"""Core neurons: who is activated by a token, who by a whole sentence (sections 3.1 and 3.2).

Activations are `silu(W_gate x) * (W_up x)`, of shape [tokens, neurons] in any float dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import mlx.core as mx
import numpy as np

# Positive floats sort like the integers that their bits spell.
_BITS = {mx.float32: mx.int32, mx.float16: mx.int16, mx.bfloat16: mx.int16}
_STRENGTH_BITS = 31


def activated(activations: mx.array) -> mx.array:
    """Γ(x): which neurons have an activation above 0. Bool [tokens, neurons]."""
    return _magnitude(activations) > 0


def token_core(activations: mx.array, rho: float) -> mx.array:
    """C_ρ(x): each token's ceil(ρ·|Γ(x)|) largest positive activations. Bool [tokens, neurons].

    Exactly so many, with ties to the lower index. The smallest activation that still belongs
    is found bit by bit, by counting: a tenth of the time of a sort, and exact.
    """
    magnitude = _magnitude(activations)
    dtype = magnitude.dtype
    size = (magnitude > 0).sum(axis=-1, keepdims=True)
    wanted = _sizes(rho, magnitude.shape[-1])[size]
    threshold = mx.zeros_like(size, dtype=dtype)
    for bit in reversed(range(8 * dtype.size - 1)):
        higher = threshold | mx.array(1 << bit, dtype)
        enough = (magnitude >= higher).sum(axis=-1, keepdims=True) >= wanted
        threshold = mx.where(enough, higher, threshold)
    above = magnitude > threshold
    level = magnitude == threshold
    room = wanted - above.sum(axis=-1, keepdims=True)
    return above | (level & (mx.cumsum(level.astype(mx.int32), axis=-1) <= room))


@dataclass
class NeuronCounts:
    """What one layer has seen of a sentence so far.

    Attributes:
        frequency: f(n), the number of tokens that have n among their token-wise core neurons.
            Int32 [neurons].
        strength: the sum of n's positive activations over the same tokens. Float32 [neurons].
        tokens: how many tokens were counted.
    """

    frequency: mx.array
    strength: mx.array
    tokens: int = 0

    @classmethod
    def empty(cls, neurons: int) -> NeuronCounts:
        return cls(mx.zeros(neurons, mx.int32), mx.zeros(neurons, mx.float32))

    def add(self, activations: mx.array, rho: float) -> None:
        """Count more tokens; activations are [tokens, neurons]."""
        core = token_core(activations, rho)
        self.frequency = self.frequency + core.sum(axis=0)
        positive = mx.maximum(activations.astype(mx.float32), 0)
        self.strength = self.strength + positive.sum(axis=0)
        self.tokens += activations.shape[0]

    def sentence_core(self, count: int) -> mx.array:
        """C(s): the `count` neurons of highest frequency, ascending. Int32 [count].

        Ties go to the larger strength, then to the lower index. The three are packed into one
        integer a neuron, so that no order is left to the sort.
        """
        neurons = self.frequency.size
        index_bits = max(1, (neurons - 1).bit_length())
        if self.tokens >= 1 << (63 - _STRENGTH_BITS - index_bits):
            raise ValueError(f"{self.tokens} tokens are too many to count")
        key = self.frequency.astype(mx.int64) << (_STRENGTH_BITS + index_bits)
        key = key | (self.strength.view(mx.int32).astype(mx.int64) << index_bits)
        key = key | mx.arange(neurons - 1, -1, -1, dtype=mx.int64)
        if count >= neurons:
            return mx.arange(neurons, dtype=mx.int32)
        if count == 0:
            return mx.zeros(0, mx.int32)
        chosen = mx.argpartition(-key, count - 1)[:count]
        return mx.sort(chosen).astype(mx.int32)


def _magnitude(activations: mx.array) -> mx.array:
    """The bits of positive activations as an integer that sorts alike; 0 for the rest."""
    return mx.maximum(activations.view(_BITS[activations.dtype]), 0)


@lru_cache(maxsize=16)
def _sizes(rho: float, neurons: int) -> mx.array:
    """ceil(ρ·g) for every g from 0 to `neurons`. Int32 [neurons + 1]."""
    share = Fraction(str(rho))  # the decimal that was written, not its nearest binary fraction
    g = np.arange(neurons + 1, dtype=object)
    sizes = mx.array((-(-g * share.numerator // share.denominator)).astype(np.int32))
    mx.eval(sizes)
    return sizes

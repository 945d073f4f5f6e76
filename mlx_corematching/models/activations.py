"""Activation functions by the names that transformers' configs use."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

_FUNCTIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": nn.gelu,
    "quick_gelu": nn.gelu_fast_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "gelu_new": nn.gelu_approx,
    "relu": nn.relu,
    "silu": nn.silu,
}


def activation(name: str) -> Callable[[mx.array], mx.array]:
    return _FUNCTIONS[name]

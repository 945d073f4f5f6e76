"""Rotary position embeddings at any positions."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from mlx_lm.models.rope_utils import initialize_rope

from mlx_corematching.models.config import TextConfig

Positions = list[int] | range
Rope = Callable[..., mx.array]


def make_rope(config: TextConfig) -> Rope:
    """RoPE of the checkpoint's kind, over half-split (not interleaved) head dimensions."""
    return initialize_rope(
        config.head_dim,
        config.rope_theta,
        traditional=False,
        scaling_config=config.rope_scaling,
        max_position_embeddings=config.max_position_embeddings,
    )


def offsets(positions: Positions) -> int | mx.array:
    """What `rotate` needs to know of the positions: the first where they run on, else all."""
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions):
        return first
    return mx.array(list(positions), mx.int32)


def rotate(rope: Rope, x: mx.array, offset: int | mx.array) -> mx.array:
    """Rotate each token by its position; x is [1, heads, tokens, head_dim], as is the result.

    RoPE takes one offset a batch row, so tokens that do not run on become a batch of one each.
    """
    if isinstance(offset, int):
        return rope(x, offset=offset)
    return rope(x.transpose(2, 1, 0, 3), offset=offset).transpose(2, 1, 0, 3)

"""The decoder's forward pass for training: a picture read once, many rows of turns beside it.

The same sums as transformers' LlamaModel over [prefix, row] for every row, with the prefix shared
by a picture's rows; the tests hold the two against each other.
"""

import torch
import torch.nn.functional as F
from transformers import LlamaModel

from .turns import Rows


def hidden_states(
    model: LlamaModel, prefix: torch.Tensor, rows: torch.Tensor, packed: Rows, early: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows' last hidden states; the rows' and the prefix's after ``early`` layers.

    ``prefix`` [B, P, D] and ``rows`` [B * R, T, D] are input embeddings.
    """
    heads = model.config.num_attention_heads
    _, length, _ = prefix.shape
    at_prefix = torch.arange(length, device=prefix.device)[None]
    rotate_prefix = _rotation(model, prefix, at_prefix)
    rotate_rows = _rotation(model, rows, packed.position + length)
    mask = _mask(packed, length)
    for number, layer in enumerate(model.layers, start=1):
        attention = layer.self_attn
        q, k, v = _project(attention, layer.input_layernorm(prefix), heads)
        q, k = _rotate(q, rotate_prefix), _rotate(k, rotate_prefix)
        rq, rk, rv = _project(attention, layer.input_layernorm(rows), heads)
        rq, rk = _rotate(rq, rotate_rows), _rotate(rk, rotate_rows)
        prefix = prefix + attention.o_proj(
            _merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        )
        keys = torch.cat([k.repeat_interleave(packed.per_picture, 0), rk], dim=2)
        values = torch.cat([v.repeat_interleave(packed.per_picture, 0), rv], dim=2)
        rows = rows + attention.o_proj(
            _merge(F.scaled_dot_product_attention(rq, keys, values, attn_mask=mask))
        )
        prefix = prefix + layer.mlp(layer.post_attention_layernorm(prefix))
        rows = rows + layer.mlp(layer.post_attention_layernorm(rows))
        if number == early:
            early_rows, early_prefix = rows, prefix
    return model.norm(rows), early_rows, early_prefix


def _mask(packed: Rows, length: int) -> torch.Tensor:
    """[B * R, 1, T, P + T]: the whole prefix, and what came before in the same turn."""
    turn = packed.turn
    own = (turn[:, :, None] == turn[:, None, :]).tril()
    return torch.cat([own.new_ones(*turn.shape, length), own], dim=2)[:, None]


def _project(attention, x: torch.Tensor, heads: int) -> list[torch.Tensor]:
    batch, length, _ = x.shape
    return [
        proj(x).view(batch, length, heads, -1).transpose(1, 2)
        for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]


def _merge(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)


def _rotation(
    model: LlamaModel, x: torch.Tensor, position: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = model.rotary_emb(x, position)
    return cos[:, None], sin[:, None]


def _rotate(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cos, sin = rotation
    left, right = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-right, left], dim=-1) * sin.to(x.dtype)

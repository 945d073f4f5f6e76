"""Where training starts: attention that already matches and copies, eyes that already see edges.

Attention starts with keys like queries and outputs that undo values, so that a token attends to
what is like itself and takes it over ("mimetic initialisation", Trockman & Kolter 2023, arXiv
2305.09828); patches start as the principal components of real patches, positions as waves.
From random weights the same circuits appear too, hours later.
"""

import math

import numpy as np
import torch
from torch import nn

from ..scenes import GRID, PATCH


@torch.no_grad()
def attention(
    q: nn.Linear, k: nn.Linear, v: nn.Linear, o: nn.Linear, heads: int, match: float, copy: float
) -> None:
    """``match``: how strongly like attends to like; ``copy``: how much of it is taken over."""
    width = q.in_features
    per_head = width // heads
    for head in range(heads):
        rows = slice(head * per_head, (head + 1) * per_head)
        basis = torch.linalg.qr(torch.randn(width, per_head)).Q.T
        q.weight[rows], k.weight[rows] = match * basis, match * basis
        basis = torch.linalg.qr(torch.randn(width, per_head)).Q.T
        v.weight[rows], o.weight[:, rows] = basis, copy * basis.T
    for projection in (q, k, v, o):
        projection.weight += 0.01 * torch.randn_like(projection.weight)


@torch.no_grad()
def far_match(q: nn.Linear, k: nn.Linear, head: int, heads: int, match: float) -> None:
    """A head in which a token finds its like at any distance: only RoPE's slow pairs take part."""
    per_head = q.in_features // heads
    first = head * per_head
    half = per_head // 2
    slow = torch.arange(half * 9 // 16, half)
    rows = torch.cat([first + slow, first + half + slow])
    basis = torch.linalg.qr(torch.randn(q.in_features, len(rows))).Q.T
    for projection in (q, k):
        projection.weight[first : first + per_head] = 0.01 * torch.randn(per_head, q.in_features)
        projection.weight[rows] = match * basis


def decoder(model) -> None:
    heads = model.config.num_attention_heads
    for layer in model.layers:
        part = layer.self_attn
        attention(part.q_proj, part.k_proj, part.v_proj, part.o_proj, heads, 0.7, 0.5)
    nn.init.normal_(model.embed_tokens.weight, std=0.05)
    for head in range(heads // 2):  # a question's "cat" looks for the patches that say "cat"
        far_match(
            model.layers[0].self_attn.q_proj, model.layers[0].self_attn.k_proj, head, heads, 1.7
        )


@torch.no_grad()
def tower(model, patches: np.ndarray) -> None:
    """``patches`` [N, 3, PATCH, PATCH] are normalised pixels of real pictures."""
    core = getattr(model, "vision_model", model)
    for layer in core.encoder.layers:
        part = layer.self_attn
        attention(
            part.q_proj,
            part.k_proj,
            part.v_proj,
            part.out_proj,
            model.config.num_attention_heads,
            0.7,
            0.4,
        )
    width = model.config.hidden_size
    flat = patches.reshape(len(patches), -1)
    values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
    keep = np.argsort(values)[::-1][:width]
    components = vectors[:, keep].T / np.sqrt(values[keep] + 1e-4)[:, None] ** 0.75
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
    scale = 1 / np.std(flat @ components.T)
    weight = torch.from_numpy((rotation @ components * scale).astype(np.float32))
    core.embeddings.patch_embedding.weight.copy_(weight.view(width, 3, PATCH, PATCH))
    core.embeddings.position_embedding.weight.copy_(0.7 * _waves(width))


def _waves(width: int) -> torch.Tensor:
    """[1 + GRID * GRID, width]: sines and cosines over rows and columns; none for the class."""
    quarter = width // 4
    frequency = math.pi / GRID * torch.logspace(0, math.log2(GRID / 2), quarter, base=2)
    at = torch.arange(GRID)[:, None] * frequency
    along = torch.cat([at.sin(), at.cos()], dim=1)
    grid = torch.cat([along[:, None].expand(-1, GRID, -1), along[None].expand(GRID, -1, -1)], dim=2)
    return torch.cat([torch.zeros(1, width), grid.reshape(GRID * GRID, width)])

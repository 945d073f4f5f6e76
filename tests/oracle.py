"""The method in numpy, written from its definitions and not from the implementation.

Everything is a plain loop over tokens, neurons and layers. The definitions are those of
CoreMatching (arXiv 2505.19235) as the README's section on the method states them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal

import mlx.core as mx
import numpy as np


def ceil_share(share: float, of: int) -> int:
    return int((Decimal(str(share)) * of).to_integral_value(ROUND_CEILING))


def round_share(share: float, of: int) -> int:
    return int((Decimal(str(share)) * of).to_integral_value(ROUND_HALF_EVEN))


def activated(a: np.ndarray) -> set[int]:
    """Γ(x) = { n : a_n > 0 }, for one token."""
    return {n for n in range(len(a)) if a[n] > 0}


def token_core(a: np.ndarray, rho: float) -> set[int]:
    """The ceil(ρ·|Γ(x)|) largest of the positive activations; ties to the lower index."""
    ranked = sorted(activated(a), key=lambda n: (-float(a[n]), n))
    return set(ranked[: ceil_share(rho, len(ranked))])


def frequency(rows: np.ndarray, rho: float) -> np.ndarray:
    """f(n): how many of the tokens have n among their token-wise core neurons."""
    counts = np.zeros(rows.shape[1], int)
    for a in rows:
        for n in token_core(a, rho):
            counts[n] += 1
    return counts


def sentence_core(rows: np.ndarray, rho: float, beta: float) -> list[int]:
    """The round(β·I) neurons of highest f; ties to the larger positive sum, then lower index."""
    f = frequency(rows, rho)
    strength = np.zeros(rows.shape[1], np.float32)
    for a in rows.astype(np.float32):
        strength += np.where(a > 0, a, np.float32(0))
    ranked = sorted(range(rows.shape[1]), key=lambda n: (-f[n], -float(strength[n]), n))
    return sorted(ranked[: round_share(beta, rows.shape[1])])


def scores(image_rows: np.ndarray, core: list[int]) -> list[int]:
    """|Γ(x) ∩ C(s)| for each image token."""
    return [len(activated(a) & set(core)) for a in image_rows]


def knee(values: list[int]) -> int | None:
    """The index farthest from the chord of the sorted curve; None if none leaves the chord."""
    curve = sorted(values, reverse=True)
    n = len(curve)
    if n < 3:
        return None
    x1, y1, x2, y2 = 0, curve[0], n - 1, curve[-1]
    length = math.hypot(x2 - x1, y2 - y1)
    distance = [
        abs((x2 - x1) * (y1 - y) - (x1 - x) * (y2 - y1)) / length for x, y in enumerate(curve)
    ]
    best = max(range(n), key=lambda i: (round(distance[i], 9), -i))
    return best if distance[best] > 1e-9 else None


def core_tokens(values: list[int]) -> list[int]:
    """Image tokens that score at least as much as the knee; all where there is no knee."""
    bend = knee(values)
    if bend is None:
        return list(range(len(values)))
    level = sorted(values, reverse=True)[bend]
    return [i for i, value in enumerate(values) if value >= level]


# --- a whole decoder, for the logits of a sparse decode step -------------------------------


def _array(value: mx.array) -> np.ndarray:
    return np.array(value.astype(mx.float32)).astype(np.float64)


def _matrix(module: object) -> np.ndarray:
    """A linear layer's weight, [out, in], whether quantised or not."""
    if "scales" in module:
        return _array(
            mx.dequantize(
                module.weight,
                module.scales,
                module.biases,
                group_size=module.group_size,
                bits=module.bits,
            )
        )
    return _array(module.weight)


def _rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def _rope(x: np.ndarray, position: int, base: float) -> np.ndarray:
    """Rotate one head's vector by its position, in half-split layout."""
    half = len(x) // 2
    angle = position * base ** (-np.arange(half) / half)
    a, b = x[:half], x[half:]
    return np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
    )


@dataclass
class Layer:
    """What one layer keeps: keys and values by position, neurons seen, core neurons."""

    stored: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    rows: list[np.ndarray] = field(default_factory=list)
    core: list[int] | None = None


class Decoder:
    """The language model of a Llava, in float64, token by token."""

    def __init__(self, model: object) -> None:
        self.model = model.language_model
        self.text = model.config.text
        self.layers = [Layer() for _ in self.model.layers]

    def activations(self, index: int, h: np.ndarray) -> np.ndarray:
        ffn = self.model.layers[index].mlp
        gate, up = np.split(_matrix(ffn.gate_up_proj) @ h, 2)  # gate's rows come first
        return gate / (1 + np.exp(-gate)) * up

    def attend(self, index: int, h: np.ndarray, position: int) -> np.ndarray:
        block, layer = self.model.layers[index], self.layers[index]
        heads, kv = self.text.num_attention_heads, self.text.num_key_value_heads
        x = _rms(h, _array(block.input_layernorm.weight), self.text.rms_norm_eps)

        # Queries' heads come first, then keys', then values'.
        linear = block.self_attn.qkv_proj
        y = _matrix(linear) @ x
        if "bias" in linear:
            y = y + _array(linear.bias)
        q, k, v = np.split(y.reshape(heads + 2 * kv, -1), [heads, heads + kv])
        q = [_rope(head, position, self.text.rope_theta) for head in q]
        k = [_rope(head, position, self.text.rope_theta) for head in k]
        layer.stored[position] = (np.stack(k), v)
        seen = [layer.stored[p] for p in sorted(layer.stored) if p <= position]
        out = []
        for head in range(heads):
            group = head // (heads // kv)
            weights = np.array([q[head] @ keys[group] for keys, _ in seen])
            weights = (
                np.exp((weights - weights.max()) / math.sqrt(self.text.head_dim))
                if len(seen)
                else weights
            )
            weights = weights / weights.sum()
            out.append(sum(w * values[group] for w, (_, values) in zip(weights, seen, strict=True)))
        y = _matrix(block.self_attn.o_proj) @ np.concatenate(out)
        if "bias" in block.self_attn.o_proj:
            y = y + _array(block.self_attn.o_proj.bias)
        return h + y

    def feed_forward(self, index: int, h: np.ndarray, core: list[int] | None) -> np.ndarray:
        """The FFN with the core neurons alone, or all of them; also records what fired."""
        block = self.model.layers[index]
        x = _rms(h, _array(block.post_attention_layernorm.weight), self.text.rms_norm_eps)
        a = self.activations(index, x)
        if core is None:
            self.layers[index].rows.append(a)
        else:
            mask = np.zeros(len(a))
            mask[core] = 1
            a = a * mask
        return h + a @ _matrix(block.mlp.down_proj)

    def logits(self, h: np.ndarray) -> np.ndarray:
        norm = self.model.model.norm
        h = _rms(h, _array(norm.weight), self.text.rms_norm_eps)
        head = self.model.lm_head if "lm_head" in self.model else self.model.model.embed_tokens
        return _matrix(head) @ h

    def prefill(
        self, embeddings: np.ndarray, start: int, prune_after: int | None, keep: list[int]
    ) -> np.ndarray:
        """Read a prompt; after layer `prune_after` (from 1) only the `keep` rows go on.

        Returns the logits after the last token.
        """
        hidden = {start + row: h for row, h in enumerate(embeddings)}
        for index in range(len(self.layers)):
            hidden = {p: self.attend(index, h, p) for p, h in sorted(hidden.items())}
            hidden = {p: self.feed_forward(index, h, None) for p, h in hidden.items()}
            if prune_after == index + 1:
                gone = set(range(start, start + len(embeddings))) - {start + row for row in keep}
                hidden = {p: h for p, h in hidden.items() if p not in gone}
                for layer in self.layers[: index + 1]:
                    for position in gone:
                        layer.stored.pop(position, None)
        return self.logits(hidden[start + len(embeddings) - 1])

    def decode(self, token: int, position: int) -> np.ndarray:
        """One step with every layer's core neurons (all of them where `core` is None)."""
        h = _array(self.model.model.embed_tokens(mx.array([token]))[0])
        for index, layer in enumerate(self.layers):
            h = self.attend(index, h, position)
            recorded = len(layer.rows)
            h = self.feed_forward(index, h, layer.core)
            del layer.rows[recorded:]
        return self.logits(h)

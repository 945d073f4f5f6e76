"""The decoder: Llama, Mistral and Qwen2, on pruned caches and compact FFNs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_corematching.core.cache import LayerCache
from mlx_corematching.core.ffn import FeedForward, StreamedFeedForward
from mlx_corematching.core.prefill import Prefill
from mlx_corematching.models.config import TextConfig
from mlx_corematching.models.linear import Linear
from mlx_corematching.models.rope import Positions, make_rope, offsets, rotate


class Attention(nn.Module):
    def __init__(self, config: TextConfig, window: int | None) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.scale = config.head_dim**-0.5
        self.window = window
        queries, keys = self.heads * config.head_dim, self.kv_heads * config.head_dim
        # Queries, keys and values one above the other, so that they take one product.
        self.qkv_proj = Linear(config.hidden_size, queries + 2 * keys, bias=config.qkv_bias)
        self.o_proj = Linear(queries, config.hidden_size, bias=config.o_bias)
        self.rope = make_rope(config)

    def __call__(self, x: mx.array, positions: Positions, cache: LayerCache) -> mx.array:
        B, L, _ = x.shape
        qkv = self.qkv_proj(x).reshape(B, L, self.heads + 2 * self.kv_heads, -1)
        qkv = qkv.transpose(0, 2, 1, 3)
        qk, v = mx.split(qkv, [self.heads + self.kv_heads], axis=1)
        q, k = mx.split(rotate(self.rope, qk, offsets(positions)), [self.heads], axis=1)
        k, v = cache.store(k, v, positions)
        if self.window and positions[-1] - cache.positions[0] >= self.window:
            out = self._attend_window(q, k, v, positions, cache)
        else:
            mask = "causal" if L > 1 else None
            out = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=mask)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, L, -1))

    def _attend_window(
        self, q: mx.array, k: mx.array, v: mx.array, positions: Positions, cache: LayerCache
    ) -> mx.array:
        """Attend to the tokens that lie fewer than `window` positions back."""
        assert self.window
        # Positions ascend, so what the first query no longer sees is the front of the cache.
        first = bisect_right(cache.positions, positions[0] - self.window)
        k, v, mask = k[..., first:, :], v[..., first:, :], None
        if len(positions) > 1:
            back = mx.array(list(positions))[:, None] - mx.array(cache.positions[first:])[None]
            mask = (back >= 0) & (back < self.window)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=mask)


class Block(nn.Module):
    def __init__(self, config: TextConfig, window: int | None) -> None:
        super().__init__()
        self.self_attn = Attention(config, window)
        self.mlp: FeedForward | StreamedFeedForward = FeedForward.empty(
            config.hidden_size, config.intermediate_size
        )
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def attend(self, h: mx.array, positions: Positions, cache: LayerCache) -> mx.array:
        return h + self.self_attn(self.input_layernorm(h), positions, cache)

    def __call__(self, h: mx.array, positions: Positions, cache: LayerCache) -> mx.array:
        h = self.attend(h, positions, cache)
        ffn = cache.ffn or self.mlp
        return h + ffn(self.post_attention_layernorm(h))


class Decoder(nn.Module):
    """The layers between embedding and logits."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Block(config, window) for window in config.windows]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, h: mx.array, caches: Sequence[LayerCache]) -> mx.array:
        """Continue a conversation; h and the result are [1, tokens, hidden].

        Each layer runs the FFN that its cache holds, or its own.
        """
        start = caches[0].position
        positions = range(start, start + h.shape[1])
        for layer, cache in zip(self.layers, caches, strict=True):
            h = layer(h, positions, cache)
        return self.norm(h)

    def prefill(self, h: mx.array, caches: Sequence[LayerCache], method: Prefill) -> mx.array:
        """Read new prompt tokens, [1, tokens, hidden], with dense FFNs.

        `method` sees each layer's activations and says which tokens go on after its prune
        layer; every cache ends up with those alone, and with the FFN to decode with.
        Returns the last token's hidden state, [1, 1, hidden].
        """
        positions: Positions = range(caches[0].position, caches[0].position + h.shape[1])
        queued = h
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True), start=1):
            cache.ffn, kept = None, None
            h = layer.attend(h, positions, cache)
            x = layer.post_attention_layernorm(h)
            if index == len(self.layers):
                # The logits need the last token alone.
                h = h[:, -1:]
            ffn = layer.mlp.opened()
            if method.watches(index):
                activations = ffn.activations(x)
                kept = method.observe(index, activations[0], cache)
            else:
                activations = ffn.activations(x[:, -h.shape[1] :])
            h = h + ffn.down_proj.combine(activations[:, -h.shape[1] :])
            cache.ffn = method.compact(layer.mlp, ffn, cache)
            del activations
            # Evaluated layer by layer, so that the large activations need not outlive theirs.
            if ffn is layer.mlp:
                # One layer is queued while another is computed, and no more than that.
                mx.async_eval(h, method.evidence(cache))
                mx.eval(queued)
                queued = h
            else:
                # Nor are a streamed layer's weights to outlive it, so it is waited for.
                compact = cache.ffn.arrays if cache.ffn and method.decodes else []
                mx.eval(h, method.evidence(cache), compact)
            del ffn
            if kept is not None:
                if index < len(self.layers):
                    h = h[:, mx.array(kept)]
                _drop(caches[:index], kept, len(positions))
                positions = [positions[row] for row in kept]
        return self.norm(h)


def _drop(caches: Sequence[LayerCache], kept: np.ndarray, new: int) -> None:
    """Leave of the `new` tokens that each cache stored last the kept rows alone."""
    for cache in caches:
        stored = cache.offset - new
        cache.keep([*range(stored), *(stored + kept).tolist()])
        # Now, so that what was dropped does not stay until the first decode step.
        mx.async_eval(cache.keys, cache.values)


class LanguageModel(nn.Module):
    """Decoder and logits, callable as mlx-lm's generation loop expects.

    Attributes:
        compute_dtype: what is computed in; None is the type of the embeddings.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.compute_dtype: mx.Dtype | None = None
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def layers(self) -> list[Block]:
        return self.model.layers

    def make_cache(self) -> list[LayerCache]:
        return [LayerCache() for _ in self.layers]

    def embed(self, ids: mx.array) -> mx.array:
        """Token ids [...] to their embeddings [..., hidden]."""
        h = self.model.embed_tokens(ids)
        return h if self.compute_dtype is None else h.astype(self.compute_dtype)

    def logits(self, h: mx.array) -> mx.array:
        """[..., hidden] to [..., vocabulary]."""
        if "lm_head" in self:
            return self.lm_head(h)
        return self.model.embed_tokens.as_linear(h)

    def __call__(self, inputs: mx.array, cache: Sequence[LayerCache]) -> mx.array:
        """Token ids [1, tokens] to logits [1, tokens, vocabulary]."""
        return self.logits(self.model(self.embed(inputs), cache))

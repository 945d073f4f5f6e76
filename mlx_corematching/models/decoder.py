"""The decoder: Llama, Mistral and Qwen2, on pruned caches and compact FFNs."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_corematching.core.cache import LayerCache
from mlx_corematching.core.ffn import FeedForward
from mlx_corematching.core.prefill import Prefill
from mlx_corematching.models.config import TextConfig
from mlx_corematching.models.rope import Positions, make_rope, offsets, rotate


class Attention(nn.Module):
    def __init__(self, config: TextConfig, window: int | None) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.scale = config.head_dim**-0.5
        self.window = window
        queries, keys = self.heads * config.head_dim, self.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.o_bias)
        self.rope = make_rope(config)

    def __call__(self, x: mx.array, positions: Positions, cache: LayerCache) -> mx.array:
        B, L, _ = x.shape
        q = self.q_proj(x).reshape(B, L, self.heads, -1).transpose(0, 2, 1, 3)
        k = self.k_proj(x).reshape(B, L, self.kv_heads, -1).transpose(0, 2, 1, 3)
        v = self.v_proj(x).reshape(B, L, self.kv_heads, -1).transpose(0, 2, 1, 3)
        offset = offsets(positions)
        q, k = rotate(self.rope, q, offset), rotate(self.rope, k, offset)
        k, v = cache.store(k, v, positions)
        out = mx.fast.scaled_dot_product_attention(
            q, k, v, scale=self.scale, mask=self._mask(positions, cache)
        )
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, L, -1))

    def _mask(self, positions: Positions, cache: LayerCache) -> str | mx.array | None:
        if self.window and positions[-1] - cache.positions[0] >= self.window:
            back = mx.array(list(positions))[:, None] - mx.array(cache.positions)[None]
            return (back >= 0) & (back < self.window)
        return "causal" if len(positions) > 1 else None


class Block(nn.Module):
    def __init__(self, config: TextConfig, window: int | None) -> None:
        super().__init__()
        self.self_attn = Attention(config, window)
        self.mlp = FeedForward(config.hidden_size, config.intermediate_size)
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
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True), start=1):
            cache.ffn = None
            h = layer.attend(h, positions, cache)
            if not method.watches(index):
                h = h + layer.mlp(layer.post_attention_layernorm(h))
                mx.async_eval(h)
                continue
            activations = layer.mlp.activations(layer.post_attention_layernorm(h))
            h = h + layer.mlp.down_proj.combine(activations)
            kept = method.observe(index, activations[0], cache)
            # Evaluated layer by layer, so that the large activations need not outlive theirs.
            mx.async_eval(h, method.evidence(cache))
            if kept is not None:
                h = h[:, mx.array(kept)]
                stored = len(cache.positions) - len(positions)
                positions = [positions[row] for row in kept]
                rows = [*range(stored), *(stored + kept).tolist()]
                for earlier in caches[:index]:
                    earlier.keep(rows)
        method.finish([layer.mlp for layer in self.layers], caches)
        return self.norm(h[:, -1:])


class LanguageModel(nn.Module):
    """Decoder and logits, callable as mlx-lm's generation loop expects."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def layers(self) -> list[Block]:
        return self.model.layers

    def make_cache(self) -> list[LayerCache]:
        return [LayerCache() for _ in self.layers]

    def logits(self, h: mx.array) -> mx.array:
        """[..., hidden] to [..., vocabulary]."""
        if "lm_head" in self:
            return self.lm_head(h)
        return self.model.embed_tokens.as_linear(h)

    def __call__(self, inputs: mx.array, cache: Sequence[LayerCache]) -> mx.array:
        """Token ids [1, tokens] to logits [1, tokens, vocabulary]."""
        return self.logits(self.model(self.model.embed_tokens(inputs), cache))

"""The vision towers: CLIP, and SigLIP, which is CLIP without class token and first layernorm."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_corematching.models.activations import activation
from mlx_corematching.models.config import VisionConfig


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel: one product on flattened patches.

    `weight` is [width, channels, patch, patch], as in the source checkpoint.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        P = config.patch_size
        self.patch = P
        self.weight = mx.zeros((config.hidden_size, config.num_channels, P, P))
        if config.patch_bias:
            self.bias = mx.zeros(config.hidden_size)

    def __call__(self, pixels: mx.array) -> mx.array:
        """[pictures, channels, size, size] to [pictures, patches, width], patches row by row."""
        B, C, H, W = pixels.shape
        P = self.patch
        x = pixels[..., : H // P * P, : W // P * P].reshape(B, C, H // P, P, W // P, P)
        x = x.transpose(0, 2, 4, 1, 3, 5).reshape(B, -1, C * P * P)
        x = x @ self.weight.reshape(self.weight.shape[0], -1).T
        return x + self.bias if "bias" in self else x


class Embeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        if config.class_token:
            self.class_embedding = mx.zeros(config.hidden_size)
        self.patch_embedding = PatchEmbedding(config)
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def __call__(self, pixels: mx.array) -> mx.array:
        x = self.patch_embedding(pixels)
        if "class_embedding" in self:
            first = mx.broadcast_to(self.class_embedding, (x.shape[0], 1, x.shape[2]))
            x = mx.concatenate([first, x], axis=1)
        return x + self.position_embedding.weight


class Attention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.scale = (width // self.heads) ** -0.5
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def __call__(self, x: mx.array) -> mx.array:
        B, L, _ = x.shape
        q, k, v = (
            projection(x).reshape(B, L, self.heads, -1).transpose(0, 2, 1, 3)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out_proj(out.transpose(0, 2, 1, 3).reshape(B, L, -1))


class MLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.act = activation(config.hidden_act)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self.act(self.fc1(x)))


class EncoderLayer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: VisionConfig, layers: int) -> None:
        super().__init__()
        self.layers = [EncoderLayer(config) for _ in range(layers)]


class VisionTransformer(nn.Module):
    """The tower up to the last feature layer: what lies above is neither built nor loaded."""

    def __init__(self, config: VisionConfig, feature_layers: Sequence[int]) -> None:
        super().__init__()
        self.feature_layers = tuple(feature_layers)
        self.embeddings = Embeddings(config)
        if config.pre_layernorm:
            self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = Encoder(config, max(feature_layers))

    def __call__(self, pixels: mx.array, keep_class_token: bool) -> mx.array:
        """Features of pictures: [pictures, channels, size, size] to [pictures, tokens, width].

        Several feature layers lie side by side along the width.
        """
        x = self.embeddings(pixels.astype(self.embeddings.patch_embedding.weight.dtype))
        if "pre_layrnorm" in self:
            x = self.pre_layrnorm(x)
        states = [x]
        for layer in self.encoder.layers:
            states.append(layer(states[-1]))
        features = mx.concatenate([states[index] for index in self.feature_layers], axis=-1)
        return features if keep_class_token else features[:, 1:]


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig, feature_layers: Sequence[int]) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(config, feature_layers)

    def __call__(self, pixels: mx.array, keep_class_token: bool) -> mx.array:
        return self.vision_model(pixels, keep_class_token)

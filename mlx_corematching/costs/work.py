"""What an answer costs: floating-point operations, and bytes read for a decoded token.

Counted are the products: linear layers and attention, a multiplication and an addition apiece.
Norms, RoPE, softmax and activation functions are left out (below one part in a thousand), and so
is choosing neurons and tokens, which compares integers. Attention counts what causality needs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from mlx_corematching.core.settings import CoreMatching
from mlx_corematching.costs.weights import Storage, Weights

if TYPE_CHECKING:
    from mlx_corematching.models.config import LlavaConfig


@dataclass(frozen=True)
class Flops:
    """Floating-point operations by where they are spent."""

    projections: int = 0
    attention: int = 0
    ffn: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(self))
        )


@dataclass(frozen=True)
class Question:
    """The size of a question: tokens of text and of pictures, image tokens kept, tokens answered.

    `kept` is what a mode that prunes tokens keeps of the image tokens.
    """

    text: int
    image: int
    kept: int
    new: int

    @property
    def prompt(self) -> int:
        return self.text + self.image

    def stored(self, settings: CoreMatching) -> int:
        """Prompt tokens that the KV cache holds after the prefill."""
        return self.text + (self.kept if settings.tokens and self.image else self.image)


class Costs:
    """The costs of one model.

    Args:
        config: its sizes.
        storage: how its weights lie in memory.
    """

    def __init__(self, config: LlavaConfig, storage: Storage) -> None:
        self.config = config
        self.storage = storage
        self.weights = Weights.of(config, storage)

    def vision_flops(self) -> int:
        """One picture through the tower, as far as it is run, and the projector."""
        vision, text = self.config.vision, self.config.text
        n, width = vision.num_positions, vision.hidden_size
        layer = 2 * n * (4 * width * width + 2 * width * vision.intermediate_size)
        layer += 4 * n * n * width
        patches = 2 * vision.grid**2 * vision.num_channels * vision.patch_size**2 * width
        inputs = width * len(self.config.feature_layers)
        projector = 2 * self.config.image_tokens * text.hidden_size * (inputs + text.hidden_size)
        return patches + self.config.vision_layers_needed * layer + projector

    def prefill_flops(
        self, question: Question, settings: CoreMatching, *, sparse: bool = False
    ) -> Flops:
        """Reading the prompt, up to the first token's logits.

        Args:
            sparse: what it would be if the FFNs above the prune layer used core neurons alone.
                Which they are is known only once the prompt has been read, so nothing does this.
        """
        text = self.config.text
        layers, hidden = text.num_hidden_layers, text.hidden_size
        total = Flops(head=2 * hidden * text.vocab_size)
        rows = question.prompt
        for index in range(1, layers + 1):
            watched = settings.neurons or (settings.tokens and index == settings.prune_layer)
            last = index == layers
            neuron = 2 * hidden * text.intermediate_size
            if sparse and index > settings.prune_layer:
                neuron = 2 * hidden * settings.core_count(text.intermediate_size)
            total += Flops(
                projections=rows * self._projections(),
                attention=2 * rows * (rows + 1) * text.num_attention_heads * text.head_dim,
                # The last layer's output is needed for one token; its activations, if they are
                # watched, for all.
                ffn=neuron * (2 * (1 if last and not watched else rows) + (1 if last else rows)),
            )
            if settings.tokens and index == settings.prune_layer:
                rows = question.stored(settings)
        return total

    def decode_flops(self, question: Question, settings: CoreMatching) -> Flops:
        """One token of the answer, the middle one."""
        text = self.config.text
        core = settings.core_count(text.intermediate_size)
        layers = text.num_hidden_layers
        return Flops(
            projections=layers * self._projections(),
            attention=round(
                4
                * layers
                * text.num_attention_heads
                * text.head_dim
                * self._seen(question, settings)
            ),
            ffn=layers * 2 * 3 * text.hidden_size * core,
            head=2 * text.hidden_size * text.vocab_size,
        )

    def answer_flops(
        self, question: Question, settings: CoreMatching, *, sparse: bool = False
    ) -> int:
        """The prefill and every token after the first."""
        prefill = self.prefill_flops(question, settings, sparse=sparse).total
        decode = self.decode_flops(question, settings).total
        return prefill + max(question.new - 1, 0) * decode

    def weight_bytes_per_token(self, settings: CoreMatching) -> int:
        """Bytes of weights read to decode a token."""
        weights = self.weights
        return weights.attention.nbytes + weights.head.nbytes + self.ffn_bytes(settings)

    def kv_bytes_per_token(self, question: Question, settings: CoreMatching) -> int:
        """Bytes of keys and values read to decode the middle token of the answer."""
        return round(self._seen(question, settings) * self.kv_bytes)

    def bytes_per_token(self, question: Question, settings: CoreMatching) -> int:
        """All bytes read to decode a token."""
        return self.weight_bytes_per_token(settings) + self.kv_bytes_per_token(question, settings)

    def ffn_bytes(self, settings: CoreMatching) -> int:
        """Bytes of all layers' FFNs as decoding uses them: dense, or compact."""
        text = self.config.text
        core = settings.core_count(text.intermediate_size)
        return self.storage.matrix_bytes(3 * core * text.hidden_size) * text.num_hidden_layers

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values, all layers."""
        text = self.config.text
        heads = 2 * text.num_key_value_heads * text.head_dim
        return text.num_hidden_layers * heads * self.storage.compute_bytes

    def _projections(self) -> int:
        text = self.config.text
        queries = text.num_attention_heads * text.head_dim
        keys = text.num_key_value_heads * text.head_dim
        return 2 * text.hidden_size * (2 * queries + 2 * keys)

    def _seen(self, question: Question, settings: CoreMatching) -> float:
        """Tokens that the middle token after the first attends to, itself included."""
        return question.stored(settings) + max(question.new, 2) / 2

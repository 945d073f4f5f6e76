"""How much memory an answer will take at its peak, before anything is loaded.

What is added up is what has to be alive at once: weights, keys and values, features, compact
FFNs, and the largest temporaries of a layer. MLX's own counter (`mx.get_peak_memory`) is what
it predicts; buffers that MLX keeps for reuse are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_corematching.core.cache import EXPECTED_TOKENS, slots
from mlx_corematching.core.quantized import UNPACK_AT_ONCE, UNPACK_FROM_ROWS
from mlx_corematching.core.settings import CoreMatching
from mlx_corematching.costs.work import Costs, Question

if TYPE_CHECKING:
    from mlx_corematching.models.config import TextConfig


@dataclass(frozen=True)
class Peak:
    """Predicted bytes at the four points where memory can be highest.

    Attributes:
        load: the weights, and what is joined of them last.
        vision: with one picture in the tower.
        prefill: with the widest layer of the prompt.
        decode: with compact FFNs and all tokens stored.
    """

    load: int
    vision: int
    prefill: int
    decode: int

    @property
    def nbytes(self) -> int:
        return max(self.load, self.vision, self.prefill, self.decode)


def predict_peak(
    costs: Costs, question: Question, settings: CoreMatching, memory: str, *, cpu: bool
) -> Peak:
    """What answering the question will hold at most.

    Args:
        memory: `resident` or `streaming`.
        cpu: whether MLX's CPU backend computes, which holds attention scores in full and
            unpacks quantised matrices.
    """
    text = costs.config.text
    layers = text.num_hidden_layers
    weights = costs.weights
    streams = memory == "streaming"
    held = weights.total.nbytes - (weights.ffn.nbytes + weights.eyes.nbytes if streams else 0)
    layer_ffn = weights.ffn.nbytes // layers
    joined = 2 * layer_ffn // 3
    embeddings = weights.embedding.nbytes + (0 if weights.tied else weights.head.nbytes)
    layer = joined + weights.attention.nbytes // layers
    load = max(held, held - embeddings + layer)

    vision = held
    features = question.image * text.hidden_size * costs.storage.compute_bytes
    if question.image:
        # A streamed tower's layers go as they have been run; some are read ahead.
        vision += _vision(costs, cpu) + features + (weights.eyes.nbytes // 4 if streams else 0)

    # A one-token answer compacts nothing.
    compacts = settings.compacts(text.intermediate_size) and question.new > 1
    compact = costs.ffn_bytes(settings) if compacts else 0
    # A streamed layer lies there whole, and its gate and up once more while they are joined.
    opened = layer_ffn + joined // 2 if streams else 0
    stored = question.stored(settings)
    wide = settings.prune_layer if stored < question.prompt else layers
    kv = costs.kv_bytes // layers
    prefill = 0
    for rows, seen in ((question.prompt, wide), (stored, layers)):
        room = slots(rows + min(question.new, EXPECTED_TOKENS))
        here = held + features + seen * room * kv + _prefill(costs, text, rows, cpu)
        here += opened + (compact * seen // layers if streams else 0)
        prefill = max(prefill, here)

    decode = held + features + compact + slots(stored + question.new) * costs.kv_bytes
    return Peak(load, vision, prefill, decode)


def _prefill(costs: Costs, text: TextConfig, rows: int, cpu: bool) -> int:
    """A layer's temporaries: projections, gate and up, activations, the residual stream."""
    size = costs.storage.compute_bytes
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    wide = 3 * text.intermediate_size + 2 * (queries + 2 * keys) + 4 * text.hidden_size
    total = rows * wide * size
    if cpu:
        total += 2 * text.num_attention_heads * rows * rows * size
        if costs.storage.bits and rows >= UNPACK_FROM_ROWS:
            # A block of a matrix, as it is cast, unpacked and multiplied.
            total += 3 * 4 * UNPACK_AT_ONCE
    return total


def _vision(costs: Costs, cpu: bool) -> int:
    """A tower layer's temporaries."""
    vision, size = costs.config.vision, costs.storage.compute_bytes
    rows = vision.num_positions
    total = rows * (2 * vision.intermediate_size + 8 * vision.hidden_size) * size
    return total + (2 * vision.num_attention_heads * rows * rows * size if cpu else 0)

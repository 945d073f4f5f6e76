"""One layer's part of a conversation: pruned keys and values, neuron counts, compact FFN."""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from mlx_corematching.core.ffn import CompactFeedForward
from mlx_corematching.core.neurons import NeuronCounts

# No more room than for so many is made for an answer that may be longer.
EXPECTED_TOKENS = 256


class LayerCache(KVCache):
    """A KV cache whose tokens keep the positions they had before any were dropped.

    Attributes:
        offset: tokens stored (mlx-lm's name).
        position: the next token's position. Larger than `offset` once tokens were dropped.
        positions: the position of each stored token, ascending.
        expected: tokens that the prompt's answer may have, as long as no room has been made for
            them. It is made at once, because making more later copies everything.
        counts: the neurons that the conversation's prompts have activated, if it counts them.
        ffn: the FFN to decode with in place of the layer's own, if there is one.
    """

    # Slots come in multiples of this: every layer's unused ones count on a small machine.
    step = 64

    keys: mx.array | None  # mlx-lm's, without a type there
    values: mx.array | None
    offset: int

    def __init__(self) -> None:
        super().__init__()
        self.expected = 0
        self.position = 0
        self.positions: list[int] = []
        self.counts: NeuronCounts | None = None
        self.ffn: CompactFeedForward | None = None

    def store(
        self, keys: mx.array, values: mx.array, positions: list[int] | range
    ) -> tuple[mx.array, mx.array]:
        """Add tokens at the given positions, and return all keys and values stored.

        Args:
            keys, values: [1, kv_heads, tokens, head_dim].
        """
        self.positions.extend(positions)
        self.position = self.positions[-1] + 1
        return self.update_and_fetch(keys, values)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Store without positions (mlx-lm's interface)."""
        old, new = self.offset, self.offset + keys.shape[2]
        if self.keys is None or self.values is None or new > self.keys.shape[2]:
            room = slots(new + min(self.expected, EXPECTED_TOKENS))
            self.expected = 0  # past those, room is made a step at a time
            self.keys = _widened(self.keys, old, keys, room)
            self.values = _widened(self.values, old, values, room)
        self.keys[..., old:new, :] = keys
        self.values[..., old:new, :] = values
        self.offset = new
        return self.keys[..., :new, :], self.values[..., :new, :]

    def keep(self, rows: list[int]) -> None:
        """Drop every stored token but those at the given ascending places. `position` stays."""
        assert self.keys is not None
        assert self.values is not None
        index = mx.array(rows, mx.int32)
        room = slots(len(rows) + self.keys.shape[2] - self.offset)
        kept_keys, kept_values = self.keys[..., index, :], self.values[..., index, :]
        self.keys = _widened(kept_keys, len(rows), kept_keys, room)
        self.values = _widened(kept_values, len(rows), kept_values, room)
        self.positions = [self.positions[row] for row in rows]
        self.offset = len(rows)

    def trim_to(self, position: int) -> None:
        """Forget every token from that position on, which becomes the next token's."""
        while self.positions and self.positions[-1] >= position:
            self.positions.pop()
        self.offset = len(self.positions)
        self.position = position

    def trim(self, n: int) -> int:
        """Forget the last n stored tokens (mlx-lm's interface); returns how many there were."""
        n = min(n, self.offset)
        if n:
            self.trim_to(self.positions[-n])
        return n

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and compact weights (counted even before they are gathered)."""
        return super().nbytes + (self.ffn.nbytes if self.ffn else 0)


def slots(tokens: int) -> int:
    """Slots that a cache has for so many tokens."""
    return -(-tokens // LayerCache.step) * LayerCache.step


def _widened(stored: mx.array | None, used: int, like: mx.array, room: int) -> mx.array:
    """The used slots and empty ones after them, [1, kv_heads, room, head_dim]."""
    B, heads, _, dim = like.shape
    empty = mx.zeros((B, heads, room - used, dim), like.dtype)
    if stored is None:
        return empty
    return mx.concatenate([stored[..., :used, :], empty], axis=2)

"""Features of pictures that were looked at before."""

from __future__ import annotations

from collections import OrderedDict

import mlx.core as mx


class FeatureCache:
    """What the decoder sees of pictures, by their content, so that one is looked at once.

    Args:
        limit: bytes of features to hold; the picture that was used longest ago goes first.
    """

    def __init__(self, limit: int = 1 << 26) -> None:
        self.limit = limit
        self._features: OrderedDict[str, mx.array] = OrderedDict()

    def __len__(self) -> int:
        return len(self._features)

    def get(self, digest: str) -> mx.array | None:
        """A picture's features [image tokens, hidden], if they are known."""
        if digest in self._features:
            self._features.move_to_end(digest)
        return self._features.get(digest)

    def put(self, digest: str, features: mx.array) -> None:
        """Remember a picture's features, unless they alone are past the limit."""
        if features.nbytes > self.limit:
            return
        self._features[digest] = features
        self._features.move_to_end(digest)
        while sum(held.nbytes for held in self._features.values()) > self.limit:
            self._features.popitem(last=False)

    def clear(self) -> None:
        self._features.clear()

"""The method at work while a prompt is read: count neurons, pick tokens, compact FFNs."""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_corematching.core.cache import LayerCache
from mlx_corematching.core.ffn import CompactFeedForward, FeedForward, StreamedFeedForward
from mlx_corematching.core.neurons import NeuronCounts
from mlx_corematching.core.settings import CoreMatching, round_share
from mlx_corematching.core.tokens import SELECTORS, LayerView, choose, knee
from mlx_corematching.errors import InputError


@dataclass
class Trace:
    """What was kept of one prompt, and why.

    Attributes:
        image_tokens: positions of the prompt's image tokens, ascending. Int [image tokens].
        kept_image_tokens: positions of those kept, ascending. Int [kept].
        scores: the image tokens' scores, or None where none were scored. [image tokens].
        knee: index of the knee in the scores sorted downwards; None without one.
    """

    image_tokens: np.ndarray
    kept_image_tokens: np.ndarray
    scores: np.ndarray | None = None
    knee: int | None = None
    _core_neurons: list[mx.array | None] = field(default_factory=list, repr=False)

    @property
    def core_neurons(self) -> list[np.ndarray | None]:
        """Each layer's core neurons, ascending; None for a layer that decodes densely."""
        return [None if index is None else np.array(index) for index in self._core_neurons]


class Prefill:
    """Follows new prompt tokens through the decoder, layer by layer.

    The decoder hands over each layer's FFN activations; in return it learns, at the prune
    layer, which of its rows go on. Settings that use no sparsity cost nothing.

    Args:
        settings: what to do.
        image_rows: which of the new tokens are image tokens, ascending. Int [image tokens].
        tokens: how many new tokens there are.
        start: the position of the first of them.
        decodes: whether a second token may be wanted, so that compact FFNs will be.

    Raises:
        InputError: the settings name an unknown selector.
    """

    def __init__(
        self,
        settings: CoreMatching,
        image_rows: np.ndarray,
        tokens: int,
        start: int = 0,
        decodes: bool = True,
    ) -> None:
        if settings.selector not in SELECTORS:
            raise InputError(
                f"there is no token selector {settings.selector!r}; there are "
                f"{', '.join(SELECTORS)}"
            )
        self.settings = settings
        self.image_rows = image_rows
        self.decodes = decodes
        self.prunes = settings.tokens and len(image_rows) > 0
        self._tokens = tokens
        self._after_image = int(image_rows[-1]) + 1 if len(image_rows) else 0
        self.trace = Trace(start + image_rows, start + image_rows)

    def watches(self, layer: int) -> bool:
        """Whether the activations of that layer, counted from 1, are needed."""
        return self.settings.neurons or (self.prunes and layer == self.settings.prune_layer)

    def observe(self, layer: int, activations: mx.array, cache: LayerCache) -> np.ndarray | None:
        """Take in a layer's activations, [tokens, neurons].

        Returns the rows that go on to the next layer, ascending, where that is not all of them.
        """
        if cache.counts is None:
            cache.counts = NeuronCounts.empty(activations.shape[-1])
        cache.counts.add(self._referred(activations), self.settings.rho)
        if not (self.prunes and layer == self.settings.prune_layer):
            return None
        return self._select(activations, cache.counts)

    def evidence(self, cache: LayerCache) -> list[mx.array]:
        """The arrays that a layer's counts consist of, to be evaluated beside its output."""
        counts = cache.counts
        return [counts.frequency, counts.strength] if counts else []

    def compact(
        self, stored: FeedForward | StreamedFeedForward, opened: FeedForward, cache: LayerCache
    ) -> CompactFeedForward | None:
        """The FFN that a layer decodes with; None for its own. Lazy: nothing is computed here.

        Args:
            stored, opened: the layer's FFN, and the same with its weights at hand.
        """
        count = self.settings.core_count(opened.neurons)
        if count == opened.neurons or cache.counts is None:
            self.trace._core_neurons.append(None)
            return None
        core = cache.counts.sentence_core(count)
        self.trace._core_neurons.append(core)
        # What is not going to be used must not hold on to weights that were read.
        source = opened if self.decodes else stored.opened()
        return source.compact(core)

    def _referred(self, activations: mx.array) -> mx.array:
        """The rows whose core neurons are counted. All three references are a prompt's end."""
        match self.settings.reference:
            case "last":
                return activations[-1:]
            case "text":
                # Counted from the end, because fewer rows arrive above the prune layer. A
                # prompt that ends in a picture has no text after it: its last token stands in.
                return activations[-max(self._tokens - self._after_image, 1) :]
        return activations

    def _select(self, activations: mx.array, counts: NeuronCounts) -> np.ndarray | None:
        # Token selection needs core neurons even where decoding uses every neuron.
        count = round_share(self.settings.beta, activations.shape[-1])
        view = LayerView(
            activations, mx.array(self.image_rows.astype(np.int32)), counts.sentence_core(count)
        )
        # The one synchronisation of a prefill: what comes next has a shape that depends on it.
        scores = np.array(SELECTORS[self.settings.selector](view))
        chosen = choose(scores, self.settings.keep_tokens)
        self.trace.scores = scores
        self.trace.knee = knee(scores) if self.settings.keep_tokens is None else None
        keep = np.ones(self._tokens, bool)
        keep[self.image_rows] = False
        keep[self.image_rows[chosen]] = True
        keep[-1] = True  # the answer is read off the last token, whatever it is
        kept = np.flatnonzero(keep)
        self.trace.kept_image_tokens = self.trace.image_tokens[keep[self.image_rows]]
        return None if keep.all() else kept

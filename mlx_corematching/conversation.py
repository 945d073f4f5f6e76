"""`PromptCache`: one conversation with a model, kept between questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_corematching.errors import InputError

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_corematching.core.cache import LayerCache
    from mlx_corematching.core.settings import CoreMatching
    from mlx_corematching.inputs.pictures import Picture


@dataclass
class PromptCache:
    """What a model has read and said so far, with what it kept of it.

    Pass the same object to `generate` again, with the next question, to go on. A follow-up
    reads only what is new: the pruned pictures stay pruned, and the neurons that the new
    question activates are added to those counted before. An empty object starts anew.

    Attributes:
        layers: each decoder layer's cache.
        ids: every token read or said, pictures expanded. [position]
        prompt_end: how many of them the last prompt ended with; what follows was said.
        pictures: the pictures among them, in order.
        features: what the decoder sees of them, [image tokens, hidden] each.
        messages: the chat so far.
        settings: what it was pruned by; one conversation has one.
    """

    layers: list[LayerCache] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    prompt_end: int = 0
    pictures: list[Picture] = field(default_factory=list)
    features: list[mx.array] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    settings: CoreMatching | None = None

    def clear(self) -> None:
        """Forget everything but the messages."""
        self.layers, self.ids, self.pictures, self.features = [], [], [], []
        self.prompt_end = 0

    @property
    def stored_tokens(self) -> int:
        """Tokens whose keys and values are kept; `len(ids)` says how many there were."""
        return self.layers[0].offset if self.layers else 0

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values, compact weights and picture features."""
        return sum(layer.nbytes for layer in self.layers) + sum(
            features.nbytes for features in self.features
        )

    def use(self, settings: CoreMatching) -> None:
        """Settle on settings; InputError if the conversation was begun with others."""
        if self.settings is not None and self.layers and settings != self.settings:
            raise InputError(
                "a conversation keeps the settings it was begun with; start a new PromptCache "
                "for others"
            )
        self.settings = settings

    def continue_with(self, ids: Sequence[int], pictures: Sequence[Picture]) -> int:
        """Roll back to where a prompt departs from what was read; that many tokens are known.

        What was dropped of a picture was chosen by the question that came with it, so a prompt
        is continued only if it begins with all of the last one; else everything is forgotten
        and the answer is 0.
        """
        known = 0
        for mine, theirs in zip(self.ids, ids[:-1], strict=False):
            if mine != theirs:
                break
            known += 1
        same = all(
            mine.digest == theirs.digest
            for mine, theirs in zip(self.pictures, pictures, strict=False)
        )
        if known < self.prompt_end or not same:
            known = 0
        if known == 0:
            self.clear()
            return 0
        del self.ids[known:]
        for layer in self.layers:
            layer.trim_to(known)
        return known

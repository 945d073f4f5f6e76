"""One prompt's way through the model: token ids and pictures in, token ids out.

`generate` puts text around it and the bench puts a clock; both run exactly this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mlx_corematching.errors import InputError

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

    from mlx_corematching.conversation import PromptCache
    from mlx_corematching.core.prefill import Trace
    from mlx_corematching.core.settings import CoreMatching
    from mlx_corematching.inputs.pictures import Picture
    from mlx_corematching.inputs.prompts import Prompt
    from mlx_corematching.models.llava import Llava

    Sampler = Callable[[mx.array], mx.array]
    PixelsOf = Callable[[Picture], np.ndarray]


class Run:
    """One prompt on its way through the model, and the tokens that answer it.

    Args:
        model: what answers.
        settings: how sparsely.
        conversation: where what was read is kept; it is continued if the prompt continues it.
        began: when the question was asked, by time.perf_counter; now if left out.

    Attributes:
        vision_s: seconds in the vision tower and the projector.
        prefill_s: seconds in the decoder until the first token.
        first_token_s: seconds since `began` until the first token.
        trace: what was kept of the prompt.

    Raises:
        InputError: the model, as it is loaded, cannot follow the settings.
    """

    vision_s = prefill_s = first_token_s = 0.0
    trace: Trace

    def __init__(
        self,
        model: Llava,
        settings: CoreMatching,
        conversation: PromptCache,
        *,
        began: float | None = None,
    ) -> None:
        settings.check(model.config.text.num_hidden_layers)
        check_memory_mode(model.memory, settings, model.config.text.intermediate_size)
        self.model = model
        self.settings = settings
        self.conversation = conversation
        self._began = time.perf_counter() if began is None else began
        self._length = 0
        self._first: mx.array | None = None

    def read(
        self,
        prompt: Prompt,
        pictures: Sequence[Picture],
        pixels: PixelsOf,
        sampler: Sampler,
        *,
        limit: int = 256,
    ) -> int:
        """Read the prompt, or what of it is new; the first token of the answer.

        Args:
            prompt: its token ids.
            pictures: its pictures, in order.
            pixels: from a picture to what the tower takes, float32 [3, size, size].
            sampler: from log probabilities [1, vocabulary] to token ids [1].
            limit: how many tokens may be asked for, this one included.
        """
        import mlx.core as mx
        import numpy as np

        from mlx_corematching.core.prefill import Prefill

        model, conversation = self.model, self.conversation
        known = conversation.continue_with(prompt.ids, pictures)
        if not conversation.layers:
            conversation.layers = model.language_model.make_cache()
        for layer in conversation.layers:
            layer.expected = limit
        conversation.ids = list(prompt.ids)
        self._length = len(prompt.ids)
        try:
            features = [
                self._look(picture, pixels) for picture in pictures[len(conversation.features) :]
            ]
            began = time.perf_counter()
            image_rows = np.array(prompt.image_index, np.int64)
            image_rows = image_rows[image_rows >= known] - known
            h = model.embed(prompt.ids[known:], image_rows, features)
            method = Prefill(self.settings, image_rows, h.shape[1], known, decodes=limit > 1)
            logits = model.prefill(h, conversation.layers, method)
            logprobs = logits - mx.logsumexp(logits)
            self._first = sampler(logprobs[None])
            finite = mx.isfinite(logprobs).all()
            mx.eval(self._first, finite)
        except BaseException:
            # Half-read prompts are no conversation.
            conversation.clear()
            raise
        if not finite.item():
            conversation.clear()
            raise InputError(_not_finite(model))
        now = time.perf_counter()
        self.prefill_s, self.first_token_s = now - began, now - self._began
        conversation.features += features
        conversation.pictures = list(pictures)
        conversation.prompt_end = self._length
        self.trace = method.trace
        return self._first.tolist()[0]  # type: ignore[index, return-value]

    def tokens(self, limit: int, sampler: Sampler) -> Iterator[int]:
        """The tokens after the first, at most so many. Queued one ahead of what is handed out.

        mlx-lm's `generate_step` does the same, but computes one token more than it hands out.
        """
        import mlx.core as mx

        layers = self.conversation.layers

        def step(token: mx.array) -> mx.array:
            logits = self.model.language_model(token[None], layers)[:, -1]
            token = sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
            mx.async_eval(token)
            return token

        assert self._first is not None
        token = step(self._first)
        for number in range(1, limit + 1):
            following = step(token) if number < limit else token
            yield token.item()  # type: ignore[misc]
            token = following
            if number % 256 == 0:
                # Buffers of shapes that the growing cache has left behind.
                mx.clear_cache()

    def finish(self, said: Sequence[int]) -> None:
        """Leave the conversation as it stands after these tokens, so that it can be continued."""
        conversation = self.conversation
        # The loop runs ahead of what it hands out; all of what it fed was handed out.
        fed = min(layer.position for layer in conversation.layers) - self._length
        conversation.ids = [*conversation.ids[: self._length], *said[:fed]]
        for layer in conversation.layers:
            layer.trim_to(len(conversation.ids))

    def _look(self, picture: Picture, pixels: PixelsOf) -> mx.array:
        import mlx.core as mx

        known = self.model.features.get(picture.digest)
        if known is not None:
            return known
        prepared = pixels(picture)
        began = time.perf_counter()
        # One at a time: what a picture gives must not depend on what came with it.
        (features,) = self.model.image_features([prepared])
        mx.eval(features)
        self.vision_s += time.perf_counter() - began
        self.model.features.put(picture.digest, features)
        return features


def check_memory_mode(memory: str, settings: CoreMatching, neurons: int) -> None:
    """Raise InputError if settings use every one of a layer's neurons where FFNs stay on disk."""
    if memory == "streaming" and not settings.compacts(neurons):
        raise InputError(
            "the memory mode 'streaming' decodes with core neurons alone, and these settings use "
            "every neuron; choose the preset neurons or paper, or the mode 'resident'"
        )


def _not_finite(model: Llava) -> str:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    for prefix, part in model.parts():
        parameters: list[tuple[str, mx.array]] = tree_flatten(part.parameters())  # type: ignore
        for name, value in parameters:
            if mx.issubdtype(value.dtype, mx.floating) and not mx.isfinite(value).all().item():
                return (
                    f"the checkpoint's {prefix}{name} has values that are not finite; convert "
                    "the original again"
                )
    return (
        "the model's numbers grew past what their type holds; convert the original again with "
        "--dtype bfloat16"
    )

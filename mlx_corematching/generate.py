"""`generate` and `stream_generate`: from a question about pictures to the answer's text."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_corematching.errors import InputError

if TYPE_CHECKING:
    from mlx_corematching.conversation import PromptCache
    from mlx_corematching.core.prefill import Trace
    from mlx_corematching.core.settings import CoreMatching
    from mlx_corematching.inputs.processor import Prepared, Processor
    from mlx_corematching.models.llava import Llava


@dataclass
class Response:
    """One piece of an answer, and the figures so far.

    Attributes:
        text: the new piece. The pieces joined are the answer.
        token: the id of the token that came last; its text may still be held back.
        finish_reason: on the last response `stop` (the model ended) or `length`; else None.
        model, preset: what answered; a preset's name, or `custom`.
        prompt_tokens: tokens of the whole prompt, pictures and earlier turns included.
        image_tokens, kept_image_tokens: image tokens read for this answer, and those kept.
        core_neuron_fraction: share of the FFN neurons that decoding uses, 1.0 if all.
        generated_tokens: tokens so far, the one that ends the answer included.
        vision_s: seconds in the vision tower and the projector.
        prefill_s: seconds in the decoder until the first token.
        first_token_s: seconds from the call to the first token, reading pictures included.
        decode_tokens_per_s: tokens after the first, a second; None before there is one.
        peak_memory_gb: MLX's peak since the process began, in 10^9 bytes.
        trace: on the last response, what was kept and why.
    """

    text: str
    token: int
    finish_reason: str | None
    model: str
    preset: str
    prompt_tokens: int
    image_tokens: int
    kept_image_tokens: int
    core_neuron_fraction: float
    generated_tokens: int
    vision_s: float
    prefill_s: float
    first_token_s: float
    decode_tokens_per_s: float | None
    peak_memory_gb: float
    trace: Trace | None = None


def generate(
    model: Llava,
    processor: Processor,
    prompt: str | list[dict[str, Any]],
    image: Any = None,
    **options: Any,
) -> str:
    """The answer as one text. Takes what `stream_generate` takes, and raises what it raises."""
    return "".join(
        response.text for response in stream_generate(model, processor, prompt, image, **options)
    )


def stream_generate(
    model: Llava,
    processor: Processor,
    prompt: str | list[dict[str, Any]],
    image: Any = None,
    *,
    sparsity: CoreMatching | None = None,
    max_tokens: int = 256,
    temp: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    prompt_cache: PromptCache | None = None,
) -> Iterator[Response]:
    """Answer a question, piece by piece.

    Args:
        model, processor: from `load`.
        prompt: a question (the chat template is applied), or a list of chat messages.
        image: a path, a URL, a PIL picture, or a list of them.
        sparsity: how sparsely to decode; None is the checkpoint's `balanced`.
        max_tokens: the longest answer. It also ends where the model's context does.
        temp: sampling temperature; 0 takes the likeliest token every time.
        top_p: sample from the likeliest tokens that make up this probability.
        seed: makes sampling repeatable.
        prompt_cache: a conversation to continue; it is updated in place.

    Raises:
        InputError: a picture, the prompt or a setting cannot be used; the message says why.
    """
    from mlx_corematching.conversation import PromptCache

    began = time.perf_counter()
    settings = model.balanced if sparsity is None else sparsity
    _check_sampling(max_tokens, temp, top_p)
    conversation = PromptCache() if prompt_cache is None else prompt_cache
    conversation.use(settings)
    messages = _as_messages(prompt, image, conversation)
    prepared = processor.prepare(messages)
    return _Answer(model, processor, settings, conversation, prepared, began).stream(
        max_tokens, temp, top_p, seed
    )


class _Answer:
    """One prompt's answer, from tokens to text."""

    def __init__(
        self,
        model: Llava,
        processor: Processor,
        settings: CoreMatching,
        conversation: PromptCache,
        prepared: Prepared,
        began: float,
    ) -> None:
        from mlx_corematching.engine import Run

        self.length = len(prepared.prompt.ids)
        context = model.config.text.max_position_embeddings
        if self.length >= context:
            raise InputError(
                f"the prompt is {self.length} tokens long, and this model's context holds "
                f"{context}; shorten it or give fewer pictures"
            )
        self.room = context - self.length
        self.model = model
        self.processor = processor
        self.conversation = conversation
        self.prepared = prepared
        self.run = Run(model, settings, conversation, began=began)
        self.preset = _preset_name(settings, model)
        neurons = model.config.text.intermediate_size
        self.core_neuron_fraction = settings.core_count(neurons) / neurons

    def stream(
        self, max_tokens: int, temp: float, top_p: float, seed: int | None
    ) -> Iterator[Response]:
        import mlx.core as mx
        from mlx_lm.sample_utils import make_sampler

        from mlx_corematching.machine import memory_limits

        if seed is not None:
            mx.random.seed(seed)
        sampler = make_sampler(temp=temp, top_p=top_p)
        limit = min(max_tokens, self.room)
        detokenizer = self.processor.tokenizer.detokenizer
        ends = self.processor.tokenizer.eos_token_ids
        prepared = self.prepared
        said: list[int] = []
        with memory_limits():
            try:
                tokens = iter(
                    [
                        self.run.read(
                            prepared.prompt,
                            prepared.pictures,
                            self.processor.pixels,
                            sampler,
                            limit=limit,
                        )
                    ]
                )
                decoding = time.perf_counter()
                while True:
                    token = next(tokens)
                    said.append(token)
                    stopped = token in ends
                    if not stopped:
                        detokenizer.add_token(token)
                    if stopped or len(said) == limit:
                        detokenizer.finalize()
                    reason = "stop" if stopped else "length" if len(said) == limit else None
                    yield self._response(
                        detokenizer.last_segment, said, reason, time.perf_counter() - decoding
                    )
                    if reason:
                        break
                    if len(said) == 1:
                        # A one-token answer never gets here, so it never pays for compact weights.
                        tokens = self.run.tokens(limit - 1, sampler)
            finally:
                if self.conversation.layers:
                    self.run.finish(said)
                    self.conversation.messages = [
                        *prepared.messages,
                        {"role": "assistant", "content": detokenizer.text.strip()},
                    ]

    def _response(
        self, text: str, said: Sequence[int], reason: str | None, decoding_s: float
    ) -> Response:
        import mlx.core as mx

        trace = self.run.trace
        return Response(
            text=text,
            token=said[-1],
            finish_reason=reason,
            model=self.model.name,
            preset=self.preset,
            prompt_tokens=self.length,
            image_tokens=len(trace.image_tokens),
            kept_image_tokens=len(trace.kept_image_tokens),
            core_neuron_fraction=self.core_neuron_fraction,
            generated_tokens=len(said),
            vision_s=self.run.vision_s,
            prefill_s=self.run.prefill_s,
            first_token_s=self.run.first_token_s,
            decode_tokens_per_s=(len(said) - 1) / decoding_s if len(said) > 1 else None,
            peak_memory_gb=mx.get_peak_memory() / 1e9,
            trace=trace if reason else None,
        )


def _as_messages(
    prompt: str | list[dict[str, Any]], image: Any, conversation: PromptCache
) -> list[dict[str, Any]]:
    """The whole chat: earlier turns of a conversation, then the question with its pictures."""
    from mlx_corematching.inputs.prompts import question

    if isinstance(prompt, str):
        return [*conversation.messages, question(prompt, image)]
    if image is not None:
        from mlx_corematching.inputs.prompts import attach

        return attach(prompt, image)
    return prompt


def _check_sampling(max_tokens: int, temp: float, top_p: float) -> None:
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; it has to be 1 or more")
    if temp < 0:
        raise InputError(f"the temperature is {temp}; it has to be 0 or more")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; it has to be above 0 and at most 1")


def _preset_name(settings: CoreMatching, model: Llava) -> str:
    from mlx_corematching.core.settings import PRESETS

    fixed = [name for name in PRESETS if name != "balanced"]
    other = "balanced" if settings == model.balanced else "custom"
    return next((name for name in fixed if type(settings).preset(name) == settings), other)


if __name__ == "__main__":
    from mlx_corematching.cli import main

    sys.exit(main(["generate", *sys.argv[1:]]))

"""One question, answered once by one mode, with a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_corematching.core.settings import CoreMatching
    from mlx_corematching.engine import PixelsOf
    from mlx_corematching.inputs.pictures import Picture
    from mlx_corematching.inputs.prompts import Prompt
    from mlx_corematching.models.llava import Llava


@dataclass(frozen=True)
class Task:
    """What is asked: the same for every mode.

    Attributes:
        prepare: loads the pictures and encodes the prompt; on the clock, as in `generate`.
        pixels: from a picture to what the tower takes; on the clock too.
        new_tokens: how many tokens are answered, whatever they say.
    """

    prepare: Callable[[], tuple[Prompt, list[Picture]]]
    pixels: PixelsOf
    new_tokens: int


@dataclass(frozen=True)
class Sample:
    """What one answer took.

    Attributes:
        vision_s: the tower and the projector.
        prefill_s: the decoder, up to the first token.
        first_token_s: both, and preparing the picture and the prompt.
        decode_s: the tokens after the first, compacting the FFNs included.
        peak_memory_gb: the most that MLX held meanwhile, the model included, in 10^9 bytes.
        kept: image tokens that were kept.
        tokens: the answer.
    """

    vision_s: float
    prefill_s: float
    first_token_s: float
    decode_s: float
    peak_memory_gb: float
    kept: int
    tokens: tuple[int, ...]

    @property
    def decode_tokens_per_s(self) -> float | None:
        return (len(self.tokens) - 1) / self.decode_s if len(self.tokens) > 1 else None

    @property
    def total_s(self) -> float:
        return self.first_token_s + self.decode_s


def measure(model: Llava, settings: CoreMatching, task: Task) -> Sample:
    """Answer once, from nothing: no picture's features and no conversation are reused."""
    import mlx.core as mx

    from mlx_corematching.conversation import PromptCache
    from mlx_corematching.engine import Run
    from mlx_corematching.machine import memory_limits

    def greedy(logprobs: mx.array) -> mx.array:
        return mx.argmax(logprobs, axis=-1)

    model.features.clear()
    mx.reset_peak_memory()
    with memory_limits():
        run = Run(model, settings, PromptCache())
        prompt, pictures = task.prepare()
        first = run.read(prompt, pictures, task.pixels, greedy, limit=task.new_tokens)
        tokens = [first]
        began = time.perf_counter()
        if task.new_tokens > 1:
            tokens += run.tokens(task.new_tokens - 1, greedy)
        decode_s = time.perf_counter() - began
    return Sample(
        vision_s=run.vision_s,
        prefill_s=run.prefill_s,
        first_token_s=run.first_token_s,
        decode_s=decode_s,
        peak_memory_gb=mx.get_peak_memory() / 1e9,
        kept=len(run.trace.kept_image_tokens),
        tokens=tuple(tokens),
    )

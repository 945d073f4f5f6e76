"""What the dense model is compared on: a random prompt with pictures, and a continuation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from checkpoints import CONFIGS, write_checkpoint

from mlx_corematching.convert import convert
from mlx_corematching.core.prefill import Prefill
from mlx_corematching.core.settings import CoreMatching
from mlx_corematching.loading import load_model
from mlx_corematching.models.config import LlavaConfig
from mlx_corematching.models.llava import Llava

GOLDEN = Path(__file__).parent / "golden"
STEPS = 4


@dataclass
class Case:
    """One prompt for one checkpoint.

    Attributes:
        prompt: token ids, pictures expanded.
        said: the tokens that follow it.
        rows: where the image tokens are.
        pixels: float32 [pictures, channels, size, size].
    """

    prompt: list[int]
    said: list[int]
    rows: np.ndarray
    pixels: np.ndarray


def make_case(config: LlavaConfig, pictures: int = 2) -> Case:
    random = np.random.RandomState(7)
    vocabulary = [i for i in range(5, config.text.vocab_size) if i != config.image_token_id]

    def words(count: int) -> list[int]:
        return [vocabulary[i] for i in random.randint(0, len(vocabulary), count)]

    prompt = words(3)
    for _ in range(pictures):
        prompt += [config.image_token_id] * config.image_tokens + words(4)
    vision = config.vision
    shape = (pictures, vision.num_channels, vision.image_size, vision.image_size)
    return Case(
        prompt,
        words(STEPS),
        np.flatnonzero(np.array(prompt) == config.image_token_id),
        random.standard_normal(shape).astype(np.float32),
    )


def source(name: str, folder: Path) -> Path:
    write_checkpoint(folder, CONFIGS[name], seed=3)
    return folder


def converted(name: str, folder: Path) -> Llava:
    convert(str(source(name, folder / "source")), str(folder / "converted"), dtype="float32")
    return load_model(folder / "converted")


def our_logits(model: Llava, case: Case) -> np.ndarray:
    """Logits after the prompt and after each token said, as decoding makes them.

    [1 + STEPS, vocabulary]
    """
    caches = model.language_model.make_cache()
    h = model.embed(case.prompt, case.rows, model.image_features(case.pixels))
    method = Prefill(CoreMatching.dense(), case.rows, len(case.prompt))
    logits = [model.prefill(h, caches, method)]
    logits += [model.language_model(mx.array([[token]]), caches)[0, 0] for token in case.said]
    return np.array(mx.stack(logits))


def their_logits(folder: Path, case: Case) -> np.ndarray:
    """The same from transformers, in one pass over prompt and continuation."""
    import torch
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.tensor([[*case.prompt, *case.said]])
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            pixel_values=torch.tensor(case.pixels) if len(case.pixels) else None,
            attention_mask=torch.ones_like(ids),
        ).logits
    return logits[0, len(case.prompt) - 1 :].numpy()

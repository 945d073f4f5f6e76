"""The stages of training: what each trains, on which batches, with which losses.

=========  =====================================================  ==================================
stage      trains                                                 on
=========  =====================================================  ==================================
language   decoder, speller                                       spelled scenes and their questions
eyes       tower, facts head                                      crowded pictures, facts per patch
spelling   tower, facts head, projector                           pictures, what they should spell
together   tower, facts head, projector, decoder                  pictures and their questions
=========  =====================================================  ==================================
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from ..folders import written_whole
from ..scenes import Scene, lay_out
from . import initial
from .architecture import make_model, make_processor, make_tokenizer
from .eyes import Seen, fact_accuracy, fact_losses, facts_head, look
from .language import (
    FIRST_SEED,
    MIX,
    ROWS,
    Answers,
    Asked,
    NounHead,
    OrdinalHead,
    answer_accuracy,
    answer_losses,
    answers,
    ask,
    spelled,
)
from .loop import Part, Stage, load_modules
from .pictures import Pictures, jitter, normalised
from .spelling import Facts, Speller, facts
from .turns import Encoder, Rows, pack

MEASURED_SCENES = 64
FACTS_WEIGHT = 0.3  # of the first lessons' losses in later stages: eyes do not forget


@dataclass
class Lesson:
    """Pictures, their facts, and questions about them."""

    seen: Seen
    rows: Rows


class School:
    """The model in training with all that teaches it, on one device.

    ``batch`` is the number of pictures a step; the eyes, who have no decoder behind them, see four
    times as many.
    """

    def __init__(self, data: Path, out: Path, device: str, batch: int) -> None:
        torch.manual_seed(0)
        self.out, self.device, self.size = out, torch.device(device), batch
        self.tokenizer = _tokenizer(out / "tokenizer")
        self.encode = Encoder(self.tokenizer)
        self.model = make_model(len(self.tokenizer))
        config = self.model.config
        self.head = facts_head(config.vision_config.hidden_size)
        self.nouns = NounHead(config.text_config.hidden_size)
        self.ordinal = OrdinalHead(config.text_config.hidden_size)
        self.speller = Speller(self.tokenizer, config.text_config.hidden_size)
        self.tower = self.model.model.vision_tower
        self.projector = self.model.model.multi_modal_projector
        self.decoder = self.model.model.language_model
        self.scenes = Pictures(data / "train")
        self.crowds = Pictures(data / "crowd")
        initial.decoder(self.decoder)
        initial.tower(self.tower, self._patches())
        for module in (self.model, self.head, self.nouns, self.ordinal, self.speller):
            module.to(self.device)

    def _patches(self) -> np.ndarray:
        some = np.arange(0, self.crowds.trained, max(1, self.crowds.trained // 200))
        pixels = normalised(self.crowds.take(some)[1])
        size = self.tower.config.patch_size
        patches = pixels.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5)
        return patches.reshape(-1, 3, size, size).numpy()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.tower(pixels.to(self.device)).last_hidden_state[:, 1:]

    def save(self, folder: Path) -> None:
        """The model as a Hugging Face folder, in float16."""
        words = self.decoder.embed_tokens.weight
        with written_whole(folder) as unfinished:
            self.model.lm_head.weight.data.copy_(words.data)  # one table while training
            self.model.to("cpu", torch.float16).save_pretrained(unfinished)
            make_processor(self.tokenizer).save_pretrained(unfinished)

    # language

    def language(self) -> Stage:
        scenes = [lay_out(FIRST_SEED - 1 - number) for number in range(MEASURED_SCENES)]

        def answer(part: list[Scene], rows: Rows, start: int) -> Answers:
            return self._answer_spelled(Asked(spelled(part, random.Random(start)), rows))

        def losses(asked: Asked) -> dict[str, torch.Tensor]:
            return self._answer_losses(self._answer_spelled(asked), asked.rows, asked.facts)

        return Stage(
            "language",
            {
                "decoder": Part(self.decoder, 2e-3, 2e-3),
                "nouns": Part(self.nouns, 2e-3, 2e-3),
                "ordinal": Part(self.ordinal, 2e-3, 2e-3),
                "speller": Part(self.speller, 2e-3, 2e-3),
            },
            lambda step: ask(self.encode, step, self.size),
            losses,
            lambda: answer_accuracy(answer, self.encode, scenes),
        )

    def _answer_spelled(self, asked: Asked) -> Answers:
        asked = _to(asked, self.device)
        with self.autocast():
            image = self.speller(asked.facts, self.decoder.embed_tokens)
            return answers(self.model, self.encode, image, asked.rows)

    def _answer_losses(self, given: Answers, rows: Rows, told: Facts) -> dict[str, torch.Tensor]:
        rows, told = _to(rows, self.device), _to(told, self.device)
        with self.autocast():
            return answer_losses(given, self.nouns, self.ordinal, rows, told)

    # eyes

    def eyes(self) -> Stage:
        def losses(seen: Seen) -> dict[str, torch.Tensor]:
            with self.autocast():
                said = self.head(self.features(seen.pixels))
            return fact_losses(said.float(), _to(seen.facts, self.device))

        return Stage(
            "eyes",
            {"tower": Part(self.tower, 2e-3, 2e-3), "head": Part(self.head, 2e-3, 2e-3)},
            lambda step: look(self.crowds, step, 4 * self.size),
            losses,
            lambda: fact_accuracy(self._say, self.crowds),
        )

    def _say(self, pixels: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            return self.head(self.features(pixels))

    # spelling

    def spelling(self) -> Stage:
        load_modules(self.out / "language.pt", decoder=self.decoder, speller=self.speller)
        load_modules(self.out / "eyes.pt", tower=self.tower, head=self.head)
        scale = self.decoder.embed_tokens.weight.var().item()

        def losses(seen: Seen) -> dict[str, torch.Tensor]:
            told = _to(seen.facts, self.device)
            with self.autocast():
                features = self.features(seen.pixels)
                said, spelt = self.head(features), self.projector(features)
            with torch.no_grad():
                right = self.speller(told, self.decoder.embed_tokens)
            return {
                **fact_losses(said.float(), told),
                "spelling": F.mse_loss(spelt.float(), right.float()) / scale,
            }

        return Stage(
            "spelling",
            {
                "tower": Part(self.tower, 1e-3, 1e-3),
                "head": Part(self.head, 1e-3, 1e-3),
                "projector": Part(self.projector, 2e-3, 2e-3),
            },
            lambda step: look(self.crowds if step % 2 else self.scenes, step, 4 * self.size),
            losses,
            self._measure_pictures,
        )

    # together

    def together(self) -> Stage:
        load_modules(
            self.out / "language.pt", decoder=self.decoder, nouns=self.nouns, ordinal=self.ordinal
        )
        load_modules(
            self.out / "spelling.pt", tower=self.tower, head=self.head, projector=self.projector
        )
        return Stage(
            "together",
            {
                "tower": Part(self.tower, 3e-4, 3e-4),
                "head": Part(self.head, 3e-4, 3e-4),
                "projector": Part(self.projector, 1e-3, 1e-3),
                "decoder": Part(self.decoder, 1e-3, 1e-3),
                "nouns": Part(self.nouns, 1e-3, 1e-3),
                "ordinal": Part(self.ordinal, 2e-3, 2e-3),
            },
            self._lesson,
            self._lesson_losses,
            self._measure_pictures,
        )

    def _lesson(self, step: int) -> Lesson:
        rng = np.random.default_rng((13, step))
        scenes, pixels, owners = self.scenes.take(rng.integers(0, self.scenes.trained, self.size))
        rows = pack(scenes, random.Random(step), self.encode, MIX, ROWS)
        return Lesson(Seen(normalised(jitter(pixels, rng)), facts(scenes, owners)), rows)

    def _lesson_losses(self, lesson: Lesson) -> dict[str, torch.Tensor]:
        with self.autocast():
            features = self.features(lesson.seen.pixels)
            said = self.head(features)
            rows = _to(lesson.rows, self.device)
            given = answers(self.model, self.encode, self.projector(features), rows)
        seen = fact_losses(said.float(), _to(lesson.seen.facts, self.device))
        return {
            **self._answer_losses(given, rows, lesson.seen.facts),
            **{name: FACTS_WEIGHT * loss for name, loss in seen.items()},
        }

    def _measure_pictures(self) -> dict[str, float]:
        indices = np.array(self.scenes.held_back)[:MEASURED_SCENES]
        scenes, pixels, _ = self.scenes.take(indices)

        def answer(part: list[Scene], rows: Rows, start: int) -> Answers:
            with self.autocast():
                image = self.projector(self.features(normalised(pixels[start : start + len(part)])))
                return answers(self.model, self.encode, image, _to(rows, self.device))

        seen = fact_accuracy(self._say, self.scenes)
        return {
            **{f"sees_{name}": share for name, share in seen.items()},
            **answer_accuracy(answer, self.encode, scenes),
        }


STAGES: dict[str, Callable[[School], Stage]] = {
    "language": School.language,
    "eyes": School.eyes,
    "spelling": School.spelling,
    "together": School.together,
}


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Made once a run: its ids must stay what the checkpoints know."""
    if not folder.exists():
        make_tokenizer().save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _to(batch: Any, device: torch.device) -> Any:
    """A dataclass of tensors on another device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if hasattr(batch, "__dataclass_fields__"):
        return type(batch)(
            **{field.name: _to(getattr(batch, field.name), device) for field in fields(batch)}
        )
    return batch

"""First lessons of the decoder: answer questions about spelled scenes, with no pictures at all."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlavaForConditionalGeneration

from ..questions import KINDS
from ..scenes import Scene, lay_out
from ..vocabulary import THINGS
from .architecture import BOS
from .decoder import hidden_states
from .spelling import Facts, facts, rough_owners
from .turns import Encoder, Rows, pack

FIRST_SEED = (
    100_000_000  # training scenes of the pictures start at 0, held-out ones at 1,000,000,000
)
SEEDS_PER_STEP = 1000
EARLY_LAYERS = 2  # after these the decoder's first lessons are asked for
ROWS = 4  # per picture: some fifteen questions
MIX = {  # kinds that are learned late are asked often
    "presence": 1.4,
    "count": 2.4,
    "relation": 3.0,
    "spatial": 1.4,
    "position": 0.9,
    "corner": 0.9,
    "color": 0.6,
    "category": 0.8,
    "choice": 1.0,
    "text": 0.5,
    "describe": 1.8,
}


@dataclass
class Asked:
    """Spelled scenes and the questions about them."""

    facts: Facts
    rows: Rows


def ask(encode: Encoder, step: int, size: int) -> Asked:
    rng = random.Random(step)
    start = FIRST_SEED + SEEDS_PER_STEP * step
    scenes = [lay_out(seed) for seed in range(start, start + size)]
    return Asked(spelled(scenes, rng), pack(scenes, rng, encode, MIX, ROWS))


def spelled(scenes: list[Scene], rng: random.Random) -> Facts:
    return facts(scenes, np.stack([rough_owners(scene, rng) for scene in scenes]))


class NounHead(nn.Module):
    """What a thing's name should know of the scene after two layers: how many there are, and where.

    Without it, "is there a cat?" stays at chance for hours: yes or no says too little about what
    to look for. With it, each name in a question or answer learns to find its thing.
    """

    MOST = 4

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.linear = nn.Linear(width, self.MOST + 1 + 2)

    def losses(self, hidden: torch.Tensor, rows: Rows) -> dict[str, torch.Tensor]:
        named = rows.number >= 0
        said = self.linear(self.norm(hidden[named])).float()
        number, place = said.split([self.MOST + 1, 2], dim=-1)
        one = (rows.number[named] == 1) & (rows.x[named] > 0)
        away = (place - torch.stack([rows.x[named], rows.y[named]], dim=-1)).abs().sum(-1)
        return {
            "how_many": 0.5 * F.cross_entropy(number, rows.number[named]),
            "where": 2 * (away * one).sum() / one.sum().clamp(min=1),
        }


@dataclass
class Answers:
    """Logits [N, vocabulary], targets [N] of the answer tokens; rows and image after two layers."""

    logits: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    image: torch.Tensor


def answers(
    model: LlavaForConditionalGeneration, encode: Encoder, image: torch.Tensor, rows: Rows
) -> Answers:
    """Reads ``image`` [B, IMAGE_TOKENS, D] and the rows of questions about it."""
    decoder = model.model.language_model
    words = decoder.embed_tokens
    before = words(torch.tensor([BOS, *encode("USER: ")], device=image.device)).expand(
        len(image), -1, -1
    )
    after = words(torch.tensor(encode("\n"), device=image.device)).expand(len(image), -1, -1)
    prefix = torch.cat([before, image, after], dim=1)
    hidden, early_rows, early = hidden_states(
        decoder, prefix, words(rows.tokens), rows, EARLY_LAYERS
    )
    answered = rows.target != -100
    return Answers(
        F.linear(hidden[answered], words.weight).float(),
        rows.target[answered],
        early_rows,
        early[:, before.shape[1] : -after.shape[1]],
    )


class OrdinalHead(nn.Module):
    """What a thing's centre patch should know: which of its kind it is, and which of all things.

    First, second, ... in reading order. Whoever counts then only has to find the last.
    """

    MOST = 4

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.linear = nn.Linear(width, 2 * self.MOST)

    def losses(self, image: torch.Tensor, facts: Facts) -> dict[str, torch.Tensor]:
        of_its_kind, of_all = ordinals(facts)
        counted = of_all >= 0
        kind, everything = self.linear(self.norm(image[counted])).float().chunk(2, dim=-1)
        told = F.cross_entropy(kind, of_its_kind[counted])
        return {"ordinal": 0.3 * (told + F.cross_entropy(everything, of_all[counted]))}


def ordinals(facts: Facts) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, patches]: how many centres of the same name, and of things, come before; else -1."""
    thing = (facts.centre == 1) & (facts.name < len(THINGS))
    alike = (facts.name[:, :, None] == facts.name[:, None, :]) & thing[:, None, :]
    of_its_kind = alike.tril(-1).sum(-1)
    of_all = thing.cumsum(-1) - 1
    nothing = torch.full_like(of_all, -1)
    return torch.where(thing, of_its_kind, nothing), torch.where(thing, of_all, nothing)


def answer_losses(
    answers: Answers, nouns: NounHead, ordinal: OrdinalHead, rows: Rows, facts: Facts
) -> dict[str, torch.Tensor]:
    return {
        "answer": F.cross_entropy(answers.logits, answers.targets),
        **nouns.losses(answers.rows, rows),
        **ordinal.losses(answers.image, facts),
    }


@torch.no_grad()
def answer_accuracy(
    answer: Callable[[list[Scene], Rows, int], Answers],
    encode: Encoder,
    scenes: list[Scene],
) -> dict[str, float]:
    """By kind, the share of turns whose every answer token is the likeliest, as greedy decodes."""
    accuracy = {}
    for kind in KINDS:
        rng = random.Random(kind)
        right = total = 0
        for start in range(0, len(scenes), 16):
            part = scenes[start : start + 16]
            rows = pack(part, rng, encode, {kind: 1.0}, 1, share_following=0)
            given = answer(part, rows, start)
            wrong = torch.zeros_like(rows.target, dtype=torch.bool)
            wrong[rows.target != -100] = (given.logits.argmax(-1) != given.targets).cpu()
            for turn, missed in zip(rows.turn, wrong, strict=True):
                for number in range(int(turn.max()) + 1):
                    total += 1
                    right += not missed[turn == number].any()
        accuracy[kind] = right / max(1, total)
    accuracy["closed"] = sum(accuracy[kind] for kind in KINDS if kind != "describe") / (
        len(KINDS) - 1
    )
    return accuracy

"""Questions about one picture, packed side by side into rows.

A turn sees the picture and itself, nothing of its neighbours, and its positions start where the
picture ends: it is as if it had been asked alone, but the picture is read once for all of them.
Some turns follow another in one conversation, as a user's second question does.
"""

import random
from dataclasses import dataclass, field

import numpy as np
import torch

from ..questions import KINDS
from ..scenes import SIZE, Scene
from ..vocabulary import THINGS, WORDS
from .architecture import EOS, PAD

ROW = 64  # tokens: the longest turn fits
SHARE_FOLLOWING = 0.15
NOT_A_NAME = (-100.0, 0.0, 0.0)
DRAWS = (
    9  # questions tried per row: some are open, some asked already, some too long for what is left
)


@dataclass
class Rows:
    """``rows`` rows per picture. All arrays are [pictures * rows, ROW].

    ``turn`` numbers the turns within a row (-1: padding), ``position`` counts from a turn's start.
    ``target`` is the token that follows, or -100 where it is not part of an answer. Where a token
    names a thing, a sign's word or "objects", ``number`` is how many of it the scene has (else
    -100), and ``x``, ``y`` where it is (0 to 1).
    """

    tokens: torch.Tensor
    position: torch.Tensor
    turn: torch.Tensor
    target: torch.Tensor
    number: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    per_picture: int


class Encoder:
    """The tokenizer behind a memory: the same few thousand questions come again and again."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, list[int]] = {}
        named = (*(thing.name for thing in THINGS), *WORDS)
        self.token = {name: self(f" {name}")[0] for name in named}
        self.names = set(self.token.values())
        self.all_things = self(" objects")[0]

    def __call__(self, text: str) -> list[int]:
        tokens = self.known.get(text)
        if tokens is None:
            if len(self.known) > 300_000:
                self.known.clear()
            tokens = self.tokenizer(text, add_special_tokens=False).input_ids
            self.known[text] = tokens
        return tokens


@dataclass
class _Row:
    tokens: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)

    def add(self, prompt: list[int], answer: list[int], following: bool) -> None:
        tokens = prompt + answer
        start = self.position[-1] + 1 if following else 0
        last = self.turn[-1] if self.turn else -1
        self.tokens += tokens
        self.position += range(start, start + len(tokens))
        self.turn += [last if following else last + 1] * len(tokens)
        self.target += [-100] * (len(prompt) - 1) + answer + [-100]

    def arrays(self) -> tuple[list[int], ...]:
        short = ROW - len(self.tokens)
        return (
            self.tokens + [PAD] * short,
            self.position + [0] * short,
            self.turn + [-1] * short,
            self.target + [-100] * short,
        )


def pack(
    scenes: list[Scene],
    rng: random.Random,
    encode: Encoder,
    weights: dict[str, float],
    rows: int,
    share_following: float = SHARE_FOLLOWING,
) -> Rows:
    """Fills ``rows`` rows for every scene with questions of kinds drawn by weight."""
    packed, named = [], []
    for scene in scenes:
        facts = _named(scene, encode)
        for row in _fill(scene, rng, encode, weights, rows, share_following):
            packed.append(row.arrays())
            named.append([facts.get(token, NOT_A_NAME) for token in packed[-1][0]])
    tokens, position, turn, target = (
        torch.from_numpy(np.array(part)) for part in zip(*packed, strict=True)
    )
    number, x, y = torch.from_numpy(np.array(named, np.float32)).unbind(-1)
    return Rows(tokens, position, turn, target, number.long(), x, y, rows)


def _named(scene: Scene, encode: Encoder) -> dict[int, tuple[float, float, float]]:
    """By token that names something: how many of it there are, and where the leftmost is."""
    facts = dict.fromkeys(encode.names, (0.0, 0.0, 0.0))
    facts[encode.all_things] = (float(len(scene.things)), 0.0, 0.0)
    for placed in sorted(scene.things, key=lambda placed: -placed.x):
        number = sum(other.thing == placed.thing for other in scene.things)
        facts[encode.token[THINGS[placed.thing].name]] = (
            float(number),
            placed.x / SIZE,
            placed.y / SIZE,
        )
    if sign := scene.sign:
        facts[encode.token[sign.word]] = (1.0, sign.x / SIZE, sign.y / SIZE)
    return facts


def _fill(
    scene: Scene,
    rng: random.Random,
    encode: Encoder,
    weights: dict[str, float],
    number: int,
    share_following: float,
) -> list[_Row]:
    rows = [_Row() for _ in range(number)]
    asked: set[str] = set()
    kinds, shares = list(weights), list(weights.values())
    for _ in range(DRAWS * number):
        (kind,) = rng.choices(kinds, shares)
        question = KINDS[kind](rng, scene)
        if question is None or question[0] in asked:
            continue
        prompt, answer = encode(f"{question[0]} ASSISTANT:"), [*encode(f" {question[1]}"), EOS]
        for row in rows:
            following = bool(row.tokens) and rng.random() < share_following
            whole = encode("USER: ") + prompt if following else prompt
            if len(row.tokens) + len(whole) + len(answer) <= ROW:
                row.add(whole, answer, following)
                asked.add(question[0])
                break
    return rows

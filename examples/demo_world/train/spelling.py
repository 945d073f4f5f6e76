"""Pictures spelled as embeddings: what each patch should say to the decoder.

A patch says the word of what covers it (a thing's name, a sign's word, the background's colour:
the embedding of the very token), where that thing's centre is, whether this patch is the centre,
and a sign's colour. The decoder learns to answer from spelled scenes, with no pictures at all;
meanwhile the vision tower learns to see the same facts, and the projector to spell them.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..scenes import GRID, PATCH, SIZE, Scene
from ..vocabulary import COLOR_NAMES, THINGS, WORDS

NAMES = tuple(thing.name for thing in THINGS) + tuple(WORDS) + COLOR_NAMES
NO_COLOR = len(COLOR_NAMES)
WAVES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


@dataclass
class Facts:
    """Per patch, [B, GRID * GRID]: index into NAMES, the owner's centre (0 to 1), is it here."""

    name: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    centre: torch.Tensor
    sign_color: torch.Tensor


def facts(scenes: list[Scene], owners: np.ndarray) -> Facts:
    """The facts of each patch; ``owners`` [B, GRID, GRID] as `scenes.paint` gives them."""
    tables = [_table(scene) for scene in scenes]
    longest = max(map(len, tables))
    padded = np.array(
        [table + [table[-1]] * (longest - len(table)) for table in tables], np.float32
    )
    owners = owners.reshape(len(scenes), -1)
    last = np.array([len(table) - 1 for table in tables])[:, None]
    chosen = np.take_along_axis(padded, np.where(owners < 0, last, owners)[:, :, None], axis=1)
    rows, columns = np.divmod(np.arange(GRID * GRID), GRID)
    background = owners < 0
    x = np.where(background, (columns + 0.5) / GRID, chosen[:, :, 1])
    y = np.where(background, (rows + 0.5) / GRID, chosen[:, :, 2])
    centre = ~background & (np.floor(x * GRID) == columns) & (np.floor(y * GRID) == rows)
    as_tensor = torch.from_numpy
    return Facts(
        as_tensor(chosen[:, :, 0].astype(np.int64)),
        as_tensor(x.astype(np.float32)),
        as_tensor(y.astype(np.float32)),
        as_tensor(centre.astype(np.int64)),
        as_tensor(chosen[:, :, 3].astype(np.int64)),
    )


def _table(scene: Scene) -> list[list[float]]:
    """(name, x, y, sign colour) of each thing, of the sign, and last of the background."""
    table = [[placed.thing, placed.x / SIZE, placed.y / SIZE, NO_COLOR] for placed in scene.things]
    if sign := scene.sign:
        word = len(THINGS) + WORDS.index(sign.word)
        table.append([word, sign.x / SIZE, sign.y / SIZE, COLOR_NAMES.index(sign.color)])
    background = len(THINGS) + len(WORDS) + COLOR_NAMES.index(scene.background)
    return [*table, [background, 0, 0, NO_COLOR]]


def rough_owners(scene: Scene, rng: random.Random) -> np.ndarray:
    """Owners [GRID, GRID] of an unpainted scene: each thing an ellipse, the sign its board."""
    rows, columns = (np.mgrid[0:GRID, 0:GRID] + 0.5) * PATCH
    owners = np.full((GRID, GRID), -1, np.int8)
    for index, placed in enumerate(scene.things):
        wide, high = (placed.size * rng.uniform(0.32, 0.52) for _ in range(2))
        owners[((columns - placed.x) / wide) ** 2 + ((rows - placed.y) / high) ** 2 <= 1] = index
        owners[int(placed.y) // PATCH, int(placed.x) // PATCH] = index
    if sign := scene.sign:
        inside = (abs(columns - sign.x) < sign.width / 2 + 4) & (
            abs(rows - sign.y) < sign.height / 2 + 4
        )
        owners[inside] = len(scene.things)
    return owners


class Speller(nn.Module):
    """Facts to embeddings [B, GRID * GRID, width]; the words are the decoder's own."""

    def __init__(self, tokenizer, width: int) -> None:
        super().__init__()
        tokens = [tokenizer(f" {name}", add_special_tokens=False).input_ids for name in NAMES]
        assert all(len(token) == 1 for token in tokens), "a name is not one token"
        self.register_buffer("tokens", torch.tensor(tokens)[:, 0], persistent=False)
        self.place = nn.Linear(4 * len(WAVES) + 2, width, bias=False)
        self.centre = nn.Parameter(torch.zeros(width))
        self.sign_color = nn.Embedding(len(COLOR_NAMES) + 1, width)
        nn.init.normal_(self.place.weight, std=0.01)
        nn.init.normal_(self.centre, std=0.03)
        nn.init.normal_(self.sign_color.weight, std=0.03)

    def forward(self, facts: Facts, words: nn.Embedding) -> torch.Tensor:
        return (
            words(self.tokens[facts.name])
            + self.place(_waves(facts.x, facts.y))
            + facts.centre[:, :, None] * self.centre
            + self.sign_color(facts.sign_color)
        )


def _waves(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    angles = torch.stack([wave * math.pi * along for along in (x, y) for wave in WAVES], dim=-1)
    return torch.cat(
        [angles.sin(), angles.cos(), 2 * x[..., None] - 1, 2 * y[..., None] - 1], dim=-1
    )

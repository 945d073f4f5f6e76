"""First lessons of the vision tower: what covers each patch, and where that thing's centre is."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..vocabulary import COLOR_NAMES, THINGS, WORDS
from .pictures import Pictures, jitter, normalised
from .spelling import NAMES, NO_COLOR, Facts, facts

FIRST_COLOR = len(THINGS) + len(WORDS)
BACKGROUND_WEIGHT = 0.15  # there is so much of it
OUTPUTS = len(NAMES) + len(COLOR_NAMES) + 1 + 2 + 1


@dataclass
class Seen:
    """A batch: pixels [B, 3, H, W] and the facts of each patch."""

    pixels: torch.Tensor
    facts: Facts


def look(pictures: Pictures, step: int, size: int) -> Seen:
    rng = np.random.default_rng((11, step))
    scenes, pixels, owners = pictures.take(rng.integers(0, pictures.trained, size))
    return Seen(normalised(jitter(pixels, rng)), facts(scenes, owners))


def fact_losses(said: torch.Tensor, told: Facts) -> dict[str, torch.Tensor]:
    """``said`` [B, patches, OUTPUTS] float32 against the facts."""
    name, sign_color, place, centre = _split(said)
    weight = torch.where(told.name < FIRST_COLOR, 1.0, BACKGROUND_WEIGHT)
    each = F.cross_entropy(name.flatten(0, 1), told.name.flatten(), reduction="none").view_as(
        weight
    )
    away = (place - torch.stack([told.x, told.y], dim=-1)).abs().sum(-1)
    return {
        "name": (each * weight).sum() / weight.sum(),
        "place": 4 * (away * weight).sum() / weight.sum(),
        "centre": F.binary_cross_entropy_with_logits(
            centre, told.centre.float(), pos_weight=torch.tensor(5.0, device=centre.device)
        ),
        "sign": 0.3 * F.cross_entropy(sign_color.flatten(0, 1), told.sign_color.flatten()),
    }


def _split(said: torch.Tensor) -> tuple[torch.Tensor, ...]:
    name, sign_color, place, centre = said.split([len(NAMES), len(COLOR_NAMES) + 1, 2, 1], dim=-1)
    return name, sign_color, place, centre[..., 0]


def facts_head(width: int) -> nn.Linear:
    return nn.Linear(width, OUTPUTS)


@torch.no_grad()
def fact_accuracy(say, pictures: Pictures, number: int = 256) -> dict[str, float]:
    """Shares of patches told right, by what is on them; and how far off places are (0 to 1)."""
    right: dict[str, list[torch.Tensor]] = {}
    indices = np.array(pictures.held_back)[:number]
    for part in np.array_split(indices, max(1, len(indices) // 64)):
        scenes, pixels, owners = pictures.take(part)
        told = facts(scenes, owners)
        name, sign_color, place, centre = _split(say(normalised(pixels)).float().cpu())
        ok = name.argmax(-1) == told.name
        is_word = (told.name >= len(THINGS)) & (told.name < FIRST_COLOR)
        is_thing, at_centre, on_sign = (
            told.name < len(THINGS),
            told.centre.bool(),
            told.sign_color != NO_COLOR,
        )
        away = (place - torch.stack([told.x, told.y], dim=-1)).abs().mean(-1)
        shares = {
            "thing": ok[is_thing],
            "thing_at_centre": ok[is_thing & at_centre],
            "word": ok[is_word],
            "background": ok[told.name >= FIRST_COLOR],
            "centre": ((centre > 0) == at_centre)[told.name < FIRST_COLOR],
            "sign_color": (sign_color.argmax(-1) == told.sign_color)[on_sign],
            "place_error": away[told.name < FIRST_COLOR],
        }
        for key, value in shares.items():
            right.setdefault(key, []).append(value.float())
    return {key: torch.cat(values).mean().item() for key, values in right.items()}

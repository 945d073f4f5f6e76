"""The modes that are compared: the four of the paper's figure 9, and any preset."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_corematching.core.settings import PRESETS, CoreMatching
from mlx_corematching.errors import InputError

FIGURE_9 = ("dense", "tokens", "neurons", "both")
MODES = (*FIGURE_9, *(preset for preset in PRESETS if preset not in FIGURE_9))

_OF_TOKENS = ("prune_layer", "keep_tokens")


def choose_modes(
    names: Sequence[str], changes: Mapping[str, Any], balanced: CoreMatching
) -> dict[str, CoreMatching]:
    """The settings of each mode, `dense` first.

    Args:
        names: of MODES; `both` is the paper's preset.
        changes: settings to change in every mode that uses them.
        balanced: the checkpoint's own.

    Raises:
        InputError: a name is unknown, or a value out of its range.
    """
    modes = {}
    for name in dict.fromkeys(("dense", *names)):
        if name not in MODES:
            raise InputError(f"there is no mode {name!r}; there are {', '.join(MODES)}")
        base = balanced if name == "balanced" else CoreMatching.preset(_preset(name))
        used = {
            setting: value
            for setting, value in changes.items()
            if base.tokens or (base.neurons and setting not in _OF_TOKENS)
        }
        modes[name] = dataclasses.replace(base, **used)
    return modes


def _preset(mode: str) -> str:
    return "paper" if mode == "both" else mode

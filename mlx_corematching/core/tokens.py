"""Core tokens: the image tokens that activate the most core neurons (section 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_corematching.core.neurons import activated


@dataclass(frozen=True)
class LayerView:
    """What a selector may look at: the prune layer, while the prompt passes through it.

    Attributes:
        activations: FFN activations of the new prompt tokens. Float [tokens, neurons].
        image_rows: which of those tokens are image tokens, ascending. Int32 [image tokens].
        core_neurons: the layer's sentence-wise core neurons C(s), ascending. Int32 [core].
    """

    activations: mx.array
    image_rows: mx.array
    core_neurons: mx.array


Selector = Callable[[LayerView], mx.array]


def core_scores(view: LayerView) -> mx.array:
    """|Γ(x) ∩ C(s)| of each image token x. Int32 [image tokens]."""
    seen = activated(view.activations[view.image_rows])
    return seen[:, view.core_neurons].sum(axis=-1)


# Scores of the image tokens, the higher the more worth keeping, by name.
SELECTORS: dict[str, Selector] = {"core": core_scores}


def knee(scores: np.ndarray) -> int | None:
    """Index of the knee in the scores sorted downwards, or None where the curve has none.

    It is the point farthest from the chord between the curve's ends, the first one of equals.
    A flat curve, a straight one, and one of fewer than three points have no knee.
    """
    curve = np.sort(scores)[::-1]
    last = len(curve) - 1
    if last < 2:
        return None
    # Twice the area of the triangle on the chord: in proportion to the distance, and exact
    # for whole scores.
    curve = curve.astype(np.int64 if np.issubdtype(curve.dtype, np.integer) else np.float64)
    distance = abs((curve - curve[0]) * last - np.arange(last + 1) * (curve[-1] - curve[0]))
    return int(distance.argmax()) if distance.any() else None


def choose(scores: np.ndarray, keep: int | None) -> np.ndarray:
    """Which image tokens are core tokens, as ascending indices into `scores`.

    Args:
        scores: [image tokens].
        keep: how many to keep, ties to the earlier token; None keeps those that score at
            least as much as the knee, and all of them where there is no knee.
    """
    if keep is not None:
        return np.sort(np.argsort(-scores, kind="stable")[:keep])
    bend = knee(scores)
    if bend is None:
        return np.arange(len(scores))
    return np.flatnonzero(scores >= np.sort(scores)[::-1][bend])

"""`CoreMatching`: every knob of the method in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from mlx_corematching.errors import InputError

REFERENCES = ("all", "text", "last")
PRESETS = ("dense", "tokens", "neurons", "paper", "balanced")


@dataclass(frozen=True)
class CoreMatching:
    """How sparsely a model decodes (CoreMatching, arXiv 2505.19235, sections 3 and 4).

    Attributes:
        tokens: drop the image tokens that are not core tokens, after `prune_layer`.
        neurons: decode with each FFN's core neurons alone.
        rho: share of a token's activated neurons that are its token-wise core neurons, in [0, 1].
        beta: share of a layer's neurons that are sentence-wise core neurons, in [0, 1].
        prune_layer: the layer whose activations score the image tokens; the layers up to it,
            counted from 1, see every token.
        keep_tokens: how many image tokens to keep; None lets the knee of the scores decide.
        reference: the prompt tokens whose core neurons are counted: `all` of them (the paper),
            `text` (those after the last picture) or `last` (the last one).
        selector: how image tokens are scored, a name in `core.tokens.SELECTORS`.

    Raises:
        InputError: a value is out of its range.
    """

    tokens: bool = True
    neurons: bool = True
    rho: float = 0.2
    beta: float = 0.4
    prune_layer: int = 2
    keep_tokens: int | None = None
    reference: str = "all"
    selector: str = "core"

    def __post_init__(self) -> None:
        for name in ("rho", "beta"):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 <= value <= 1
            ):
                raise InputError(f"{name} is {value!r}; it has to be a number from 0 to 1")
        if not _is_whole(self.prune_layer) or self.prune_layer < 1:
            raise InputError(
                f"the prune layer is {self.prune_layer!r}; layers are counted from 1 upwards"
            )
        if self.keep_tokens is not None and (
            not _is_whole(self.keep_tokens) or self.keep_tokens < 0
        ):
            raise InputError(
                f"the number of image tokens to keep is {self.keep_tokens!r}; it has to be 0 "
                "or more"
            )
        if self.reference not in REFERENCES:
            raise InputError(
                f"the reference is {self.reference!r}; it is one of {', '.join(REFERENCES)}"
            )

    def check(self, layers: int) -> None:
        """Raise InputError if a decoder of `layers` layers cannot follow these settings."""
        if self.tokens and self.prune_layer > layers:
            raise InputError(
                f"the prune layer is {self.prune_layer}, but this model has {layers} decoder "
                f"layers; choose one from 1 to {layers}"
            )

    @classmethod
    def dense(cls) -> CoreMatching:
        """No sparsity: every token, every neuron."""
        return cls(tokens=False, neurons=False)

    @classmethod
    def paper(cls) -> CoreMatching:
        """The method exactly as published: rho 0.2, beta 0.4, tokens pruned after layer 2."""
        return cls()

    @classmethod
    def balanced(cls) -> CoreMatching:
        """The default. A checkpoint's own measured settings, where it has any, come before it."""
        return cls(reference="text")

    @classmethod
    def preset(cls, name: str) -> CoreMatching:
        """The settings that a preset's name stands for; InputError for a name not in PRESETS."""
        match name:
            case "dense":
                return cls.dense()
            case "tokens":
                return cls(neurons=False)
            case "neurons":
                return cls(tokens=False)
            case "paper":
                return cls.paper()
            case "balanced":
                return cls.balanced()
        raise InputError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CoreMatching:
        """Settings as a checkpoint's config.json holds them; InputError for an unknown name."""
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise InputError(f"config.json: corematching.balanced has no setting {name!r}")
        return cls(**values)

    def compacts(self, neurons: int) -> bool:
        """Whether a layer with that many neurons decodes with fewer."""
        return self.core_count(neurons) < neurons

    def core_count(self, neurons: int) -> int:
        """Core neurons of a layer with that many neurons: round(beta * neurons), or all of them."""
        return round_share(self.beta, neurons) if self.neurons else neurons


def round_share(share: float, of: int) -> int:
    """round(share * of), where the share is the decimal it is written as."""
    return round(Fraction(str(share)) * of)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

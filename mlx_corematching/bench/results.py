"""From samples to figures: medians, spread, and ratios against `dense`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from mlx_corematching.bench.measure import Sample
from mlx_corematching.core.settings import CoreMatching
from mlx_corematching.costs.work import Costs, Question

_TIMED = ("vision_s", "prefill_s", "first_token_s", "decode_tokens_per_s", "total_s")


@dataclass
class ModeResult:
    """One mode's figures.

    Attributes:
        values: each figure's median over the rounds; None where there is none.
        spread: the least and the largest of those that were timed.
    """

    values: dict[str, float | None]
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Sequence[Mapping[str, float | None]]) -> ModeResult:
        result = cls({})
        for name in samples[0]:
            values = [sample[name] for sample in samples]
            known = [value for value in values if value is not None]
            result.values[name] = median(known) if len(known) == len(values) else None
            if name in _TIMED and len(known) == len(values):
                result.spread[name] = (min(known), max(known))
        return result


def of_samples(samples: Sequence[Sample]) -> ModeResult:
    """What was measured of one of our modes."""
    return ModeResult.of(
        [
            {name: getattr(sample, name) for name in (*_TIMED, "peak_memory_gb", "kept")}
            for sample in samples
        ]
    )


def of_peer(answers: Sequence[Mapping[str, Any]], new_tokens: int) -> ModeResult:
    """What was measured of the peer, whose prefill includes its vision tower.

    It ends an answer where the model does. Its total is that of `new_tokens` at its own rate,
    because ours go on for so many.
    """
    rows: list[dict[str, float | None]] = []
    for answer in answers:
        rate = answer["decode_tokens_per_s"]
        decode_s = (new_tokens - 1) / rate if rate else 0.0
        rows.append(
            {
                "vision_s": None,
                "prefill_s": answer["prefill_s"],
                "first_token_s": answer["first_token_s"],
                "decode_tokens_per_s": rate,
                "total_s": answer["first_token_s"] + decode_s,
                "peak_memory_gb": answer["peak_memory_gb"],
                "kept": None,
                "generated_tokens": answer["generated_tokens"],
            }
        )
    return ModeResult.of(rows)


def add_counts(
    result: ModeResult, costs: Costs, question: Question, settings: CoreMatching, bandwidth: float
) -> None:
    """Add what is counted rather than measured; `bandwidth` is in 10^9 bytes a second."""
    read = costs.bytes_per_token(question, settings)
    speed = result.values["decode_tokens_per_s"]
    result.values |= {
        "weight_bytes_per_token": costs.weight_bytes_per_token(settings),
        "kv_bytes_per_token": costs.kv_bytes_per_token(question, settings),
        "bytes_per_token": read,
        "prefill_flops": costs.prefill_flops(question, settings).total,
        "decode_flops": costs.decode_flops(question, settings).total,
        "answer_flops": costs.answer_flops(question, settings),
        "bandwidth_share": speed * read / (bandwidth * 1e9) if speed else None,
    }


def ratios(base: ModeResult, other: ModeResult) -> dict[str, float | None]:
    """How many times better than the base: above 1 is faster, or less work."""
    mine, theirs = dict(base.values), dict(other.values)
    if None in (mine["vision_s"], theirs["vision_s"]):
        # A peer's prefill has its vision tower in it.
        for values in (mine, theirs):
            values["prefill_s"] = (values["vision_s"] or 0.0) + (values["prefill_s"] or 0.0)

    def ratio(above: float | None, below: float | None) -> float | None:
        return above / below if above and below else None

    return {
        "prefill": ratio(mine["prefill_s"], theirs["prefill_s"]),
        "decode": ratio(theirs["decode_tokens_per_s"], mine["decode_tokens_per_s"]),
        "end_to_end": ratio(mine["total_s"], theirs["total_s"]),
        "flops": ratio(mine.get("answer_flops"), theirs.get("answer_flops")),
        "prefill_flops": ratio(mine.get("prefill_flops"), theirs.get("prefill_flops")),
        "bytes": ratio(mine.get("bytes_per_token"), theirs.get("bytes_per_token")),
    }

"""What byte and FLOP counts imply for a chip. Never a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mlx_corematching.core.settings import CoreMatching
from mlx_corematching.costs.chips import Chip
from mlx_corematching.costs.work import Costs, Question


@dataclass(frozen=True)
class Projection:
    """The limits that a chip's bandwidth and peak rate set on one mode.

    Attributes:
        chip: which, and its figures in words.
        decode_tokens_per_s: at most: bandwidth over the bytes that a token reads.
        prefill_s: at least: FLOPs of vision tower and prefill over the GPU's FP32 peak.
        answer_s: at least: that, and every token after the first.
    """

    chip: str
    decode_tokens_per_s: float
    prefill_s: float
    answer_s: float

    HEAD: ClassVar[tuple[str, ...]] = (
        "decode tok/s, at most", "vision + prefill s, at least", "answer s, at least"
    )  # fmt: skip

    def cells(self) -> list[str]:
        """The figures in the order of HEAD."""
        return [
            f"{self.decode_tokens_per_s:.1f}", f"{self.prefill_s:.3f}", f"{self.answer_s:.2f}"
        ]  # fmt: skip


def project(costs: Costs, question: Question, settings: CoreMatching, chip: Chip) -> Projection:
    """What the chip can do at the very best."""
    speed = chip.bandwidth_gb_s * 1e9 / costs.bytes_per_token(question, settings)
    flops = costs.prefill_flops(question, settings).total
    if question.image:
        flops += round(costs.vision_flops() * question.image / costs.config.image_tokens)
    prefill = flops / (chip.gpu_tflops * 1e12)
    stated = "stated" if chip.tflops_stated else "estimated"
    return Projection(
        chip=f"{chip.name} ({chip.gpu_cores} GPU cores, {chip.bandwidth_gb_s:g} GB/s, "
        f"{chip.gpu_tflops:g} TFLOPS {stated})",
        decode_tokens_per_s=speed,
        prefill_s=prefill,
        answer_s=prefill + max(question.new - 1, 0) / speed,
    )

"""What fits: predicted peak memory and projected speed, by preset and memory mode.

The same arithmetic refuses, before anything is loaded, what will not fit.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_corematching.core.settings import CoreMatching
from mlx_corematching.errors import InputError

if TYPE_CHECKING:
    from mlx_corematching.costs.chips import Chip
    from mlx_corematching.costs.memory import Peak
    from mlx_corematching.costs.projection import Projection
    from mlx_corematching.costs.work import Costs, Question

# macOS lets a GPU have two thirds of small memories and three quarters of large ones: what
# users report as `recommendedMaxWorkingSetSize`, 27 GiB of 36 among them.
_LARGE_MEMORY = 36 << 30
# Share of a picture's tokens taken for kept where only the picture can tell: the upper end of
# what the paper reports.
KEPT_SHARE = 0.2


@dataclass(frozen=True)
class Row:
    """One preset in one memory mode.

    Attributes:
        peak: predicted.
        fits: whether it is within what the machine can use.
        projection: what a chip could do at best; None without a chip.
    """

    preset: str
    memory: str
    settings: CoreMatching
    peak: Peak
    fits: bool
    projection: Projection | None


def usable_of(memory_bytes: int) -> int:
    """What MLX can use of a Mac's memory."""
    return memory_bytes * 2 // 3 if memory_bytes < _LARGE_MEMORY else memory_bytes * 3 // 4


def plan(
    costs: Costs,
    question: Question,
    presets: dict[str, CoreMatching],
    usable: int,
    *,
    cpu: bool,
    chip: Chip | None = None,
) -> list[Row]:
    """Every preset in every memory mode that it can have.

    Args:
        usable: bytes that the model and its answer may take.
        cpu: whether MLX's CPU backend will compute.
        chip: what to project speed on. Streaming reads every FFN from disk in a prefill, which
            no projection of ours covers; its decoding is like the resident one's.
    """
    from mlx_corematching.costs.memory import predict_peak
    from mlx_corematching.costs.projection import project

    rows = []
    for name, settings in presets.items():
        streams = settings.compacts(costs.config.text.intermediate_size)
        for memory in ("resident", "streaming") if streams else ("resident",):
            peak = predict_peak(costs, question, settings, memory, cpu=cpu)
            projection = project(costs, question, settings, chip) if chip else None
            rows.append(Row(name, memory, settings, peak, peak.nbytes <= usable, projection))
    return rows


def checkpoint_costs(folder: Path, *, cpu: bool) -> Costs:
    """The costs of a converted checkpoint, from its config and headers alone."""
    from mlx_corematching.costs.weights import Storage
    from mlx_corematching.costs.work import Costs
    from mlx_corematching.loading import check_format
    from mlx_corematching.models.config import LlavaConfig
    from mlx_corematching.models.shards import read_headers

    config = LlavaConfig.from_folder(folder)
    check_format(folder, config)
    return Costs(config, Storage.of_checkpoint(config, read_headers(folder), cpu=cpu))


def expected_question(
    costs: Costs,
    settings: CoreMatching,
    *,
    pictures: int = 1,
    text: int = 64,
    new: int = 256,
    kept: int | None = None,
) -> Question:
    """A question of the usual size; `kept` defaults to KEPT_SHARE of the image tokens."""
    from mlx_corematching.costs.work import Question

    image = pictures * costs.config.image_tokens
    if kept is None:
        kept = (
            settings.keep_tokens if settings.keep_tokens is not None else round(KEPT_SHARE * image)
        )
    return Question(text, image, min(kept, image), new)


def refuse_what_does_not_fit(
    folder: Path, settings: CoreMatching | None, memory: str, *, pictures: int, new: int
) -> None:
    """Raise InputError if a model cannot answer so, or not within this machine's memory.

    Args:
        settings: how sparsely; None is the checkpoint's own.
        pictures: how many there are in the prompt.
        new: tokens of the longest answer; at most 256 are reckoned with.
    """
    from mlx_corematching.engine import check_memory_mode
    from mlx_corematching.machine import Machine

    machine = Machine.this()
    cpu = machine.backend == "cpu"
    costs = checkpoint_costs(folder, cpu=cpu)
    settings = settings or costs.config.balanced
    check_memory_mode(memory, settings, costs.config.text.intermediate_size)
    question = expected_question(costs, settings, pictures=pictures, new=min(new, 256))
    if not machine.usable_bytes:
        return
    paper = CoreMatching.paper()
    ways = {"as asked": settings, "neurons": CoreMatching.preset("neurons"), "paper": paper}
    rows = plan(costs, question, ways, machine.usable_bytes, cpu=cpu)
    asked = next(row for row in rows if row.preset == "as asked" and row.memory == memory)
    if asked.fits:
        return
    says = (
        f"this will take {asked.peak.nbytes / 1e9:.1f} GB, and this machine can give it "
        f"{machine.usable_bytes / 1e9:.1f} GB"
    )
    fitting = next((row for row in rows if row.fits), None)
    if fitting is None:
        mend = "no preset or memory mode fits; use a smaller model or fewer bits"
    else:
        preset = "" if fitting.preset == "as asked" else f"--preset {fitting.preset} "
        mend = f"{preset}--memory {fitting.memory} fits ({fitting.peak.nbytes / 1e9:.1f} GB)"
    raise InputError(f"{says}; {mend}, or --force to try all the same")


if __name__ == "__main__":
    from mlx_corematching.cli import main

    sys.exit(main(["plan", *sys.argv[1:]]))

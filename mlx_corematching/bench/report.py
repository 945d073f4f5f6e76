"""What the bench found: as tables, as JSON, as a plot."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_corematching.bench.results import ModeResult, ratios
from mlx_corematching.costs.projection import Projection
from mlx_corematching.errors import InputError
from mlx_corematching.machine import Machine
from mlx_corematching.tables import table


@dataclass
class Report:
    """Everything that one run of the bench found.

    Attributes:
        machine, bandwidth: what it ran on, and its memory's speed in 10^9 bytes a second.
        subject: the model or the shape, and how it is stored.
        question: tokens of the prompt, of the pictures, kept by count, and answered.
        rounds: how many were counted.
        modes: by name, `dense` first.
        peer: versions and texts, if there was one.
        projections: what the counts imply for a chip, by mode.
    """

    machine: Machine
    bandwidth: float
    subject: dict[str, Any]
    question: dict[str, Any]
    rounds: int
    modes: dict[str, ModeResult]
    peer: dict[str, Any] | None = None
    projections: dict[str, Projection] | None = None

    def ratios(self, base: str) -> dict[str, dict[str, float | None]]:
        """Each mode against one of them; empty if that one was not measured."""
        if base not in self.modes:
            return {}
        return {name: ratios(self.modes[base], mode) for name, mode in self.modes.items()}

    def as_json(self) -> dict[str, Any]:
        """One object; times in seconds, sizes in bytes or 10^9 bytes (`_gb`)."""
        machine = dataclasses.asdict(self.machine)
        return {
            "machine": {**machine, "bandwidth_gb_s": self.bandwidth},
            "subject": self.subject,
            "question": self.question,
            "rounds": self.rounds,
            "modes": {
                name: {**mode.values, "spread": mode.spread} for name, mode in self.modes.items()
            },
            "ratios": self.ratios("dense"),
            "ratios_to_peer": self.ratios("mlx-vlm"),
            "peer": self.peer,
            "projections": self.projections
            and {name: dataclasses.asdict(value) for name, value in self.projections.items()},
        }

    def as_text(self, *, markdown: bool) -> str:
        """Two tables, measured and compared, and what belongs to them in words."""
        m, q = self.machine, self.question
        parts = [
            f"{m.chip}, {m.memory_bytes / 1e9:.0f} GB, {m.system}, MLX {m.mlx} on {m.backend}; "
            f"memory read at {self.bandwidth:.1f} GB/s. {self.subject['what']}; prompt of "
            f"{q['text']} text and {q['image']} image tokens, {q['new']} tokens answered; "
            f"medians of {self.rounds} interleaved rounds.",
            table(_MEASURED, [self._measured(name) for name in self.modes], markdown=markdown),
        ]
        if "dense" in self.modes:
            parts += [
                "Times better than dense, measured and (FLOPs, bytes) counted:",
                table(_COMPARED, self._compared("dense", _COMPARED_KEYS), markdown=markdown),
            ]
        if self.peer:
            keys = ("prefill", "decode", "end_to_end")
            parts += [
                f"Times better than mlx-vlm {self.peer['mlx_vlm']} (MLX {self.peer['mlx']}), whose "
                "prefill has the vision tower in it and is compared with both of ours:",
                table(
                    ("mode", "vision + prefill", "decode", "end to end"),
                    self._compared("mlx-vlm", keys),
                    markdown=markdown,
                ),
                f"Greedy texts of dense and mlx-vlm: {_short(self.peer['dense_text'])} and "
                f"{_short(self.peer['text'])}: "
                f"{'the same' if self.peer['same_text'] else 'NOT the same'}.",
            ]
            said = self.modes["mlx-vlm"].values["generated_tokens"]
            if said != q["new"]:
                parts.append(
                    f"mlx-vlm ended after {said:.0f} tokens, as the model did; its end-to-end time "
                    f"is that of {q['new']} at its own rate."
                )
        if self.projections:
            chip = next(iter(self.projections.values())).chip
            rows = [[name, *value.cells()] for name, value in self.projections.items()]
            parts += [
                f"PROJECTION for {chip}, not a measurement: the limits that its stated bandwidth "
                "and peak rate set on the counts above."
                + (" An M5's neural accelerators can prefill faster." if "M5" in chip else ""),
                table(["mode", *Projection.HEAD], rows, markdown=markdown),
            ]
        return "\n\n".join(parts)

    def plot(self, file: Path) -> None:
        """Draw each mode's prefill and decode against dense; needs the plot extra."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise InputError(
                "a plot needs matplotlib: pip install 'mlx-corematching[plot]'"
            ) from None
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots(1, 2)
        names = list(self.modes)
        for ax, key, title in (
            (axes[0], "first_token_s", "seconds to the first token"),
            (axes[1], "decode_tokens_per_s", "decoded tokens a second"),
        ):
            heights = [self.modes[name].values[key] or 0.0 for name in names]
            low = [self._error(name, key, 0) for name in names]
            high = [self._error(name, key, 1) for name in names]
            bars = ax.bar(names, heights, yerr=[low, high], capsize=4, color="#4878a8")
            ax.bar_label(bars, fmt="%.3g", padding=3)
            ax.set_title(title)
            ax.spines[["top", "right"]].set_visible(False)
        figure.suptitle(f"{self.subject['what']} on {self.machine.chip}, {self.machine.backend}")
        figure.savefig(file, dpi=150)

    def _error(self, name: str, key: str, side: int) -> float:
        mode = self.modes[name]
        middle = mode.values[key]
        return abs(mode.spread[key][side] - middle) if middle and key in mode.spread else 0.0

    def _measured(self, name: str) -> list[str]:
        mode = self.modes[name]
        v = mode.values
        return [
            name,
            _number(v["kept"], "{:.0f}"),
            _seconds(v["vision_s"]),
            _spread(mode, "prefill_s"),
            _seconds(v["first_token_s"]),
            _spread(mode, "decode_tokens_per_s"),
            _number(v.get("bytes_per_token"), "{:.1f}", 1e6),
            _number(v.get("prefill_flops"), "{:.1f}", 1e9),
            _number(v.get("decode_flops"), "{:.2f}", 1e9),
            _number(v["peak_memory_gb"], "{:.2f}"),
            _number(v.get("predicted_peak_gb"), "{:.2f}"),
            _number(v.get("bandwidth_share"), "{:.1%}"),
        ]

    def _compared(self, base: str, keys: tuple[str, ...]) -> list[list[str]]:
        return [
            [name, *(_number(values[key], "{:.2f}") for key in keys)]
            for name, values in self.ratios(base).items()
        ]


_MEASURED = (
    "mode", "kept", "vision s", "prefill s", "first token s", "decode tok/s", "MB/token",
    "prefill GFLOP", "decode GFLOP", "peak GB", "predicted GB",
    "of bandwidth",
)  # fmt: skip
_COMPARED = ("mode", "prefill", "prefill FLOPs", "decode", "bytes", "end to end", "all FLOPs")
_COMPARED_KEYS = ("prefill", "prefill_flops", "decode", "bytes", "end_to_end", "flops")


def _short(text: str) -> str:
    """A text's beginning in quotes; the JSON has all of it."""
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _number(value: float | None, form: str, unit: float = 1.0) -> str:
    return "–" if value is None else form.format(value / unit)


def _seconds(value: float | None) -> str:
    return _number(value, "{:.3f}")


def _spread(mode: ModeResult, key: str) -> str:
    """A median, and how far the rounds lie apart."""
    value = mode.values[key]
    if value is None:
        return "–"
    low, high = mode.spread[key]
    return f"{_rounded(value)} ({_rounded(low)}–{_rounded(high)})"


def _rounded(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"

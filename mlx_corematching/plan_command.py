"""Say what fits: peak memory and speed of a model on a machine, before it is loaded.

Memory is predicted and speed is projected from byte and FLOP counts; nothing is measured.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import TYPE_CHECKING

from mlx_corematching.core.settings import PRESETS, CoreMatching
from mlx_corematching.errors import InputError

if TYPE_CHECKING:
    from mlx_corematching.costs.chips import Chip
    from mlx_corematching.costs.work import Costs, Question
    from mlx_corematching.plan import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--model", metavar="PATH_OR_ID", help="a converted folder or a hub id (default: demo model)"
    )
    model.add_argument(
        "--shape",
        help="instead of a model: llava-1.5-7b, llava-1.5-13b, or "
        "hidden,neurons,layers,heads,kv_heads,vocabulary",
    )
    model.add_argument("--layers", type=int, help="decoder layers of --shape")
    model.add_argument(
        "--quantize", choices=("4", "8", "none"), help="bits of --shape's decoder (default: 4)",
    )  # fmt: skip
    machine = parser.add_argument_group("the machine (default: this one)")
    machine.add_argument("--memory-gb", type=float, metavar="GB", help="a Mac with that memory")
    machine.add_argument("--chip", help="an M-series chip, m2-pro say, to project speed on")
    question = parser.add_argument_group("the question")
    question.add_argument(
        "--pictures", type=int, default=1, metavar="N", help="(default: %(default)s)"
    )
    question.add_argument(
        "--keep-tokens", type=int, metavar="N",
        help="image tokens that modes keep which prune them (default: a fifth)",
    )  # fmt: skip
    question.add_argument(
        "--prompt-tokens", type=int, default=64, metavar="N",
        help="tokens of text (default: %(default)s)",
    )  # fmt: skip
    question.add_argument(
        "--new-tokens", type=int, default=256, metavar="N",
        help="tokens of the answer (default: %(default)s)",
    )  # fmt: skip
    question.add_argument("--beta", type=float, help="share of neurons to decode with, 0 to 1")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--flops", action="store_true", help="add where the operations go, preset by preset"
    )
    output.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    output.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run(args: argparse.Namespace) -> None:
    """Print the plan; raises InputError for what cannot be used."""
    _check(args)

    from mlx_corematching.machine import Machine
    from mlx_corematching.plan import expected_question, plan, usable_of
    from mlx_corematching.tables import table

    machine = Machine.this()
    # Another machine is a Mac, and computes on its GPU.
    other = args.memory_gb is not None or args.chip is not None
    cpu = machine.backend == "cpu" and not other
    known = _chip(args.chip, machine.chip if not other else None)
    costs = _costs(args, cpu)
    presets = {
        name: costs.config.balanced if name == "balanced" else CoreMatching.preset(name)
        for name in PRESETS
    }
    if args.beta is not None:
        from dataclasses import replace

        presets = {n: replace(s, beta=args.beta) if s.neurons else s for n, s in presets.items()}
    question = expected_question(
        costs,
        CoreMatching.paper(),
        pictures=args.pictures,
        text=args.prompt_tokens,
        new=args.new_tokens,
        kept=args.keep_tokens,
    )
    text = costs.config.text
    for settings in presets.values():
        settings.check(text.num_hidden_layers)
    if question.prompt + question.new > text.max_position_embeddings:
        raise InputError(
            f"{question.prompt} prompt tokens and {question.new} new ones do not fit into a "
            f"context of {text.max_position_embeddings}"
        )
    usable = machine.usable_bytes
    if args.memory_gb is not None:
        usable = usable_of(round(args.memory_gb * 2**30))
    rows = plan(costs, question, presets, usable, cpu=cpu, chip=known)
    weights = costs.weights.total
    print(
        f"{args.shape or args.model or 'demo'}: {weights.parameters / 1e9:.2f} G parameters, "
        f"{weights.nbytes / 1e9:.2f} GB of weights. Prompt of {question.text} text and "
        f"{question.image} image tokens ({question.kept} kept where they are pruned), "
        f"{question.new} tokens answered. {usable / 1e9:.1f} GB can be used.\n"
    )
    head = ["preset", "memory", "peak GB", "fits", "MB/token"]
    cells = [
        [
            row.preset,
            row.memory,
            f"{row.peak.nbytes / 1e9:.2f}",
            "yes" if row.fits else "no",
            f"{costs.bytes_per_token(question, row.settings) / 1e6:.0f}",
        ]
        for row in rows
    ]
    if known:
        from mlx_corematching.costs.projection import Projection

        head += Projection.HEAD
        for row, line in zip(rows, cells, strict=True):
            assert row.projection
            line += row.projection.cells()
    print(table(head, cells, markdown=args.markdown))
    if known:
        assert rows[0].projection
        print(
            f"\nSpeeds are a PROJECTION for {rows[0].projection.chip}, not a measurement: the "
            "limits of its bandwidth and peak rate. Streaming also reads all FFNs from disk "
            "with each prompt."
            + (" An M5's neural accelerators can prefill faster." if "M5" in known.name else "")
        )
    if args.flops:
        print("\n" + flops_table(costs, question, presets, markdown=args.markdown))
    print("\n" + _advice(args, rows))


def flops_table(
    costs: Costs, question: Question, presets: dict[str, CoreMatching], *, markdown: bool
) -> str:
    """Where the operations of an answer go, in GFLOP, and how many times fewer than densely."""
    from mlx_corematching.tables import table

    dense = costs.answer_flops(question, CoreMatching.dense())
    dense_prefill = costs.prefill_flops(question, CoreMatching.dense()).total
    dense_token = costs.decode_flops(question, CoreMatching.dense()).total
    ways = [(name, settings, False) for name, settings in presets.items()]
    # What a count would be that lets the prefill use core neurons, which are not known then.
    ways.append(("(paper, were prefill FFNs sparse)", CoreMatching.paper(), True))
    lines = []
    for name, settings, sparse in ways:
        prefill = costs.prefill_flops(question, settings, sparse=sparse)
        token = costs.decode_flops(question, settings)
        answer = costs.answer_flops(question, settings, sparse=sparse)
        lines.append(
            [
                name,
                *(
                    f"{value / 1e9:.1f}"
                    for value in (prefill.projections, prefill.attention, prefill.ffn)
                ),
                f"{prefill.total / 1e9:.1f}",
                f"{dense_prefill / prefill.total:.2f}×",
                f"{token.ffn / 1e9:.2f}",
                f"{token.total / 1e9:.2f}",
                f"{dense_token / token.total:.2f}×",
                f"{answer / 1e9:.0f}",
                f"{dense / answer:.2f}×",
            ]
        )
    head = [
        "GFLOP", "prefill: projections", "attention", "FFN", "all", "less by", "a token: FFN",
        "all", "less by", "answer", "less by",
    ]  # fmt: skip
    return table(head, lines, markdown=markdown)


def _check(args: argparse.Namespace) -> None:
    if args.model and args.shape:
        raise InputError("--model and --shape are two models; give one of them")
    for name in ("layers", "quantize"):
        if getattr(args, name) is not None and not args.shape:
            raise InputError(f"--{name} has an effect with --shape only")
    for name, least in (("pictures", 0), ("prompt_tokens", 1), ("new_tokens", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} has to be {least} or more")
    if args.keep_tokens is not None and args.keep_tokens < 0:
        raise InputError("--keep-tokens has to be 0 or more")
    if args.memory_gb is not None and not 0 < args.memory_gb < 1e6:
        raise InputError(f"a machine has no {args.memory_gb:g} GB of memory")
    if args.beta is not None:
        CoreMatching(beta=args.beta)  # raises for a value out of range


def _chip(named: str | None, own: str | None) -> Chip | None:
    """The chip that was named, or this machine's if it is in the table."""
    from mlx_corematching.costs.chips import chip

    if named:
        return chip(named)
    with suppress(InputError):
        return chip(own or "")
    return None


def _costs(args: argparse.Namespace, cpu: bool) -> Costs:
    from mlx_corematching.costs.weights import Storage
    from mlx_corematching.costs.work import Costs
    from mlx_corematching.loading import find_folder
    from mlx_corematching.models.config import LlavaConfig
    from mlx_corematching.models.shapes import shape_config
    from mlx_corematching.plan import checkpoint_costs

    if not args.shape:
        return checkpoint_costs(find_folder(args.model), cpu=cpu)
    config = LlavaConfig.from_dict(shape_config(args.shape, layers=args.layers))
    bits = None if args.quantize == "none" else int(args.quantize or 4)
    return Costs(config, Storage.of(bits, cpu=cpu))


def _advice(args: argparse.Namespace, rows: list[Row]) -> str:
    """The command to run."""
    best = next((row for row in rows if row.preset == "balanced" and row.fits), None)
    best = best or next((row for row in rows if row.fits), None)
    if best is None:
        return "Nothing fits: use a smaller model, fewer bits, or a machine with more memory."
    model = f" --model {args.model}" if args.model else " --model FOLDER" if args.shape else ""
    options = f" --max-tokens {args.new_tokens}"
    if args.beta is not None and best.settings.neurons:
        options += f" --beta {args.beta:g}"
    if args.keep_tokens is not None and best.settings.tokens:
        options += f" --keep-tokens {args.keep_tokens}"
    return (
        f"Run: python -m mlx_corematching.generate{model} --preset {best.preset} "
        f"--memory {best.memory}{options} --image PICTURE"
    )

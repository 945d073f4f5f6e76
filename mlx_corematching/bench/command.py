"""Measure latency: dense, tokens, neurons and both, in turn, on this machine.

Without --model or --shape the bundled demo model answers a question about a random picture.
Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_corematching.bench.checks import asked_shape, changes, check
from mlx_corematching.bench.modes import FIGURE_9, MODES, choose_modes
from mlx_corematching.errors import InputError

if TYPE_CHECKING:
    from mlx_corematching.bench.comparison import PeerTask
    from mlx_corematching.bench.report import Report
    from mlx_corematching.bench.subject import Subject

QUESTION = "What is shown in this image?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subject = parser.add_argument_group("what is measured")
    subject.add_argument("--model", metavar="PATH_OR_ID", help="a converted folder or a hub id")
    subject.add_argument(
        "--shape",
        help="instead of a model, random weights: llava-1.5-7b, llava-1.5-13b, or "
        "hidden,neurons,layers,heads,kv_heads,vocabulary",
    )
    subject.add_argument("--layers", type=int, help="decoder layers of --shape")
    subject.add_argument(
        "--tower-layers",
        type=int,
        metavar="N",
        help="layers of --shape's vision tower (default: 24)",
    )
    subject.add_argument(
        "--quantize", choices=("4", "8", "none"), help="bits of --shape's decoder (default: 4)",
    )  # fmt: skip
    subject.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"),
        help="type of what is not quantised in --shape (default: float16; float32 if nothing is "
        "and MLX computes on the CPU)",
    )  # fmt: skip
    subject.add_argument(
        "--memory", choices=("resident", "streaming"), default="resident",
        help="where dense FFNs lie: in memory, or on disk (default: %(default)s)",
    )  # fmt: skip
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--image", help="the picture for --model (default: a random one)")
    asked.add_argument("--prompt", help=f"the question for a model (default: {QUESTION!r})")
    asked.add_argument(
        "--image-tokens", type=int, metavar="N",
        help="image tokens of --shape's picture, a square; 0 for no picture (default: 576)",
    )  # fmt: skip
    asked.add_argument(
        "--prompt-tokens", type=int, metavar="N",
        help="text tokens of --shape's prompt (default: 64)",
    )  # fmt: skip
    asked.add_argument(
        "--new-tokens", type=int, default=64, metavar="N",
        help="tokens to answer (default: %(default)s)",
    )  # fmt: skip
    modes = parser.add_argument_group("modes")
    modes.add_argument(
        "--modes", nargs="+", choices=MODES, default=list(FIGURE_9), metavar="MODE",
        help=f"of {', '.join(MODES)}; dense is always there (default: {' '.join(FIGURE_9)})",
    )  # fmt: skip
    modes.add_argument("--keep-tokens", type=int, metavar="N", help="image tokens to keep")
    modes.add_argument("--beta", type=float, help="share of neurons to decode with, 0 to 1")
    modes.add_argument("--rho", type=float, help="share of a token's neurons that are its core")
    modes.add_argument("--prune-layer", type=int, metavar="L", help="drop tokens after it, from 1")
    modes.add_argument("--reference", choices=("all", "text", "last"), help="tokens that count")
    modes.add_argument("--peer", choices=("mlx-vlm",), help="measure an installed mlx-vlm as well")
    modes.add_argument(
        "--peer-model", metavar="FOLDER",
        help="the checkpoint in Hugging Face format that --model was converted from",
    )  # fmt: skip
    modes.add_argument(
        "--peer-python", metavar="PYTHON", default=sys.executable,
        help="Python of an environment that has the peer (default: this one)",
    )  # fmt: skip
    rounds = parser.add_argument_group("rounds and output")
    rounds.add_argument("--rounds", type=int, default=3, help="counted (default: %(default)s)")
    rounds.add_argument("--warmup", type=int, default=1, help="before those (default: %(default)s)")
    rounds.add_argument(
        "--project", metavar="CHIP", help="what the counts imply for an M-series chip (m2-pro, say)"
    )
    rounds.add_argument("--json", metavar="FILE", help="write everything as JSON")
    rounds.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    rounds.add_argument("--plot", metavar="PNG", help="draw the modes (needs the plot extra)")
    rounds.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run(args: argparse.Namespace) -> None:
    """Measure and report; raises InputError for what cannot be used."""
    check(args)

    from mlx_corematching.bench.comparison import compare

    with ExitStack() as stack:
        subject, peer = _subjects(args, stack)
        report = compare(
            subject,
            choose_modes(args.modes, changes(args), subject.model.balanced),
            rounds=args.rounds,
            warmup=args.warmup,
            new_tokens=args.new_tokens,
            peer=peer,
            chip=args.project,
        )
    if args.json:
        _write_json(args.json, report)
    print(report.as_text(markdown=args.markdown))
    if args.plot:
        report.plot(Path(args.plot))


def _subjects(args: argparse.Namespace, stack: ExitStack) -> tuple[Subject, PeerTask | None]:
    """What is measured, and the peer with the same model."""
    from mlx_corematching.bench.subject import opened_model, opened_shape, write_pair

    if args.shape and not args.peer:
        shape = asked_shape(args)
        return stack.enter_context(opened_shape(shape, args.memory, args.new_tokens)), None
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corematching-")))
    question = args.prompt or QUESTION
    image = _picture(args.image, folder)
    peer = None
    if args.peer:
        from mlx_corematching.bench.peer import Peer

        # Before anything is made: it may not be there.
        peer = stack.enter_context(Peer(args.peer_python))
    model, source, what = args.model, args.peer_model, None
    if args.shape:
        shape = asked_shape(args)
        what = shape.what
        source, model = write_pair(shape, folder)
    subject = opened_model(model, str(image), question, args.memory, args.new_tokens, what)
    if peer is None:
        return subject, None

    from mlx_corematching.bench.comparison import PeerTask

    peer.load(Path(source).expanduser())
    return subject, PeerTask(peer, question, image)


def _picture(source: str | None, folder: Path) -> Path:
    """The picture that is asked about, fetched once; noise if none was given."""
    import numpy as np
    from PIL import Image

    from mlx_corematching.inputs.pictures import load_picture

    if source is None:
        noise = np.random.RandomState(0).randint(0, 256, (336, 336, 3), np.uint8)
        image = Image.fromarray(noise)
    else:
        image = load_picture(source).image
    image.save(folder / "picture.png")
    return folder / "picture.png"


def _write_json(file: str, report: Report) -> None:
    try:
        Path(file).write_text(json.dumps(report.as_json(), indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error})") from None

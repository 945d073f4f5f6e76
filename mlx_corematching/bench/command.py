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
from typing import TYPE_CHECKING, Any

from mlx_corematching.bench.modes import FIGURE_9, MODES, choose_modes
from mlx_corematching.core.settings import CoreMatching
from mlx_corematching.errors import InputError

if TYPE_CHECKING:
    from mlx_corematching.bench.comparison import PeerTask
    from mlx_corematching.bench.subject import Shape, Subject


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
        help="type of what is not quantised in --shape (default: float16)",
    )  # fmt: skip
    subject.add_argument(
        "--memory", choices=("resident", "streaming"), default="resident",
        help="where dense FFNs lie: in memory, or on disk (default: %(default)s)",
    )  # fmt: skip
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--image", help="the picture for --model (default: a random one)")
    asked.add_argument(
        "--prompt", default="What is shown in this image?", help="the question for --model"
    )
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
    _check(args)

    from mlx_corematching.bench.comparison import compare

    with ExitStack() as stack:
        subject, peer = _subjects(args, stack)
        report = compare(
            subject,
            choose_modes(args.modes, _changes(args), subject.model.balanced),
            rounds=args.rounds,
            warmup=args.warmup,
            new_tokens=args.new_tokens,
            peer=peer,
            chip=args.project,
        )
    print(report.as_text(markdown=args.markdown))
    if args.json:
        Path(args.json).write_text(json.dumps(report.as_json(), indent=2) + "\n")
    if args.plot:
        report.plot(Path(args.plot))


def _check(args: argparse.Namespace) -> None:
    """Everything that can be known to be wrong before a model is made."""
    for name, least in (("new_tokens", 1), ("rounds", 1), ("warmup", 0), ("prompt_tokens", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} has to be {least} or more")
    if args.model and args.shape:
        raise InputError("--model and --shape are two subjects; give one of them")
    only = {
        "--layers": args.layers, "--image-tokens": args.image_tokens, "--dtype": args.dtype,
    }  # fmt: skip
    for option, value in only.items():
        if value is not None and not args.shape:
            raise InputError(f"{option} has an effect with --shape only")
    if args.image and args.shape:
        raise InputError("--image has an effect with a model only")
    if args.peer and args.shape:
        if args.prompt_tokens is not None:
            raise InputError("--peer answers the question of --prompt; leave --prompt-tokens out")
        if args.quantize != "none" or args.memory != "resident" or args.image_tokens == 0:
            raise InputError(
                "--peer with --shape compares unquantised models, in memory, about a picture; add "
                "--quantize none and leave --memory and --image-tokens 0 out"
            )
    elif args.peer and not (args.model and args.peer_model):
        raise InputError(
            "--peer needs --model and --peer-model, the same checkpoint converted and in Hugging "
            "Face format; or --shape"
        )
    if args.peer_model and not Path(args.peer_model).expanduser().is_dir():
        raise InputError(f"there is no folder {args.peer_model}")
    for option in ("json", "plot"):
        file = getattr(args, option)
        if file and not Path(file).resolve().parent.is_dir():
            raise InputError(f"there is no folder {Path(file).parent} for --{option}")
    if args.project:
        from mlx_corematching.costs.chips import chip

        chip(args.project)
    if args.plot:
        from importlib.util import find_spec

        if find_spec("matplotlib") is None:
            raise InputError("a plot needs matplotlib: pip install 'mlx-corematching[plot]'")
    choose_modes(args.modes, _changes(args), CoreMatching.balanced())
    if args.shape:
        _shape(args)


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """The settings to change in every mode that uses them."""
    names = ("rho", "beta", "prune_layer", "keep_tokens", "reference")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _subjects(args: argparse.Namespace, stack: ExitStack) -> tuple[Subject, PeerTask | None]:
    """What is measured, and the peer with the same model."""
    from mlx_corematching.bench.subject import opened_model, opened_shape, write_pair

    if args.shape and not args.peer:
        shape = _shape(args)
        return stack.enter_context(opened_shape(shape, args.memory, args.new_tokens)), None
    image = args.image or _random_picture(stack)
    model, source, what = args.model, args.peer_model, None
    if args.shape:
        shape = _shape(args)
        what = shape.what
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corematching-")))
        source, model = write_pair(shape, folder)
    subject = opened_model(model, image, args.prompt, args.memory, args.new_tokens, what)
    if not args.peer:
        return subject, None

    from mlx_corematching.bench.comparison import PeerTask
    from mlx_corematching.bench.peer import Peer

    peer = stack.enter_context(Peer(args.peer_python, Path(source).expanduser()))
    return subject, PeerTask(peer, args.prompt, Path(image))


def _shape(args: argparse.Namespace) -> Shape:
    from mlx_corematching.bench.subject import Shape
    from mlx_corematching.models.shapes import shape_config

    bits = None if args.quantize == "none" else int(args.quantize or 4)
    dtype = args.dtype or "float16"
    config = shape_config(
        args.shape,
        layers=args.layers,
        image_tokens=args.image_tokens or None,
        tower_layers=24 if args.tower_layers is None else args.tower_layers,
    )
    what = f"{args.shape}, {config['text_config']['num_hidden_layers']} layers, "
    what += f"{bits}-bit, random weights" if bits else f"{dtype}, random weights"
    images = 0 if args.image_tokens == 0 else 1
    return Shape(config, what, bits, dtype, args.prompt_tokens or 64, images)


def _random_picture(stack: ExitStack) -> str:
    """A file with noise in it, for as long as the stack is open."""
    import numpy as np
    from PIL import Image

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corematching-")))
    noise = np.random.RandomState(0).randint(0, 256, (336, 336, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    return str(folder / "noise.png")

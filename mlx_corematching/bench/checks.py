"""What can be known to be wrong with the bench's arguments before a model is made."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_corematching.bench.modes import choose_modes
from mlx_corematching.core.settings import CoreMatching
from mlx_corematching.errors import InputError

if TYPE_CHECKING:
    from mlx_corematching.bench.subject import Shape

_LEAST = (("new_tokens", 1), ("rounds", 1), ("warmup", 0), ("prompt_tokens", 1))
_OF_SHAPES = (
    "layers", "tower_layers", "quantize", "dtype", "image_tokens", "prompt_tokens",
)  # fmt: skip


def check(args: argparse.Namespace) -> None:
    """Raise InputError for what cannot be used."""
    for name, least in _LEAST:
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} has to be {least} or more")
    _check_subject(args)
    _check_peer(args)
    _check_output(args)
    if args.project:
        from mlx_corematching.costs.chips import chip

        chip(args.project)
    modes = choose_modes(args.modes, changes(args), CoreMatching.balanced())
    if args.shape:
        _check_shape(args, modes)


def changes(args: argparse.Namespace) -> dict[str, Any]:
    """The settings to change in every mode that uses them."""
    names = ("rho", "beta", "prune_layer", "keep_tokens", "reference")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def asked_shape(args: argparse.Namespace) -> Shape:
    """What --shape and its options ask for; raises InputError if it cannot be."""
    from mlx_corematching.bench.subject import Shape
    from mlx_corematching.core.quantized import on_cpu
    from mlx_corematching.models.shapes import shape_config

    bits = None if args.quantize == "none" else int(args.quantize or 4)
    # The CPU backend multiplies half precision many times slower.
    dtype = args.dtype or ("float32" if bits is None and on_cpu() else "float16")
    config = shape_config(
        args.shape,
        layers=args.layers,
        image_tokens=args.image_tokens or None,
        tower_layers=24 if args.tower_layers is None else args.tower_layers,
    )
    what = f"{args.shape}, {config['text_config']['num_hidden_layers']} layers, "
    what += f"{bits}-bit, random weights" if bits else f"{dtype}, random weights"
    if args.memory == "streaming":
        what += ", streamed from files that were just written"
    images = 0 if args.image_tokens == 0 else 1
    return Shape(config, what, bits, dtype, args.prompt_tokens or 64, images)


def _check_subject(args: argparse.Namespace) -> None:
    if args.model is not None and args.shape is not None:
        raise InputError("--model and --shape are two subjects; give one of them")
    for name in _OF_SHAPES:
        if getattr(args, name) is not None and args.shape is None:
            raise InputError(f"--{name.replace('_', '-')} has an effect with --shape only")
    for name in ("image", "prompt"):
        if getattr(args, name) is not None and args.shape is not None and not args.peer:
            raise InputError(f"--{name} has an effect with a model only")


def _check_peer(args: argparse.Namespace) -> None:
    if not args.peer:
        if args.peer_model is not None:
            raise InputError("--peer-model has an effect with --peer mlx-vlm only")
        return
    if args.memory != "resident":
        raise InputError("--peer compares models in memory; leave --memory out")
    if args.shape is None and not (args.model and args.peer_model):
        raise InputError(
            "--peer needs --model and --peer-model, the same checkpoint converted and in Hugging "
            "Face format; or --shape"
        )
    if args.shape is not None:
        if args.quantize != "none" or args.image_tokens == 0 or args.prompt_tokens is not None:
            raise InputError(
                "--peer with --shape compares unquantised models that answer --prompt about a "
                "picture; add --quantize none, and leave --prompt-tokens and --image-tokens 0 out"
            )
        if args.peer_model is not None:
            raise InputError("--peer-model has no effect with --shape; leave one of them out")
    elif not Path(args.peer_model).expanduser().is_dir():
        raise InputError(f"there is no folder {args.peer_model}")


def _check_output(args: argparse.Namespace) -> None:
    for option in ("json", "plot"):
        given = getattr(args, option)
        if given is None:
            continue
        file = Path(given)
        if not file.resolve().parent.is_dir():
            raise InputError(f"there is no folder {file.parent} for --{option}")
        writable = os.access(file if file.exists() else file.resolve().parent, os.W_OK)
        if not given or file.is_dir() or not writable:
            raise InputError(f"--{option} {given or repr(given)} is no file that can be written")
    if args.plot is not None:
        from importlib.util import find_spec

        if Path(args.plot).suffix.lower() != ".png":
            raise InputError(f"the plot is a PNG picture; call it {Path(args.plot).stem}.png")
        if find_spec("matplotlib") is None:
            raise InputError("a plot needs matplotlib: pip install 'mlx-corematching[plot]'")


def _check_shape(args: argparse.Namespace, modes: dict[str, CoreMatching]) -> None:
    """Whether the modes can follow, the context holds it, and it fits into memory."""
    from mlx_corematching.bench.comparison import streamable
    from mlx_corematching.bench.random_model import complete_config
    from mlx_corematching.bench.subject import storage_of
    from mlx_corematching.core.quantized import on_cpu
    from mlx_corematching.costs.memory import predict_peak
    from mlx_corematching.costs.work import Costs, Question
    from mlx_corematching.machine import Machine

    shape = asked_shape(args)
    config = complete_config(shape.config, shape.bits)
    text = config.text
    if args.memory == "streaming":
        modes = streamable(modes, text.intermediate_size)
    image = shape.images * config.image_tokens
    if shape.text + image + args.new_tokens > text.max_position_embeddings:
        raise InputError(
            f"{shape.text + image} prompt tokens and {args.new_tokens} new ones do not fit into a "
            f"context of {text.max_position_embeddings}"
        )
    costs = Costs(config, storage_of(config, shape.dtype))
    usable = Machine.this().usable_bytes
    for name, settings in modes.items():
        settings.check(text.num_hidden_layers)
        kept = image if settings.keep_tokens is None else min(settings.keep_tokens, image)
        question = Question(shape.text, image, kept, args.new_tokens)
        peak = predict_peak(costs, question, settings, args.memory, cpu=on_cpu()).nbytes
        # The peer holds the same weights once more.
        peak += costs.weights.total.nbytes if args.peer else 0
        if usable and peak > usable:
            raise InputError(
                f"{name} will take {peak / 1e9:.1f} GB, and this machine can give it "
                f"{usable / 1e9:.1f} GB; use fewer --layers or --quantize 4, or --memory streaming"
            )

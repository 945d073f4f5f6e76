"""Convert a LLaVA checkpoint in Hugging Face format for this runtime.

The source is a folder or a hub id; the result is a new folder of safetensors shards that
`mlx_corematching.generate` loads. Messages go to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mlx_corematching.command import run_command
from mlx_corematching.errors import InputError

# Also what quantised checkpoints of mlx-lm have.
Q_BITS, Q_GROUP_SIZE = 4, 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hf-path",
        required=True,
        metavar="PATH_OR_ID",
        help="the source: a folder, or a hub id such as llava-hf/llava-1.5-7b-hf",
    )
    parser.add_argument(
        "--mlx-path",
        default="mlx_model",
        metavar="FOLDER",
        help="the folder to make; it may not exist yet (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="type of the weights that are not quantised, and of the quantised ones' scales "
        "(default: each tensor keeps its own)",
    )
    parser.add_argument(
        "-q",
        "--quantize",
        action="store_true",
        help="quantise the decoder; vision tower and projector stay as they are",
    )
    parser.add_argument(
        "--q-bits", type=int, choices=(4, 8), help=f"bits a weight (default: {Q_BITS})"
    )
    parser.add_argument(
        "--q-group-size",
        type=int,
        choices=(32, 64, 128),
        help=f"weights that share a scale (default: {Q_GROUP_SIZE})",
    )
    parser.add_argument("--revision", help="a hub branch, tag or commit of the source")
    parser.add_argument(
        "--upload-repo", metavar="ID", help="upload the result to this hub repository"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare every tensor of the result with the source before it is published",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run(args: argparse.Namespace) -> None:
    """Convert; raises InputError for what cannot be used."""
    for option in ("q_bits", "q_group_size"):
        if getattr(args, option) is not None and not args.quantize:
            raise InputError(
                f"--{option.replace('_', '-')} has no effect without --quantize; add it, or "
                "leave this one out"
            )

    from mlx_corematching.convert.conversion import convert

    done = convert(
        args.hf_path,
        args.mlx_path,
        dtype=args.dtype,
        quantize=args.quantize,
        q_bits=args.q_bits or Q_BITS,
        q_group_size=args.q_group_size or Q_GROUP_SIZE,
        revision=args.revision,
        upload_repo=args.upload_repo,
        verify=args.verify,
    )
    if done.left_out:
        _say(f"Left out, for no forward pass reads them: {', '.join(done.left_out)}.")
    if done.verification:
        _say(f"Verified: {done.verification}.")
    if done.uploaded_to:
        _say(f"Uploaded to {done.uploaded_to}.")
    _say(
        f"Wrote {done.folder}: {done.tensors} tensors, {done.nbytes / 1e9:.3f} GB in "
        f"{done.shards} {'file' if done.shards == 1 else 'files'}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m mlx_corematching.convert`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mlx_corematching.convert", description=__doc__)
    add_arguments(parser)
    return run_command(run, parser.parse_args(argv))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

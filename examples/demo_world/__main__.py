"""``python -m examples.demo_world``: fetches the artwork and paints the data."""

import argparse
import os
import sys
from pathlib import Path

from mlx_corematching.command import run_command
from mlx_corematching.errors import InputError

from . import artwork
from .folders import file_errors_in_a_sentence
from .make import HELD_OUT, make_examples, make_held_out, make_train

LEAST, MOST = 20, 1_000_000  # training scenes: some are held back; held-out seeds begin further on


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo_world", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fetch = commands.add_parser("artwork", help="fetch emoji and fonts, and nothing else")
    fetch.set_defaults(run=_artwork)

    make = commands.add_parser("make", help="paint training and held-out scenes, with questions")
    make.add_argument("--out", type=Path, default=Path("data"))
    make.add_argument(
        "--train", type=int, default=60_000, metavar="N", help="scenes to train on, and crowds"
    )
    make.add_argument(
        "--questions", type=int, default=300, metavar="N", help="held-out questions of each kind"
    )
    make.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    make.set_defaults(run=_make)

    show = commands.add_parser("examples", help="paint a few held-out scenes to show and test with")
    show.add_argument("--out", type=Path, default=Path("examples/images"))
    show.add_argument("--scenes", type=int, default=18, metavar="N")
    show.set_defaults(run=_examples)

    for command in (fetch, make, show):
        command.add_argument("--artwork", type=Path, default=Path("data/artwork"))
        command.add_argument(
            "--packages",
            type=Path,
            metavar="FOLDER",
            help="take the .tgz packages from here, not npm",
        )
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(_run, parser.parse_args())


def _run(args: argparse.Namespace) -> None:
    with file_errors_in_a_sentence():
        args.run(args)


def _artwork(args: argparse.Namespace) -> None:
    artwork.fetch(args.artwork, args.packages)
    print(f"{args.artwork}: artwork, and its licences in LICENSES.md", file=sys.stderr)


def _make(args: argparse.Namespace) -> None:
    if args.questions < 1 or args.workers < 1:
        raise InputError("--questions and --workers must be at least 1.")
    if args.train and not LEAST <= args.train <= MOST:
        raise InputError(f"--train must be 0, or {LEAST} to {MOST}.")
    _artwork(args)
    for split in HELD_OUT:
        make_held_out(args.out, split, args.questions, args.artwork)
        print(f"{args.out / split}: {args.questions} questions of each kind", file=sys.stderr)
    if args.train:
        for name, crowded in (("train", False), ("crowd", True)):
            make_train(args.out / name, args.train, args.artwork, args.workers, crowded)
            print(f"{args.out / name}: {args.train} scenes", file=sys.stderr)


def _examples(args: argparse.Namespace) -> None:
    if args.scenes < 1:
        raise InputError("--scenes must be at least 1.")
    _artwork(args)
    make_examples(args.out, args.scenes, args.artwork)
    print(f"{args.scenes} scenes and their questions in {args.out}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

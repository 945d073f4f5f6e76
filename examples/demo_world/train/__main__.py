"""``python -m examples.demo_world.train``: all stages, each from its last checkpoint on."""

import argparse
import importlib.util
import math
import sys
from pathlib import Path

from mlx_corematching.command import run_command
from mlx_corematching.errors import InputError

from ..folders import file_errors_in_a_sentence

STEPS = {"language": 1600, "eyes": 3200, "spelling": 300, "together": 1750}
GOES_ON_FROM = {"spelling": ("language", "eyes"), "together": ("language", "spelling")}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo_world.train", description=__doc__
    )
    add = parser.add_argument
    add("--data", type=Path, default=Path("data"), help="what `make` painted")
    add("--out", type=Path, default=Path("data/run"), help="checkpoints, log.jsonl, model/")
    add("--stage", choices=STEPS, help="only this one; language and eyes can run side by side")
    add("--scale", type=float, default=1.0, help="share of the full number of steps: 0.02 to try")
    add("--batch", type=int, default=8, help="pictures a step; the eyes see four times as many")
    add("--every", type=int, default=150, help="steps between measuring and saving")
    add("--device", choices=("cpu", "mps", "cuda"), help="default: the best there is")
    add("--threads", type=int, help="CPU threads of torch")
    add("--debug", action="store_true", help="show the traceback of an error")
    return run_command(_train, parser.parse_args())


def _train(args: argparse.Namespace) -> None:
    _check(args)
    import torch

    from .loop import run
    from .stages import STAGES, School

    if args.threads:
        torch.set_num_threads(args.threads)
    device = args.device or _best_device()
    if args.device and not _there(args.device):
        raise InputError(f"--device {args.device} is not there; this machine has {_best_device()}.")
    with file_errors_in_a_sentence():
        args.out.mkdir(parents=True, exist_ok=True)
        for name in [args.stage] if args.stage else STEPS:
            _check_order(args.out, name)
            steps = max(1, round(STEPS[name] * args.scale))
            school = School(args.data, args.out, device, args.batch)
            run(STAGES[name](school), args.out, steps, args.every)
        if name == "together":
            school.save(args.out / "model")
            print(f"model in {args.out / 'model'}", file=sys.stderr)


def _check(args: argparse.Namespace) -> None:
    if not importlib.util.find_spec("torch"):
        raise InputError("training needs torch: pip install -e '.[train]'")
    if not (math.isfinite(args.scale) and args.scale > 0):
        raise InputError("--scale must be a number above 0.")
    if args.batch < 1 or args.every < 1 or (args.threads is not None and args.threads < 1):
        raise InputError("--batch, --every and --threads must be at least 1.")
    for name in ("train", "crowd"):
        if not (args.data / name / "scenes.jsonl").is_file():
            raise InputError(
                f"{args.data / name} holds no scenes: run `python -m examples.demo_world make`."
            )


def _check_order(out: Path, name: str) -> None:
    """A stage begins after those it goes on from, and is not older than they are."""
    mine = out / f"{name}.pt"
    for needed in GOES_ON_FROM.get(name, ()):
        theirs = out / f"{needed}.pt"
        if not theirs.is_file():
            raise InputError(f"stage {name} goes on from stage {needed}: {theirs} is missing.")
        if mine.is_file() and mine.stat().st_mtime < theirs.stat().st_mtime:
            raise InputError(f"{theirs} was trained after {mine}: remove the latter.")


def _there(device: str) -> bool:
    import torch

    if device == "cuda":
        return torch.cuda.is_available()
    return device == "cpu" or torch.backends.mps.is_available()


def _best_device() -> str:
    return next(device for device in ("cuda", "mps", "cpu") if _there(device))


if __name__ == "__main__":
    sys.exit(main())

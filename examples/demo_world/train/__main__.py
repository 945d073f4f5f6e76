"""``python -m examples.demo_world.train``: all stages, each from its last checkpoint on."""

import argparse
import sys
from pathlib import Path

import torch

from mlx_corematching.command import run_command
from mlx_corematching.errors import InputError

from .architecture import make_processor
from .loop import load_modules, run
from .stages import STAGES, School

STEPS = {"language": 2600, "eyes": 6000, "spelling": 600, "together": 2500}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo_world.train", description=__doc__
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="what `make` painted")
    parser.add_argument(
        "--out", type=Path, default=Path("data/run"), help="checkpoints, log.jsonl, model/"
    )
    parser.add_argument(
        "--stage", choices=STAGES, help="only this stage; language and eyes can run side by side"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the full number of steps: 0.02 for a try"
    )
    parser.add_argument("--steps", type=int, help="steps of --stage, instead of its own number")
    parser.add_argument(
        "--batch", type=int, default=8, help="pictures a step; the eyes see four times as many"
    )
    parser.add_argument("--every", type=int, default=150, help="steps between measuring and saving")
    parser.add_argument("--device", help="cpu, mps or cuda (default: what is there)")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that prepare batches, beside a GPU"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(_train, parser.parse_args())


def _train(args: argparse.Namespace) -> None:
    if not (args.data / "train" / "scenes.jsonl").is_file():
        raise InputError(
            f"{args.data} holds no training scenes: run `python -m examples.demo_world make` first."
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in [args.stage] if args.stage else STAGES:
        for needed in {"spelling": ("language", "eyes"), "together": ("language", "spelling")}.get(
            name, ()
        ):
            if not (args.out / f"{needed}.pt").is_file():
                raise InputError(
                    f"stage {name} goes on from stage {needed}, which {args.out} does not hold."
                )
        steps = args.steps or max(1, round(STEPS[name] * args.scale))
        school = School(args.data, args.out, args.device or _device(), args.batch)
        run(STAGES[name](school), args.out, steps, args.every, args.workers)
    if not args.stage or args.stage == "together":
        save(args.out, school)


def _device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def save(out: Path, school: School) -> None:
    """The model of the last stage as a Hugging Face folder, ``out``/model, in float16."""
    load_modules(
        out / "together.pt", tower=school.tower, projector=school.projector, decoder=school.decoder
    )
    model = school.model
    model.lm_head.weight.data.copy_(school.decoder.embed_tokens.weight.data)
    model.to("cpu", torch.float16).save_pretrained(out / "model")
    make_processor(school.tokenizer).save_pretrained(out / "model")
    print(f"model in {out / 'model'}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m examples.demo_world.evaluate``: how many held-out questions are answered right.

    python -m examples.demo_world.evaluate --data data --model data/run/model

Two runtimes answer: transformers on the Hugging Face folder (extra ``train``), and this project's
on the converted one (``--converted``; without it, the bundled demo model). An answer is right when
the greedy answer equals it. Beside them two that are blind: the same model without a picture, and
the answer that was most often right for the same question in training scenes (for a question never
met there, for its kind).
"""

import argparse
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from mlx_corematching.command import run_command
from mlx_corematching.errors import InputError

from .make import HELD_OUT
from .questions import KINDS
from .scenes import lay_out
from .vocabulary import THINGS

Answer = Callable[[list[dict]], Iterator[str]]
GUESSER_SCENES = 20_000


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo_world.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="what `make` painted")
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="the Hugging Face folder, for transformers"
    )
    parser.add_argument(
        "--converted", metavar="FOLDER", help="a converted model (default: the bundled one)"
    )
    parser.add_argument("--split", choices=HELD_OUT, nargs="+", default=list(HELD_OUT))
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only so many questions of each kind"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write every answer to this JSONL file, too"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(_evaluate, parser.parse_args())


def _evaluate(args: argparse.Namespace) -> None:
    answering: dict[str, Answer] = {}
    for split in args.split:
        folder = args.data / split
        questions = _read(folder, args.limit)
        answering = {"guess": _guesser(), "MLX": _mlx(args.converted, folder)}
        if args.model:
            answering["transformers"] = _transformers(args.model, folder)
            answering["no picture"] = _transformers(args.model, None)
        tables = {}
        for name, answer in answering.items():
            given = []
            for number, text in enumerate(answer(questions), start=1):
                given.append(text)
                print(
                    f"\r{split}: {name} {number} of {len(questions)}",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
            print(file=sys.stderr)
            tables[name] = [
                _right(question, text) for question, text in zip(questions, given, strict=True)
            ]
            if args.out:
                with args.out.open("a") as lines:
                    for question, text in zip(questions, given, strict=True):
                        lines.write(
                            json.dumps({"split": split, "by": name, **question, "given": text})
                            + "\n"
                        )
            if name in ("MLX", "transformers"):
                described = [
                    pair
                    for pair in zip(questions, given, strict=True)
                    if pair[0]["category"] == "describe"
                ]
                tables[name].append(_recall(described))
        _print(split, questions, tables)


def _read(folder: Path, limit: int | None) -> list[dict]:
    path = folder / "questions.jsonl"
    if not path.is_file():
        raise InputError(
            f"{folder} holds no questions: run `python -m examples.demo_world make` first."
        )
    taken: Counter[str] = Counter()
    questions = []
    for question in map(json.loads, path.open()):
        taken[question["category"]] += 1
        if limit is None or taken[question["category"]] <= limit:
            questions.append(question)
    return questions


def _right(question: dict, text: str) -> bool:
    return text == question["answer"]


def _named(text: str) -> set[str]:
    words = set(re.findall(r"[a-z]+", text.lower()))
    return {thing.name for thing in THINGS if words & {thing.name, thing.plural}}


def _recall(described: list[tuple[dict, str]]) -> float:
    """The average share of a scene's things that its description names."""
    shares = [
        len(_named(q["answer"]) & _named(text)) / len(_named(q["answer"])) for q, text in described
    ]
    return sum(shares) / max(1, len(shares))


def _guesser() -> Answer:
    """A blind guesser that knows the training scenes' questions and answers by heart."""
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    rng = random.Random(0)
    for seed in range(GUESSER_SCENES):
        scene = lay_out(seed)
        for kind, ask in KINDS.items():
            if asked := ask(rng, scene):
                by_question[asked[0]][asked[1]] += 1
                by_kind[kind][asked[1]] += 1

    def answer(questions: list[dict]) -> Iterator[str]:
        for question in questions:
            counts = by_question.get(question["text"]) or by_kind[question["category"]]
            yield counts.most_common(1)[0][0]

    return answer


def _mlx(folder: str | None, images: Path) -> Answer:
    from mlx_corematching import CoreMatching, generate, load

    model, processor = load(folder)

    def answer(questions: list[dict]) -> Iterator[str]:
        for question in questions:
            image = images / question["image"]
            text = generate(
                model,
                processor,
                question["text"],
                image,
                sparsity=CoreMatching.dense(),
                max_tokens=64,
            )
            yield text.strip()

    return answer


def _transformers(folder: Path, images: Path | None) -> Answer:
    """Greedy answers in float32; without ``images`` the prompt is the question alone."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(questions: list[dict]) -> Iterator[str]:
        for start in range(0, len(questions), 24):
            part = questions[start : start + 24]
            about = "<image>\n" if images else ""
            texts = [f"USER: {about}{question['text']} ASSISTANT:" for question in part]
            pictures = (
                [Image.open(images / question["image"]) for question in part] if images else None
            )
            inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
            with torch.inference_mode():
                output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
            new = output[:, inputs["input_ids"].shape[1] :]
            yield from (
                text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)
            )

    return answer


def _print(split: str, questions: list[dict], tables: dict[str, list]) -> None:
    kinds = list(dict.fromkeys(question["category"] for question in questions))
    print(f"\n{split}: {len(questions)} questions, {len(questions) // len(kinds)} of each kind\n")
    print("| |" + " | ".join(tables) + " |")
    print("|---|" + "---|" * len(tables))
    closed: dict[str, list[float]] = defaultdict(list)
    for kind in kinds:
        cells = []
        for name, right in tables.items():
            marks = [
                mark
                for question, mark in zip(questions, right, strict=False)
                if question["category"] == kind
            ]
            share = sum(marks) / len(marks)
            cells.append(f"{100 * share:.1f}")
            if kind != "describe":
                closed[name].append(share)
        print(f"| {kind} | " + " | ".join(cells) + " |")
    if closed:
        print(
            "| **closed, average** | "
            + " | ".join(f"{100 * sum(c) / len(c):.1f}" for c in closed.values())
            + " |"
        )
    recalls = [
        f"{100 * right[-1]:.1f}" if len(right) > len(questions) else "" for right in tables.values()
    ]
    print("| things named in descriptions | " + " | ".join(recalls) + " |")


if __name__ == "__main__":
    sys.exit(main())

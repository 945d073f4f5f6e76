"""``python -m examples.demo_world.evaluate``: how many held-out questions are answered right.

    python -m examples.demo_world.evaluate --data data --model data/run/model

Two runtimes answer: transformers on the Hugging Face folder (extra ``train``), and this project's
on the converted one (``--converted``; without it, the bundled demo model). An answer is right when
the greedy answer equals it. Beside them two that are blind: the same model without a picture, and
the answer that was most often right for the same question in training scenes (for a question never
met there, for its kind).
"""

import argparse
import importlib.util
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from mlx_corematching.command import run_command
from mlx_corematching.errors import InputError

from .folders import file_errors_in_a_sentence
from .make import HELD_OUT
from .questions import KINDS
from .scenes import lay_out
from .vocabulary import THINGS

Answer = Callable[[list[dict]], Iterator[str]]
BY = ("guess", "no picture", "transformers", "MLX")
NEEDS_TORCH = ("no picture", "transformers")
GUESSER_SCENES = 20_000


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo_world.evaluate", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--data", type=Path, default=Path("data"), help="what `make` painted")
    add("--model", type=Path, metavar="FOLDER", help="the Hugging Face folder, for transformers")
    add("--converted", metavar="FOLDER", help="a converted model (default: the bundled one)")
    add("--split", choices=HELD_OUT, nargs="+", default=list(HELD_OUT))
    add("--by", choices=BY, nargs="+", help="who answers (default: all that can)")
    add("--limit", type=int, metavar="N", help="only so many questions of each kind")
    add("--out", type=Path, metavar="FILE", help="add every answer to this JSONL file")
    add("--debug", action="store_true", help="show the traceback of an error")
    return run_command(_run, parser.parse_args())


def _run(args: argparse.Namespace) -> None:
    with file_errors_in_a_sentence():
        _evaluate(args)


def _evaluate(args: argparse.Namespace) -> None:
    by = args.by or [name for name in BY if args.model or name not in NEEDS_TORCH]
    if args.model is None and set(by) & set(NEEDS_TORCH):
        raise InputError("transformers and the model without a picture need --model.")
    if args.model is not None and not (args.model / "config.json").is_file():
        raise InputError(f"{args.model} holds no model: run `python -m examples.demo_world.train`.")
    if set(by) & set(NEEDS_TORCH) and not importlib.util.find_spec("torch"):
        raise InputError("transformers needs torch here: pip install -e '.[train]'")
    if args.out:
        args.out.open("a").close()  # an answer that cannot be kept is better known before
    if args.limit is not None and args.limit < 1:
        raise InputError("--limit must be at least 1.")
    asked = {split: _read(args.data / split, args.limit) for split in args.split}
    for split, questions in asked.items():
        images = args.data / split
        given = {}
        for name in by:
            answer = _answering(name, args, images)
            given[name] = list(_counted(f"{split}: {name}", answer(questions), len(questions)))
            if args.out:
                _keep(args.out, split, name, questions, given[name])
        print(_table(split, questions, given))


def _answering(name: str, args: argparse.Namespace, images: Path) -> Answer:
    if name == "guess":
        return _guesser()
    if name == "MLX":
        return _mlx(args.converted, images)
    return _transformers(args.model, images if name == "transformers" else None)


def _counted(title: str, texts: Iterator[str], total: int) -> Iterator[str]:
    for number, text in enumerate(texts, start=1):
        print(f"\r{title} {number} of {total}", end="", file=sys.stderr, flush=True)
        yield text
    print(file=sys.stderr)


def _keep(path: Path, split: str, name: str, questions: list[dict], given: list[str]) -> None:
    with path.open("a") as lines:
        for question, text in zip(questions, given, strict=True):
            lines.write(json.dumps({"split": split, "by": name, **question, "given": text}) + "\n")


def _read(folder: Path, limit: int | None) -> list[dict]:
    path = folder / "questions.jsonl"
    if not path.is_file():
        raise InputError(
            f"{folder} holds no questions: run `python -m examples.demo_world make` first."
        )
    taken: Counter[str] = Counter()
    questions = []
    for number, line in enumerate(path.open(), start=1):
        try:
            question = json.loads(line)
            question["image"], question["text"], question["answer"], question["category"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}, line {number}, is no question with its answer.") from None
        taken[question["category"]] += 1
        if limit is None or taken[question["category"]] <= limit:
            questions.append(question)
    if not questions:
        raise InputError(f"{path} is empty.")
    return questions


def _named(text: str) -> set[str]:
    words = set(re.findall(r"[a-z]+", text.lower()))
    return {thing.name for thing in THINGS if words & {thing.name, thing.plural}}


def _recall(questions: list[dict], given: list[str]) -> float:
    """The average share of a scene's things that its description names."""
    shares = [
        len(_named(question["answer"]) & _named(text)) / len(_named(question["answer"]))
        for question, text in zip(questions, given, strict=True)
        if question["category"] == "describe"
    ]
    return sum(shares) / len(shares)


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


def _table(split: str, questions: list[dict], given: dict[str, list[str]]) -> str:
    """Percentages of right answers, as a Markdown table."""
    kinds = Counter(question["category"] for question in questions)
    rows: dict[str, list[float]] = {kind: [] for kind in kinds}
    closed = [kind for kind in kinds if kind != "describe"]
    average, recall = "**closed, average**", "things named in descriptions"
    if closed:
        rows[average] = []
    if "describe" in kinds:
        rows[recall] = []
    for texts in given.values():
        right = Counter(
            question["category"]
            for question, text in zip(questions, texts, strict=True)
            if text == question["answer"]
        )
        for kind, number in kinds.items():
            rows[kind].append(right[kind] / number)
        if closed:
            rows[average].append(sum(right[kind] / kinds[kind] for kind in closed) / len(closed))
        if "describe" in kinds:
            rows[recall].append(_recall(questions, texts))
    numbers = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    lines = [f"\n{split}: {len(questions)} questions ({numbers}); right, in percent\n"]
    lines.append("| kind | " + " | ".join(given) + " |")
    lines.append("|---" * (len(given) + 1) + "|")
    for title, shares in rows.items():
        lines.append(f"| {title} | " + " | ".join(f"{100 * s:.1f}" for s in shares) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

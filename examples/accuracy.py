"""How often each preset answers right: a table per kind of question.

    python examples/accuracy.py
    python examples/accuracy.py --questions FILE.jsonl --model FOLDER --presets dense paper

The file has one question a line, in LLaVA's fields plus the answer: `image` (beside the file),
`text`, `answer`, `category`. An answer is right when the greedy answer, stripped, equals it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

from mlx_corematching import CoreMatching, load, stream_generate

IMAGES = Path(__file__).parent / "images"
PRESETS = ["dense", "tokens", "neurons", "paper", "balanced"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a converted folder or hub id (default: the demo model)")
    parser.add_argument("--questions", type=Path, default=IMAGES / "questions.jsonl")
    parser.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--limit", type=int, help="only the first so many questions")
    parser.add_argument("--max-tokens", type=int, default=64)
    args = parser.parse_args()

    lines = args.questions.read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines][: args.limit]
    model, processor = load(args.model)
    right: dict[str, dict[str, list[bool]]] = {p: defaultdict(list) for p in args.presets}
    kept: dict[str, list[int]] = {p: [] for p in args.presets}
    neurons: dict[str, float] = {}
    for number, question in enumerate(questions, start=1):
        for preset in args.presets:
            sparsity = model.balanced if preset == "balanced" else CoreMatching.preset(preset)
            responses = list(
                stream_generate(
                    model,
                    processor,
                    question["text"],
                    args.questions.parent / question["image"],
                    sparsity=sparsity,
                    max_tokens=args.max_tokens,
                )
            )
            answer = "".join(response.text for response in responses).strip()
            right[preset][question["category"]].append(answer == question["answer"])
            kept[preset].append(responses[-1].kept_image_tokens)
            neurons[preset] = responses[-1].core_neuron_fraction
        print(f"\r{number} of {len(questions)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    total = responses[-1].image_tokens

    kinds = sorted(right[args.presets[0]])
    print("| preset | " + " | ".join(kinds) + " | all | image tokens kept | neurons |")
    print("|---" * (len(kinds) + 4) + "|")
    for preset in args.presets:
        shares = [sum(right[preset][kind]) / len(right[preset][kind]) for kind in kinds]
        everything = [hit for kind in kinds for hit in right[preset][kind]]
        row = [f"{share:.2f}" for share in [*shares, sum(everything) / len(everything)]]
        mean = sum(kept[preset]) / len(kept[preset])
        print(f"| {preset} | {' | '.join(row)} | {mean:.1f} of {total} | {neurons[preset]:.0%} |")
    counts = ", ".join(f"{len(right[args.presets[0]][kind])} {kind}" for kind in kinds)
    print(f"\n{len(questions)} questions: {counts}.")


if __name__ == "__main__":
    main()

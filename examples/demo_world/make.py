"""The splits: training scenes as arrays, held-out scenes as pictures with a question file each.

================  ==============================  ====================================
split             scenes                          artwork
================  ==============================  ====================================
train             seeds from 0                    the training sets
crowd             the same, as full as they get   the training sets
held_out          seeds from 1,000,000,000        the training sets
held_out_artwork  seeds from 2,000,000,000        sets that no training scene uses
examples          seeds from 3,000,000,000        the training sets
================  ==============================  ====================================
"""

import json
import multiprocessing
import random
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from . import artwork
from .folders import written_whole
from .questions import KINDS
from .scenes import GRID, SIZE, Scene, crowd, lay_out, paint

HELD_OUT = {
    "held_out": (1_000_000_000, artwork.TRAINING_SETS),
    "held_out_artwork": (2_000_000_000, artwork.HELD_OUT_SETS),
}
EXAMPLES_START = 3_000_000_000
PAINT_SEED = 7_000_000_000  # added to a scene's seed, so that layout and paint draw apart


def painted(
    seed: int, folder: Path, styles: tuple[str, ...], crowded: bool = False
) -> tuple[Scene, np.ndarray, np.ndarray]:
    scene = crowd(seed) if crowded else lay_out(seed)
    return scene, *paint(scene, PAINT_SEED + seed, folder, styles)


def make_train(out: Path, number: int, folder: Path, workers: int, crowded: bool = False) -> None:
    """Writes ``scenes.jsonl`` and, as `paint` gives them, ``pictures.npy`` and ``owners.npy``."""
    with written_whole(out) as unfinished:
        _make_train(unfinished, number, folder, workers, crowded)


def _make_train(out: Path, number: int, folder: Path, workers: int, crowded: bool) -> None:
    pictures = np.lib.format.open_memmap(
        out / "pictures.npy", "w+", np.uint8, (number, SIZE, SIZE, 3)
    )
    owners = np.zeros((number, GRID, GRID), np.int8)
    job = partial(painted, folder=folder, styles=artwork.TRAINING_SETS, crowded=crowded)
    with multiprocessing.Pool(workers) as pool, (out / "scenes.jsonl").open("w") as scenes:
        for index, (scene, picture, owner) in enumerate(
            pool.imap(job, range(number), chunksize=64)
        ):
            pictures[index], owners[index] = picture, owner
            scenes.write(json.dumps(scene.as_dict()) + "\n")
    pictures.flush()
    np.save(out / "owners.npy", owners)


def make_held_out(out: Path, split: str, per_kind: int, folder: Path) -> None:
    """``images/*.png``, ``scenes.jsonl``, ``questions.jsonl``: ``per_kind`` questions of each kind.

    A line of ``questions.jsonl`` has LLaVA's fields (``question_id``, ``image``, ``text``,
    ``category``) and the ``answer``.
    """
    start, styles = HELD_OUT[split]
    asked = balanced_questions(start, per_kind)
    with written_whole(out / split) as unfinished:
        _make_held_out(unfinished, asked, folder, styles)


def _make_held_out(
    out: Path, asked: list[tuple[int, str, str, str]], folder: Path, styles: tuple[str, ...]
) -> None:
    (out / "images").mkdir()
    with (out / "scenes.jsonl").open("w") as scenes:
        for seed in sorted({seed for seed, *_ in asked}):
            scene, picture, _ = painted(seed, folder, styles)
            Image.fromarray(picture).save(out / "images" / f"{seed}.png")
            scenes.write(json.dumps({"image": f"images/{seed}.png", **scene.as_dict()}) + "\n")
    with (out / "questions.jsonl").open("w") as lines:
        for number, (seed, kind, question, answer) in enumerate(asked):
            line = _line(number, f"images/{seed}.png", kind, question, answer)
            lines.write(json.dumps(line) + "\n")


def make_examples(out: Path, number: int, folder: Path) -> None:
    """A few held-out scenes to show and to test with: ``scene_*.png`` and ``questions.jsonl``.

    Each scene is asked one question of every kind that it leaves open.
    """
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob("scene_*.png"):
        stale.unlink()
    rng = random.Random(EXAMPLES_START)
    with (out / "questions.jsonl").open("w") as lines:
        count = 0
        for index in range(number):
            scene, picture, _ = painted(EXAMPLES_START + index, folder, artwork.TRAINING_SETS)
            name = f"scene_{index:04}.png"
            Image.fromarray(picture).save(out / name)
            for kind, ask in KINDS.items():
                if asked := ask(rng, scene):
                    lines.write(json.dumps(_line(count, name, kind, *asked)) + "\n")
                    count += 1


def _line(number: int, image: str, kind: str, question: str, answer: str) -> dict:
    return {
        "question_id": number,
        "image": image,
        "text": question,
        "category": kind,
        "answer": answer,
    }


def balanced_questions(start: int, per_kind: int) -> list[tuple[int, str, str, str]]:
    """(scene's seed, kind, question, answer), of each kind as many, no answer above its share.

    The share is what is fair among the answers that the kind can have, and one more; questions
    about one thing and about all are counted apart. Descriptions, where hardly two are alike, are
    left as they come.
    """
    asked = []
    for number, (kind, ask) in enumerate(KINDS.items()):
        rng = random.Random(start + number)
        pool, seed = [], start
        while len(pool) < 12 * per_kind:
            question = ask(rng, lay_out(seed))
            if question is not None:
                pool.append((seed, kind, *question))
            seed += 1
        answers = {_balanced_by(entry) for entry in pool}
        most = per_kind if kind == "describe" else -(-per_kind // len(answers)) + 1
        chosen: list[tuple[int, str, str, str]] = []
        taken: Counter[tuple[bool, str]] = Counter()
        for entry in pool:
            if taken[_balanced_by(entry)] < most and len(chosen) < per_kind:
                taken[_balanced_by(entry)] += 1
                chosen.append(entry)
        asked += chosen
    return asked


def _balanced_by(entry: tuple[int, str, str, str]) -> tuple[bool, str]:
    _, _, question, answer = entry
    return " objects " in question, answer

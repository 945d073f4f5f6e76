"""The demo world: its scenes are what they say, and its answers are right."""

import io
import json
import random
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from examples.demo_world import artwork, evaluate, make, questions
from examples.demo_world.scenes import GRID, PATCH, SIZE, Placed, Scene, Sign, crowd, lay_out, paint
from examples.demo_world.vocabulary import CATEGORIES, COLOR_NAMES, THINGS, WORDS
from mlx_corematching.errors import InputError

ROOT = Path(__file__).parent.parent
seeds = st.integers(0, 2**40)
NUMBER = {thing.name: index for index, thing in enumerate(THINGS)}


@pytest.fixture
def drawn_artwork(tmp_path, monkeypatch) -> Path:
    """A disc of its own colour for every thing, in place of emoji, and Pillow's own font."""
    for style in artwork.SETS:
        (tmp_path / style).mkdir()
        for index, thing in enumerate(THINGS):
            disc = Image.new("RGBA", (64, 64))
            ImageDraw.Draw(disc).ellipse((2, 2, 61, 61), fill=(255, 4 * index, 0, 255))
            disc.save(tmp_path / style / f"{thing.code.removesuffix('-fe0f')}.png")
    (tmp_path / "LICENSES.md").write_text("drawn for the tests\n")
    monkeypatch.setattr(artwork, "font", lambda folder, face, size: ImageFont.load_default(size))
    return tmp_path


def scene_of(
    *things: tuple[str, float, float], background: str = "blue", sign: Sign | None = None
) -> Scene:
    return Scene(background, tuple(Placed(NUMBER[name], x, y, 50) for name, x, y in things), sign)


def answers(kind: str, scene: Scene, draws: int = 400) -> dict[str, str]:
    """All questions of a kind that the scene gives rise to, with their answers."""
    rng = random.Random(0)
    asked = (questions.KINDS[kind](rng, scene) for _ in range(draws))
    return {question[0]: question[1] for question in asked if question}


def test_sixty_things_of_six_categories_with_different_names():
    assert len({thing.name for thing in THINGS}) == len({thing.code for thing in THINGS}) == 60
    assert len(CATEGORIES) == 6
    names = [{thing.name for thing in THINGS}, {word.lower() for word in WORDS}, {*COLOR_NAMES}]
    assert len(set.union(*names)) == sum(map(len, names)), "a word means two things"


@settings(max_examples=60, deadline=None)
@given(seeds, st.booleans())
def test_a_scene_follows_from_its_seed_and_nothing_overlaps(seed, crowded):
    scene = (crowd if crowded else lay_out)(seed)
    assert scene == (crowd if crowded else lay_out)(seed)
    assert scene == Scene.from_dict(json.loads(json.dumps(scene.as_dict())))
    boxes = [(t.x, t.y, 0.45 * t.size, 0.45 * t.size) for t in scene.things]
    if scene.sign:
        boxes.append((scene.sign.x, scene.sign.y, scene.sign.width / 2, scene.sign.height / 2))
        assert scene.sign.color != scene.background
    for i, (x, y, w, h) in enumerate(boxes):
        assert w <= x <= SIZE - w
        assert h <= y <= SIZE - h
        assert all(abs(x - a) >= w + c or abs(y - b) >= h + d for a, b, c, d in boxes[:i])


def test_patches_belong_to_what_is_painted_on_them(drawn_artwork):
    for seed in range(20):
        scene = lay_out(seed)
        picture, owners = paint(scene, seed, drawn_artwork, ("google",))
        assert picture.shape == (SIZE, SIZE, 3)
        assert picture.dtype == np.uint8
        assert owners.shape == (GRID, GRID)
        for index, placed in enumerate(scene.things):
            rows, columns = np.nonzero(owners == index)
            distance = np.hypot((columns + 0.5) * PATCH - placed.x, (rows + 0.5) * PATCH - placed.y)
            assert len(rows)
            assert distance.max() < placed.size / 2 + PATCH
            assert owners[int(placed.y) // PATCH, int(placed.x) // PATCH] == index
        assert (owners == len(scene.things)).any() == (scene.sign is not None)
        again, _ = paint(scene, seed, drawn_artwork, ("google",))
        assert (picture == again).all()


def test_presence_and_count_are_those_of_the_scene():
    scene = scene_of(("cat", 30, 30), ("cat", 140, 30), ("bus", 80, 120))
    for question, answer in answers("presence", scene).items():
        assert (answer == "Yes") == bool(re.search(r" (cat|bus)\b", question))
    assert answers("count", scene) == {
        "How many objects are in the image?": "3",
        "How many objects can you see?": "3",
        "How many cats are in the image?": "2",
        "How many cats are there?": "2",
        "How many cats can you see?": "2",
        "How many buses are in the image?": "1",
        "How many buses are there?": "1",
        "How many buses can you see?": "1",
    }


def test_relations_follow_the_coordinates():
    scene = scene_of(("owl", 30, 40), ("key", 120, 45))
    assert answers("relation", scene) == {
        "Is the owl to the left of the key?": "Yes",
        "Is the key to the left of the owl?": "No",
        "Is the owl to the right of the key?": "No",
        "Is the key to the right of the owl?": "Yes",
    }
    assert set(answers("spatial", scene).items()) == {
        ("What is to the right of the owl?", "key"),
        ("Which object is to the right of the owl?", "key"),
        ("What is to the left of the key?", "owl"),
        ("Which object is to the left of the key?", "owl"),
    }


def test_what_is_too_near_a_line_or_not_unique_is_not_asked():
    middle = scene_of(("owl", 84, 30))
    assert answers("position", middle) == answers("corner", middle) == {}
    twins = scene_of(("owl", 30, 30), ("owl", 130, 130))
    assert (
        answers("relation", twins) == answers("spatial", twins) == answers("position", twins) == {}
    )
    level = scene_of(("owl", 30, 30), ("bus", 34, 130))
    assert answers("describe", level) == {}
    assert answers("text", level) == {}


def test_a_sign_that_would_be_an_answer_too_is_not_asked_about():
    board = Sign("STOP", "red", 130, 130, 60, 30)
    scene = scene_of(("owl", 30, 30), ("key", 130, 40), sign=board)
    asked = answers("spatial", scene)
    assert "What is to the right of the owl?" not in asked
    assert asked["What is to the left of the key?"] == "owl"
    scene = scene_of(("owl", 30, 30), ("key", 140, 140), sign=board)
    assert not any("bottom right" in question for question in answers("corner", scene))
    assert not any("objects" in question for question in answers("count", scene))


def test_positions_and_corners_agree():
    scene = scene_of(("frog", 40, 130), ("car", 130, 40))
    assert set(answers("position", scene).values()) == {"bottom left", "top right"}
    assert answers("corner", scene)["What is in the bottom left of the image?"] == "frog"
    assert answers("corner", scene)["What object is in the top right corner?"] == "car"


def test_colors_categories_and_words():
    scene = scene_of(("frog", 40, 130), ("car", 130, 40), sign=Sign("STOP", "red", 60, 20, 60, 30))
    assert set(answers("color", scene).values()) == {"blue", "red"}
    assert answers("color", scene)["What color is the sign?"] == "red"
    assert answers("category", scene)["What animal is in the image?"] == "frog"
    assert answers("category", scene)["What vehicle is in the image?"] == "car"
    assert set(answers("text", scene).values()) == {"STOP"}


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_exactly_one_choice_is_right(seed):
    scene = lay_out(seed)
    question, letter = questions.choice(random.Random(seed), scene)
    listed = question.split("? ", 1)[1].removesuffix(" Answer with the letter.")
    options = {
        part[0]: part[3:].strip()
        for part in ("A" + listed[1:])
        .replace(" B.", "|B.")
        .replace(" C.", "|C.")
        .replace(" D.", "|D.")
        .split("|")
    }
    facts = {THINGS[placed.thing].name for placed in scene.things} | {scene.background}
    if "sign" in question:
        facts = {scene.sign.word}
    elif "color" in question:
        facts = {scene.background}
    assert list(options) == list("ABCD")
    assert [option for option, text in options.items() if text in facts] == [letter]


def test_a_description_names_all_from_left_to_right():
    scene = scene_of(
        ("owl", 120, 30),
        ("cat", 30, 40),
        ("cat", 70, 120),
        background="orange",
        sign=Sign("STOP", "red", 60, 20, 60, 30),
    )
    assert set(answers("describe", scene).values()) == {
        "Two cats and an owl on an orange background, with a red sign that says STOP."
    }


def test_held_out_questions_are_balanced_and_seeds_do_not_meet(drawn_artwork):
    starts = [start for start, _ in make.HELD_OUT.values()]
    assert min(starts) > 10**8
    assert len(set(starts)) == len(starts)
    assert not set(artwork.TRAINING_SETS) & set(artwork.HELD_OUT_SETS)
    asked = make.balanced_questions(starts[0], 40)
    assert Counter(kind for _, kind, *_ in asked) == dict.fromkeys(questions.KINDS, 40)
    for kind, most in {
        "presence": 21,
        "relation": 21,
        "count": 12,
        "position": 11,
        "choice": 11,
        "color": 5,
    }.items():
        given_answers = Counter(answer for _, k, _, answer in asked if k == kind)
        assert max(given_answers.values()) <= most


def test_the_files_are_llavas_jsonl_with_answers(drawn_artwork, tmp_path):
    make.make_held_out(tmp_path, "held_out", 3, drawn_artwork)
    lines = [json.loads(line) for line in (tmp_path / "held_out" / "questions.jsonl").open()]
    assert len(lines) == 3 * len(questions.KINDS)
    scenes = {
        s["image"]: Scene.from_dict({k: v for k, v in s.items() if k != "image"})
        for s in map(json.loads, (tmp_path / "held_out" / "scenes.jsonl").open())
    }
    for number, line in enumerate(lines):
        assert line["question_id"] == number
        assert line["image"] in scenes
        with Image.open(tmp_path / "held_out" / line["image"]) as picture:
            assert picture.size == (SIZE, SIZE)
        if line["category"] == "color" and "background" in line["text"]:
            assert line["answer"] == scenes[line["image"]].background


def test_training_arrays_do_not_depend_on_the_number_of_workers(drawn_artwork, tmp_path):
    for crowded in (False, True):
        make.make_train(tmp_path / "a", 6, drawn_artwork, 1, crowded)
        make.make_train(tmp_path / "b", 6, drawn_artwork, 2, crowded)
        for name in ("pictures.npy", "owners.npy", "scenes.jsonl"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_package_that_differs_from_its_checksum_is_refused(tmp_path):
    for package in {package.archive: package for package in artwork.SETS.values()}.values():
        with tarfile.open(tmp_path / package.archive, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("package/evil"), io.BytesIO())
    with pytest.raises(InputError, match="checksum"):
        artwork.fetch(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_says_where_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"save https://registry.npmjs.org/.*\.tgz there"):
        artwork.fetch(tmp_path / "out", tmp_path / "nothing")


def test_the_command_takes_packages_from_a_folder_and_says_what_is_wrong(tmp_path):
    for arguments, message in (
        (["make", "--questions", "0"], "--questions"),
        (["make", "--packages", str(tmp_path), "--artwork", str(tmp_path / "a")], "does not exist"),
        (["make", "--train", "5"], "--train"),
        (["examples", "--scenes", "0"], "--scenes"),
    ):
        command = [sys.executable, "-m", "examples.demo_world", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        (None, [], "holds no questions"),
        ("", [], "is empty"),
        ("{\n", [], "line 1"),
        ('{"text": "Why?"}\n', [], "line 1"),
        ("{}", ["--limit", "0"], "--limit"),
        ("{}", ["--by", "transformers"], "--model"),
        ("{}", ["--model", "nowhere"], "holds no model"),
    ],
)
def test_questions_that_cannot_be_asked_get_a_sentence(tmp_path, lines, arguments, message):
    (tmp_path / "held_out").mkdir()
    if lines is not None:
        (tmp_path / "held_out" / "questions.jsonl").write_text(lines)
    command = [sys.executable, "-m", "examples.demo_world.evaluate", "--data", str(tmp_path)]
    done = subprocess.run(
        [*command, "--split", "held_out", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_table_counts_what_is_right_by_kind():
    asked = [
        {"category": "count", "answer": "2"},
        {"category": "count", "answer": "1"},
        {"category": "text", "answer": "STOP"},
        {"category": "describe", "answer": "Two cats and an owl on a red background."},
    ]
    given_texts = ["2", "2", "STOP", "A cat and a bus on a red background."]
    table = evaluate._table("held_out", asked, {"MLX": given_texts}).splitlines()
    assert "| count | 50.0 |" in table
    assert "| text | 100.0 |" in table
    assert "| describe | 0.0 |" in table
    assert "| **closed, average** | 75.0 |" in table
    assert "| things named in descriptions | 50.0 |" in table

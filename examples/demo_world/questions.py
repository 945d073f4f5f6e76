"""Questions about a scene and their answers, in the kinds that vision-language benchmarks ask.

========  ==================================================  ========================
kind      asks                                                stands for
========  ==================================================  ========================
presence  is a thing there? (yes or no)                       POPE
count     how many of a thing, how many things                GQA
relation  is A left of, right of, above, below B? (yes, no)   GQA
spatial   what is left of, right of, above, below A?          GQA
position  in which corner is A?                               GQA
corner    what is in a corner?                                GQA
color     of the background, of the sign                      MME, GQA attributes
category  which animal, fruit, vehicle ... is there?          MMBench
choice    A, B, C or D?                                       MMBench, ScienceQA
text      what does the sign say?                             TextVQA
describe  one sentence that names all                         MM-Vet, LLaVA-in-the-wild
========  ==================================================  ========================

A kind returns None where the scene leaves its answer open: too close to a line, or not unique.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable

from .scenes import SIZE, Placed, Scene, Sign
from .vocabulary import CATEGORIES, COLOR_NAMES, THINGS, WORDS, article

Question = tuple[str, str]

NUMBERS = ("no", "one", "two", "three", "four")
LETTERS = "ABCD"
MARGIN = 14  # pixels, a patch: nearer to a line than this and its side is left unasked
COUNT_WEIGHTS = {1: 0.25, 2: 1.0, 3: 1.9, 4: 3.5}  # flattens the answers
THINGS_BY_CATEGORY = {c: [i for i, t in enumerate(THINGS) if t.category == c] for c in CATEGORIES}


def presence(rng: random.Random, scene: Scene) -> Question:
    present = sorted({placed.thing for placed in scene.things})
    there = rng.random() < 0.5
    thing = THINGS[rng.choice(present) if there else _absent(rng, present)].with_article
    question = rng.choice(
        (
            f"Is there {thing} in the image?",
            f"Does the image contain {thing}?",
            f"Can you see {thing} in the picture?",
            f"Is {thing} visible in this image?",
        )
    )
    return question, "Yes" if there else "No"


def count(rng: random.Random, scene: Scene) -> Question:
    if rng.random() < 0.3 and not scene.sign:  # is a sign an object? it is not asked
        question = rng.choice(
            ("How many objects are in the image?", "How many objects can you see?")
        )
        return question, str(len(scene.things))
    numbers = Counter(placed.thing for placed in scene.things)
    (thing,) = rng.choices(list(numbers), [COUNT_WEIGHTS[number] for number in numbers.values()])
    plural = THINGS[thing].plural
    question = rng.choice(
        (
            f"How many {plural} are in the image?",
            f"How many {plural} are there?",
            f"How many {plural} can you see?",
        )
    )
    return question, str(numbers[thing])


DIRECTIONS: dict[str, tuple[Callable[[Placed | Sign], float], int]] = {
    "left": (lambda placed: placed.x, -1),
    "right": (lambda placed: placed.x, 1),
    "above": (lambda placed: placed.y, -1),
    "below": (lambda placed: placed.y, 1),
}
PHRASES = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


def relation(rng: random.Random, scene: Scene) -> Question | None:
    single = _single(scene)
    pairs = [
        (a, b, direction)
        for a in single
        for b in single
        for direction, (along, _) in DIRECTIONS.items()
        if a is not b and abs(along(a) - along(b)) >= 1.5 * MARGIN
    ]
    if not pairs:
        return None
    a, b, direction = rng.choice(pairs)
    along, sign = DIRECTIONS[direction]
    question = f"Is the {_name(a)} {PHRASES[direction]} the {_name(b)}?"
    return question, "Yes" if sign * (along(a) - along(b)) > 0 else "No"


def spatial(rng: random.Random, scene: Scene) -> Question | None:
    open_to = []
    for a in _single(scene):
        for direction, (along, sign) in DIRECTIONS.items():
            apart = [(sign * (along(b) - along(a)), b) for b in scene.things if b is not a]
            beyond = [b for distance, b in apart if distance > 0]
            if scene.sign and sign * (along(scene.sign) - along(a)) > 0:
                continue  # the sign would be an answer, too
            if len(beyond) == 1 and all(abs(distance) >= MARGIN for distance, _ in apart):
                open_to.append((a, direction, beyond[0]))
    if not open_to:
        return None
    a, direction, b = rng.choice(open_to)
    where = f"{PHRASES[direction]} the {_name(a)}"
    return rng.choice((f"What is {where}?", f"Which object is {where}?")), _name(b)


def position(rng: random.Random, scene: Scene) -> Question | None:
    cornered = [(placed, corner) for placed in _single(scene) if (corner := _corner(placed))]
    if not cornered:
        return None
    placed, corner = rng.choice(cornered)
    name = _name(placed)
    question = rng.choice(
        (
            f"Where is the {name} in the image?",
            f"Where is the {name}?",
            f"In which corner is the {name}?",
        )
    )
    return question, corner


def corner(rng: random.Random, scene: Scene) -> Question | None:
    inside: dict[str, list[Placed]] = {}
    for placed in scene.things:
        where = _corner(placed)
        if where is None:
            return None
        inside.setdefault(where, []).append(placed)
    signed = _corner(scene.sign) if scene.sign else None
    alone = [
        (where, placed[0])
        for where, placed in sorted(inside.items())
        if len(placed) == 1 and where != signed
    ]
    if not alone:
        return None
    where, placed = rng.choice(alone)
    question = rng.choice(
        (f"What is in the {where} of the image?", f"What object is in the {where} corner?")
    )
    return question, _name(placed)


def color(rng: random.Random, scene: Scene) -> Question:
    if scene.sign and rng.random() < 0.5:
        return rng.choice(("What color is the sign?", "Which color is the sign?")), scene.sign.color
    question = rng.choice(
        (
            "What color is the background?",
            "What is the background color of the image?",
            "Which color is the background?",
        )
    )
    return question, scene.background


def category(rng: random.Random, scene: Scene) -> Question | None:
    kinds: dict[str, set[int]] = {}
    for placed in scene.things:
        kinds.setdefault(THINGS[placed.thing].category, set()).add(placed.thing)
    alone = [
        (name, min(things))
        for name, things in sorted(kinds.items())
        if len(things) == 1 and name != "thing"
    ]
    if not alone:
        return None
    name, thing = rng.choice(alone)
    question = rng.choice(
        (
            f"What {name} is in the image?",
            f"Which {name} can you see?",
            f"What kind of {name} is shown in the image?",
        )
    )
    return question, THINGS[thing].name


def choice(rng: random.Random, scene: Scene) -> Question:
    draw = rng.random()
    if scene.sign and draw < 0.2:
        question, right = "What does the sign say?", scene.sign.word
        wrong = rng.sample([word for word in WORDS if word != right], 3)
    elif draw < 0.4:
        question, right = "What color is the background?", scene.background
        wrong = rng.sample([name for name in COLOR_NAMES if name != right], 3)
    else:
        question = rng.choice(("Which object is in the image?", "Which of these can you see?"))
        present = sorted({placed.thing for placed in scene.things})
        right = THINGS[rng.choice(present)].name
        absent: set[int] = set()
        while len(absent) < 3:
            absent.add(_absent(rng, present))
        wrong = [THINGS[thing].name for thing in sorted(absent)]
        rng.shuffle(wrong)
    place = rng.randrange(len(LETTERS))
    options = [*wrong[:place], right, *wrong[place:]]
    listed = " ".join(
        f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)
    )
    return f"{question} {listed} Answer with the letter.", LETTERS[place]


def text(rng: random.Random, scene: Scene) -> Question | None:
    if not scene.sign:
        return None
    question = rng.choice(
        (
            "What does the sign say?",
            "What word is written in the image?",
            "Read the text in the image.",
        )
    )
    return question, scene.sign.word


def describe(rng: random.Random, scene: Scene) -> Question | None:
    """From left to right by the leftmost of each; open where two begin too near each other."""
    leftmost: dict[int, float] = {}
    for placed in sorted(scene.things, key=lambda placed: placed.x):
        leftmost.setdefault(placed.thing, placed.x)
    starts = list(leftmost.values())
    if any(b - a < MARGIN / 2 for a, b in itertools.pairwise(starts)):
        return None
    numbers = Counter(placed.thing for placed in scene.things)
    parts = [
        THINGS[thing].with_article
        if numbers[thing] == 1
        else f"{NUMBERS[numbers[thing]]} {THINGS[thing].plural}"
        for thing in leftmost
    ]
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    sentence = f"{listed} on {article(scene.background)} {scene.background} background"
    if scene.sign:
        sentence += f", with a {scene.sign.color} sign that says {scene.sign.word}".replace(
            " a orange", " an orange"
        )
    question = rng.choice(
        (
            "Describe the image.",
            "What is shown in this image?",
            "Describe this picture in one sentence.",
            "What is in this picture?",
        )
    )
    return question, sentence[0].upper() + sentence[1:] + "."


KINDS: dict[str, Callable[[random.Random, Scene], Question | None]] = {
    kind.__name__: kind
    for kind in (
        presence,
        count,
        relation,
        spatial,
        position,
        corner,
        color,
        category,
        choice,
        text,
        describe,
    )
}
CLOSED = tuple(kind for kind in KINDS if kind != "describe")


def _name(placed: Placed) -> str:
    return THINGS[placed.thing].name


def _single(scene: Scene) -> list[Placed]:
    """The things whose kind is there once."""
    numbers = Counter(placed.thing for placed in scene.things)
    return [placed for placed in scene.things if numbers[placed.thing] == 1]


def _absent(rng: random.Random, present: list[int]) -> int:
    """A thing that is not there; half the time of the same category as one that is."""
    while True:
        if rng.random() < 0.5:
            thing = rng.choice(THINGS_BY_CATEGORY[THINGS[rng.choice(present)].category])
        else:
            thing = rng.randrange(len(THINGS))
        if thing not in present:
            return thing


def _corner(placed: Placed | Sign) -> str | None:
    middle = SIZE / 2
    if abs(placed.x - middle) < MARGIN or abs(placed.y - middle) < MARGIN:
        return None
    return ("top" if placed.y < middle else "bottom") + (" left" if placed.x < middle else " right")

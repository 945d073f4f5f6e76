"""Scenes: one to four things, perhaps a sign, on a shaded background; laid out, painted by seed."""

import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from . import artwork
from .vocabulary import COLOR_NAMES, COLORS, THINGS, WORDS

SIZE = 168  # pixels, square
PATCH = 14
GRID = SIZE // PATCH
COVER = 0.2  # a patch belongs to what covers it, from this share of its pixels on

NUMBER_OF_THINGS = ((1, 2, 3, 4), (0.15, 0.28, 0.29, 0.28))
SHARE_WITH_SIGN = 0.4
SHARE_ALL_ALIKE = 0.25
SHARE_SOME_ALIKE = 0.35
FONT_SIZES = (20, 26)
SHARE_WITH_SIGN_IN_CROWD = 0.85
MOST_IN_CROWD = 12


@dataclass(frozen=True)
class Placed:
    """A thing (index into THINGS) whose square of ``size`` pixels is centred at x, y."""

    thing: int
    x: float
    y: float
    size: int


@dataclass(frozen=True)
class Sign:
    """A word on a coloured board, centred at x, y; ``width`` and ``height`` are the board's."""

    word: str
    color: str
    x: float
    y: float
    width: int
    height: int


@dataclass(frozen=True)
class Scene:
    background: str
    things: tuple[Placed, ...]
    sign: Sign | None

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "Scene":
        sign = fields["sign"]
        return cls(
            fields["background"],
            tuple(Placed(**thing) for thing in fields["things"]),
            None if sign is None else Sign(**sign),
        )


def lay_out(seed: int) -> Scene:
    """A scene by seed: nothing overlaps, and repeats are common enough to count."""
    rng = random.Random(seed)
    while (scene := _attempt(rng)) is None:
        pass
    return scene


def crowd(seed: int) -> Scene:
    """A scene as full as it gets: much to see in one picture, for the eyes' first lessons."""
    rng = random.Random(seed)
    background = rng.choice(COLOR_NAMES)
    sign = _sign(rng, background) if rng.random() < SHARE_WITH_SIGN_IN_CROWD else None
    placed: list[Placed] = []
    for kind in rng.choices(range(len(THINGS)), k=MOST_IN_CROWD):
        thing = _place(rng, kind, (42, 84), sign, placed)
        if thing is not None:
            placed.append(thing)
    return Scene(background, tuple(placed), sign)


def _attempt(rng: random.Random) -> Scene | None:
    background = rng.choice(COLOR_NAMES)
    sign = _sign(rng, background) if rng.random() < SHARE_WITH_SIGN else None
    kinds = _kinds(rng)
    sizes = (48, 84) if len(kinds) <= 2 else (42, 64)
    placed: list[Placed] = []
    for kind in kinds:
        thing = _place(rng, kind, sizes, sign, placed)
        if thing is None:
            return None
        placed.append(thing)
    return Scene(background, tuple(placed), sign)


def _sign(rng: random.Random, background: str) -> Sign:
    word = rng.choice(WORDS)
    size = rng.randint(*FONT_SIZES)
    width, height = int(size * 0.74 * len(word)) + rng.randint(12, 20), size + rng.randint(8, 16)
    x = rng.randint(2, SIZE - width - 2) + width / 2
    y = rng.randint(2, SIZE - height - 2) + height / 2
    color = rng.choice([name for name in COLOR_NAMES if name != background])
    return Sign(word, color, x, y, width, height)


def _place(
    rng: random.Random, kind: int, sizes: tuple[int, int], sign: Sign | None, placed: list[Placed]
) -> Placed | None:
    """Where nothing is yet; None if thirty tries find no such place."""
    boxes = [(thing.x, thing.y, thing.size * 0.45, thing.size * 0.45) for thing in placed]
    if sign:
        boxes.append((sign.x, sign.y, sign.width / 2, sign.height / 2))
    for _ in range(30):
        size = rng.randint(*sizes)
        x, y = (rng.randint(0, SIZE - size) + size / 2 for _ in range(2))
        half = size * 0.45
        if all(abs(x - a) >= half + w or abs(y - b) >= half + h for a, b, w, h in boxes):
            return Placed(kind, x, y, size)
    return None


def _kinds(rng: random.Random) -> list[int]:
    (number,) = rng.choices(*NUMBER_OF_THINGS)
    draw = rng.random()
    if number > 1 and draw < SHARE_ALL_ALIKE:
        return [rng.randrange(len(THINGS))] * number
    if number > 2 and draw < SHARE_ALL_ALIKE + SHARE_SOME_ALIKE:
        several, other = rng.sample(range(len(THINGS)), 2)
        alike = rng.randint(2, number - 1)
        return [several] * alike + [other] * (number - alike)
    return rng.sample(range(len(THINGS)), number)


def paint(
    scene: Scene, seed: int, folder: Path, styles: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The picture, uint8 [SIZE, SIZE, 3], and per patch what covers it, int8 [GRID, GRID].

    A patch holds the index of a thing in ``scene.things``, their number for the sign, or -1.
    """
    rng = np.random.default_rng(seed)
    image = _background(rng, scene.background)
    owner = np.full((SIZE, SIZE), -1, np.int8)
    for index, placed in enumerate(scene.things):
        sprite = _sprite(
            rng,
            artwork.sprite(folder, str(rng.choice(styles)), THINGS[placed.thing].code),
            placed.size,
        )
        left, top = int(placed.x - placed.size / 2), int(placed.y - placed.size / 2)
        image.paste(sprite, (left, top), sprite)
        visible = np.asarray(sprite.getchannel("A")) > 96
        owner[top : top + placed.size, left : left + placed.size][visible] = index
    if scene.sign:
        box = _paint_sign(image, rng, scene.sign, folder)
        owner[box[1] : box[3], box[0] : box[2]] = len(scene.things)
    return np.asarray(image), _patch_owners(owner, scene)


def _background(rng: np.random.Generator, name: str) -> Image.Image:
    color = np.array(COLORS[name], float) + rng.uniform(-14, 14, 3)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    shade = (np.cos(angle) * columns + np.sin(angle) * rows) * rng.uniform(0, 52)
    if rng.random() < 0.5:
        clouds = Image.fromarray(rng.normal(0, 1, (7, 7)).astype(np.float32)).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
        shade = shade + np.asarray(clouds) * rng.uniform(2, 10)
    grain = rng.standard_normal((SIZE, SIZE), dtype=np.float32) * rng.uniform(0, 7)
    return Image.fromarray(np.clip(color + (shade + grain)[..., None], 0, 255).astype(np.uint8))


def _sprite(rng: np.random.Generator, sprite: Image.Image, size: int) -> Image.Image:
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    sprite = sprite.resize((size, size), Image.Resampling.BILINEAR)
    sprite = sprite.rotate(rng.uniform(-22, 22), Image.Resampling.BILINEAR)
    if rng.random() < 0.6:
        alpha = sprite.getchannel("A")
        sprite = ImageEnhance.Brightness(sprite.convert("RGB")).enhance(rng.uniform(0.75, 1.2))
        sprite = ImageEnhance.Color(sprite).enhance(rng.uniform(0.6, 1.3)).convert("RGBA")
        sprite.putalpha(alpha)
    return sprite


def _paint_sign(
    image: Image.Image, rng: np.random.Generator, sign: Sign, folder: Path
) -> tuple[int, ...]:
    draw = ImageDraw.Draw(image)
    board = np.array(COLORS[sign.color]) + rng.integers(-10, 11, 3)
    box = tuple(
        int(edge)
        for edge in (
            sign.x - sign.width / 2,
            sign.y - sign.height / 2,
            sign.x + sign.width / 2,
            sign.y + sign.height / 2,
        )
    )
    edge = (20, 20, 20) if rng.random() < 0.5 else (250, 250, 250)
    draw.rounded_rectangle(
        box, 4, fill=tuple(int(value) for value in np.clip(board, 0, 255)), outline=edge
    )
    ink = (250, 250, 250) if board @ [0.3, 0.59, 0.11] < 150 else (15, 15, 15)
    face = str(rng.choice(artwork.FACES))
    size = FONT_SIZES[1]
    while True:  # the largest size that leaves a margin on the board
        font = artwork.font(folder, face, size)
        left, top, right, bottom = font.getbbox(sign.word)
        if right - left <= sign.width - 8 and bottom - top <= sign.height - 6:
            break
        size -= 1
    draw.text(
        (sign.x - (left + right) / 2, sign.y - (top + bottom) / 2),
        sign.word,
        font=font,
        fill=ink,
    )
    return box


def _patch_owners(owner: np.ndarray, scene: Scene) -> np.ndarray:
    patches = owner.reshape(GRID, PATCH, GRID, PATCH)
    number = len(scene.things) + (scene.sign is not None)
    cover = np.stack([(patches == index).mean(axis=(1, 3)) for index in range(number)])
    owners = np.where(cover.max(axis=0) >= COVER, cover.argmax(axis=0), -1).astype(np.int8)
    for index, placed in enumerate(scene.things):  # a ring's centre is the ring's, too
        owners[int(placed.y) // PATCH, int(placed.x) // PATCH] = index
    return owners

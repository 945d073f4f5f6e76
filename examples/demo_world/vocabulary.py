"""What the demo world is made of: things with their emoji, colours, and the words on signs."""

from dataclasses import dataclass

CATALOGUE = """
animal: cat 1f431, dog 1f436, rabbit 1f430, panda 1f43c, lion 1f981, cow 1f42e, pig 1f437,
 frog 1f438, monkey 1f435, penguin 1f427, owl 1f989, bee 1f41d, butterfly 1f98b, turtle
 1f422, octopus 1f419, crab 1f980, fish 1f420, elephant 1f418
fruit: apple 1f34e, banana 1f34c, grape 1f347, watermelon 1f349, lemon 1f34b, strawberry
 1f353, pineapple 1f34d, cherry 1f352
dish: cheese 1f9c0, burger 1f354, pizza 1f355, cake 1f370, donut 1f369, cookie 1f36a
vehicle: car 1f697, bus 1f68c, tractor 1f69c, bicycle 1f6b2, train 1f682, airplane
 2708-fe0f, helicopter 1f681, rocket 1f680, boat 26f5
plant: tree 1f333, cactus 1f335, sunflower 1f33b, mushroom 1f344, rose 1f339
thing: clock 23f0, key 1f511, umbrella 2614, camera 1f4f7, guitar 1f3b8, trumpet 1f3ba,
 hammer 1f528, bulb 1f4a1, balloon 1f388, gift 1f381, football 26bd, basketball 1f3c0, hat
 1f3a9, crown 1f451
"""

IRREGULAR = {
    "butterfly": "butterflies",
    "cherry": "cherries",
    "strawberry": "strawberries",
    "fish": "fish",
    "octopus": "octopuses",
    "bus": "buses",
    "cactus": "cactuses",
}

COLORS = {
    "red": (205, 45, 45),
    "orange": (240, 140, 40),
    "yellow": (245, 220, 70),
    "green": (60, 160, 75),
    "blue": (60, 110, 215),
    "purple": (130, 70, 180),
    "pink": (245, 160, 195),
    "brown": (125, 80, 45),
    "gray": (140, 140, 140),
    "white": (242, 242, 242),
    "black": (32, 32, 32),
}

WORDS = (
    "STOP",
    "OPEN",
    "SALE",
    "EXIT",
    "HELP",
    "FIRE",
    "PARK",
    "TAXI",
    "HOME",
    "LOVE",
    "FAST",
    "SLOW",
    "FREE",
    "SHOP",
    "CAFE",
    "BANK",
    "HOTEL",
    "MUSIC",
    "WATER",
    "MILK",
    "FOOD",
    "GAME",
    "MOON",
    "STAR",
    "KING",
    "GOLD",
    "ROAD",
    "SNOW",
    "CITY",
    "ZOO",
    "FARM",
    "PLAY",
)


@dataclass(frozen=True)
class Thing:
    """One kind of thing: its singular and plural, its category, and its emoji's code point."""

    name: str
    plural: str
    category: str
    code: str

    @property
    def with_article(self) -> str:
        return f"{article(self.name)} {self.name}"


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _read(catalogue: str) -> tuple[Thing, ...]:
    things = []
    for line in catalogue.strip().replace("\n ", " ").splitlines():
        category, entries = line.split(":")
        for entry in entries.split(","):
            name, code = entry.split()
            things.append(Thing(name, IRREGULAR.get(name, name + "s"), category, code))
    return tuple(things)


THINGS = _read(CATALOGUE)
CATEGORIES = tuple(dict.fromkeys(thing.category for thing in THINGS))
COLOR_NAMES = tuple(COLORS)

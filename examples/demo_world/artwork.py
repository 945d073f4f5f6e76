"""The artwork: emoji and fonts from the npm registry, or from a folder that holds the packages.

Packages are pinned by version and checksum. Only the pictures and fonts that the world needs are
taken out of them, as ``FOLDER/<set>/<code point>.png``, beside a ``LICENSES.md``.
"""

import base64
import hashlib
import io
import sys
import tarfile
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageFont

from mlx_corematching.errors import InputError

from .vocabulary import THINGS

REGISTRY = "https://registry.npmjs.org"
SPRITE = 96  # pixels: larger artwork is reduced to this


@dataclass(frozen=True)
class Package:
    """An npm package, and where in it the pictures (``{code}``) or fonts are."""

    name: str
    version: str
    integrity: str
    inside: str
    licence: str

    @property
    def archive(self) -> str:
        return f"{self.name.split('/')[-1]}-{self.version}.tgz"

    @property
    def url(self) -> str:
        return f"{REGISTRY}/{self.name}/-/{self.archive}"


SETS = {
    "google": Package(
        "emoji-datasource-google",
        "16.0.0",
        "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        "package/img/google/64/{code}.png",
        "Noto Emoji, Copyright Google Inc., Apache License 2.0",
    ),
    "blob": Package(
        "emoji-datasource-google",
        "3.0.0",
        "sha512-Ms+IO6V40EKcfBjxs76iLYQexo6Tgl8MbTxM7Z4Qm5n/Hwkr/DNNYui40aU3YaVd8oRNLaMXN1/rS++/VHViPQ==",
        "package/img/google/64/{code}.png",
        "Noto Emoji (of 2017), Copyright Google Inc., Apache License 2.0",
    ),
    "twitter": Package(
        "emoji-datasource-twitter",
        "16.0.0",
        "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        "package/img/twitter/64/{code}.png",
        "Twemoji, Copyright Twitter, Inc. and other contributors, CC-BY 4.0",
    ),
    "fluent": Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "package/assets/{code}.webp",
        "Fluent Emoji, Copyright Microsoft Corporation, MIT License",
    ),
}
TRAINING_SETS = ("google", "blob", "twitter")
HELD_OUT_SETS = ("fluent",)

FONTS = Package(
    "dejavu-fonts-ttf",
    "2.37.3",
    "sha512-f1hd7jJbeQa1VWcw+K2KrTXS50zTMaHpVC4XIKJpNcDeYR5ajMtj/iLlQDYNvLOKamUB3ARVVCf79lNwNVztSQ==",
    "package/ttf/{code}.ttf",
    "DejaVu fonts, Bitstream Vera license, changes in the public domain",
)
FACES = ("DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Bold", "DejaVuSansCondensed-Bold")


def fetch(folder: Path, source: Path | None = None) -> None:
    """Unpacks all sets and fonts into ``folder``, from npm or from ``source``, a folder of .tgz."""
    for name, package in SETS.items():
        wanted = {thing.code: _spellings(thing.code) for thing in THINGS}
        _unpack(package, source, folder / name, wanted, ".png")
    _unpack(FONTS, source, folder / "fonts", {face: (face,) for face in FACES}, ".ttf")
    lines = ["# Licences of the artwork", ""]
    for name, package in {**SETS, "fonts": FONTS}.items():
        lines.append(
            f"- `{name}/`: {package.licence}; npm package {package.name} {package.version}."
        )
    (folder / "LICENSES.md").write_text("\n".join(lines) + "\n")


def _spellings(code: str) -> tuple[str, ...]:
    """Packages differ in whether they write the variation selector fe0f."""
    bare = code.removesuffix("-fe0f")
    return (code, bare, bare + "-fe0f")


def _unpack(
    package: Package,
    source: Path | None,
    folder: Path,
    wanted: dict[str, tuple[str, ...]],
    ending: str,
) -> None:
    paths = {name: folder / (name.removesuffix("-fe0f") + ending) for name in wanted}
    if all(path.exists() for path in paths.values()):
        return
    data = _archive(package, source)
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {member.name: member for member in archive if member.isfile()}
        for name, spellings in wanted.items():
            for spelling in spellings:
                if member := members.get(package.inside.format(code=spelling)):
                    break
            else:
                raise InputError(f"{package.archive} holds no picture or font {name}.")
            content = archive.extractfile(member).read()
            if ending == ".png":
                picture = Image.open(io.BytesIO(content)).convert("RGBA")
                picture.thumbnail((SPRITE, SPRITE), Image.Resampling.LANCZOS)
                picture.save(paths[name])
            else:
                paths[name].write_bytes(content)


def _archive(package: Package, source: Path | None) -> bytes:
    """The package's bytes, checked against its checksum."""
    if source is not None:
        path = source / package.archive
        if not path.is_file():
            raise InputError(f"{path} does not exist: save {package.url} there.")
        data = path.read_bytes()
    else:
        print(f"fetching {package.url}", file=sys.stderr)
        try:
            with urllib.request.urlopen(package.url, timeout=60) as response:
                data = response.read()
        except OSError as error:
            raise InputError(f"{package.url} cannot be fetched ({error}).") from error
    digest = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if digest != package.integrity:
        raise InputError(
            f"{package.archive} is not the package that is wanted: its checksum differs."
        )
    return data


@cache
def sprite(folder: Path, style: str, code: str) -> Image.Image:
    """One emoji, RGBA, at most ``SPRITE`` pixels square."""
    return Image.open(folder / style / f"{code.removesuffix('-fe0f')}.png").convert("RGBA")


@cache
def font(folder: Path, face: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(folder / "fonts" / f"{face}.ttf"), size)

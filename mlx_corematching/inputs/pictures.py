"""Pictures from wherever a user has them, checked before they are decoded."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from mlx_corematching.errors import InputError

MAX_PIXELS = 100_000_000
MAX_BYTES = 100_000_000
_CONNECT_S, _TOTAL_S = 10, 30

Notice = Callable[[str], None]


def say(text: str) -> None:
    """The default notice: a line on standard error."""
    print(text, file=sys.stderr)


@dataclass(frozen=True)
class Picture:
    """A decoded RGB picture, upright, and what to call it."""

    image: Image.Image
    name: str

    @cached_property
    def digest(self) -> str:
        """A key for its content: sha256 of size and pixels, in hexadecimal."""
        content = hashlib.sha256(repr(self.image.size).encode())
        content.update(self.image.tobytes())
        return content.hexdigest()


def load_picture(source: Any, *, notice: Notice | None = say) -> Picture:
    """A picture from a path, an http(s) or data URL, a PIL picture, or one of three words.

    The words are `-` (standard input), `clipboard` and `screen`. EXIF orientation is applied;
    transparency is laid on white; the first frame of an animation is taken, and `notice` told
    so; 16-bit grey is scaled to 8 bits, as Pillow does for 16-bit colour, where its own
    conversion would saturate to white.

    Raises:
        InputError: there is no picture there, or it cannot be used; the message says why.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return _decode(source, "the picture", notice)
    if not isinstance(source, (str, Path)):
        raise InputError(
            f"a picture is a path, a URL or a PIL picture, not {type(source).__name__}"
        )
    text = str(source)
    if text == "-":
        return _open(sys.stdin.buffer.read(MAX_BYTES + 1), "standard input", notice)
    if text == "clipboard":
        return _decode(_clipboard(), "the clipboard", notice)
    if text == "screen":
        return _decode(_screen(), "the screen", notice)
    if text.startswith("data:"):
        return _open(_from_data_url(text), "the data URL", notice)
    if "://" in text:
        return _open(_fetch(text), text, notice)
    return _open(_read(Path(text).expanduser()), text, notice)


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a picture in it")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES // 10**6} MB; shrink it first")
        return path.read_bytes()
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"there is no picture {path}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None


def _open(data: bytes, name: str, notice: Notice | None) -> Picture:
    if not data:
        raise InputError(f"{name} is empty")
    if len(data) > MAX_BYTES:
        raise InputError(f"{name} is larger than {MAX_BYTES // 10**6} MB; shrink it first")
    try:
        with warnings.catch_warnings():
            # The limit below is checked before anything is decoded.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise InputError(_too_large(name)) from None
    except Exception as error:
        if data[4:8] == b"ftyp":
            raise InputError(
                f"{name} is a HEIC or AVIF picture, which cannot be read here; convert it first, "
                "on a Mac with: sips -s format jpeg PICTURE --out PICTURE.jpg"
            ) from None
        raise InputError(f"{name} is not a picture that can be read ({_reason(error)})") from None
    return _decode(image, name, notice)


def _decode(image: Image.Image, name: str, notice: Notice | None) -> Picture:
    if image.width * image.height > MAX_PIXELS:
        raise InputError(_too_large(name))
    if image.width < 1 or image.height < 1:
        raise InputError(f"{name} has no pixels")
    try:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            image.seek(0)
            if notice:
                notice(f"{name} is animated; using the first of its {frames} frames.")
        # Upright first: EXIF is lost by the conversions below.
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            image = image.point(lambda value: value / 256).convert("L")
        elif image.mode == "I":
            image = Image.fromarray((_clipped(image) >> 8).astype("uint8"))
        return Picture(_to_rgb(image), name)
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(
            f"{name} is damaged or cut short and cannot be decoded ({_reason(error)})"
        ) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB, with transparency laid on white, as transformers' image processors do."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _clipped(image: Image.Image) -> Any:
    import numpy as np

    return np.asarray(image).clip(0, 65535)


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 10**6} million pixels; scale it down first"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its format is not known"  # Pillow names an object in memory
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _from_data_url(url: str) -> bytes:
    head, _, body = url.partition(",")
    if not head.endswith(";base64"):
        raise InputError("a picture's data URL has to be base64: data:image/png;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the picture's data URL is not valid base64") from None


def _fetch(url: str) -> bytes:
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    if not url.lower().startswith(("http://", "https://")):
        raise InputError(f"{url}: only http and https addresses are fetched")
    began = time.monotonic()
    data = bytearray()
    try:
        # urllib follows redirects to http, https and ftp alone; the last is refused below.
        request = Request(url, headers={"User-Agent": "mlx-corematching"})
        with urlopen(request, timeout=_CONNECT_S) as answer:
            if not answer.url.lower().startswith(("http://", "https://")):
                raise InputError(f"{url} leads to an address that is not http or https")
            while chunk := answer.read1(1 << 16):
                data += chunk
                if len(data) > MAX_BYTES:
                    raise InputError(f"{url} is larger than {MAX_BYTES // 10**6} MB")
                if time.monotonic() - began > _TOTAL_S:
                    raise InputError(f"{url} took longer than {_TOTAL_S} seconds")
    except HTTPError as error:
        raise InputError(f"{url} answered {error.code} ({error.reason})") from None
    except InputError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(f"{url} does not answer ({getattr(error, 'reason', error)})") from None
    return bytes(data)


def _clipboard() -> Image.Image:
    from PIL import ImageGrab

    try:
        grabbed = ImageGrab.grabclipboard()
    except Exception as error:
        raise InputError(f"the clipboard cannot be read here ({_reason(error)})") from None
    if isinstance(grabbed, list) and grabbed:  # files that were copied
        return load_picture(grabbed[0], notice=None).image
    if not isinstance(grabbed, Image.Image):
        raise InputError("the clipboard holds no picture; copy one first")
    return grabbed


def _screen() -> Image.Image:
    from PIL import ImageGrab

    try:
        return ImageGrab.grab()
    except Exception as error:
        raise InputError(f"the screen cannot be read here ({_reason(error)})") from None

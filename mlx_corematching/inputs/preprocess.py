"""From a picture to the vision tower's pixels, equal to transformers' Pillow image processors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlx_corematching.errors import InputError
from mlx_corematching.files import read_json

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_CLIP_DEFAULTS: dict[str, Any] = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
    "do_pad": False,
}
# What each processor assumes where its file is silent, by the type's name without suffixes.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP_DEFAULTS,
    "CLIPFeatureExtractor": _CLIP_DEFAULTS,
    "LlavaImageProcessor": _CLIP_DEFAULTS,
    "SiglipImageProcessor": {
        **_CLIP_DEFAULTS,
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
    },
}


@dataclass(frozen=True)
class Geometry:
    """Where the tower's input lies on a picture: x_picture = (x_input + crop) / scale - pad.

    All pairs are (horizontal, vertical); `scale` is resized size by padded size.
    """

    pad: tuple[int, int]
    scale: tuple[float, float]
    crop: tuple[int, int]

    def patch_box(self, row: int, col: int, patch: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of a patch in the picture's own pixels.

        Edges lie outside the picture where the input was padded.
        """
        left, top = self._back(col * patch, row * patch)
        right, bottom = self._back((col + 1) * patch, (row + 1) * patch)
        return left, top, right, bottom

    def _back(self, x: float, y: float) -> tuple[float, float]:
        return (
            (x + self.crop[0]) / self.scale[0] - self.pad[0],
            (y + self.crop[1]) / self.scale[1] - self.pad[1],
        )


@dataclass(frozen=True)
class ImageProcessor:
    """One `preprocessor_config.json`.

    Attributes:
        shortest_edge: scale so that the shorter side is this long, or None.
        exact: scale to (height, width) whatever the shape, or None.
        crop: the centre's (height, width) that is cut out, or None.
        resample: Pillow's filter.
        rescale: factor on 0..255, or None.
        mean, std: of each channel after that, or None.
        pad_colour: pad to a square in this colour first, or None.
    """

    shortest_edge: int | None
    exact: tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: int
    rescale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    pad_colour: tuple[int, ...] | None

    @classmethod
    def from_folder(cls, folder: Path) -> ImageProcessor:
        """Read `preprocessor_config.json`, or the newer `processor_config.json`.

        Raises:
            InputError: there is neither, or it is not one of the known processors.
        """
        file = folder / "preprocessor_config.json"
        if file.exists():
            return cls.from_dict(read_json(file))
        newer = folder / "processor_config.json"
        inner = read_json(newer).get("image_processor") if newer.exists() else None
        if not isinstance(inner, dict):
            raise InputError(
                f"{folder} has no preprocessor_config.json, which says how pictures are prepared"
            )
        return cls.from_dict(inner)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> ImageProcessor:
        """Raises InputError for a processor that is not known or a size that makes no sense."""
        kind = given.get("image_processor_type") or given.get("feature_extractor_type")
        kind = str(kind or "CLIPImageProcessor").removesuffix("Fast").removesuffix("Pil")
        if kind not in _DEFAULTS:
            raise InputError(
                f"preprocessor_config.json is of type '{kind}', and only {', '.join(_DEFAULTS)} "
                "are supported"
            )
        values = {**_DEFAULTS[kind], **{k: v for k, v in given.items() if v is not None}}
        shortest, exact = None, None
        if values["do_resize"]:
            size = values["size"]
            if isinstance(size, int):
                size = {"shortest_edge": size}
            if size.get("shortest_edge") and not size.get("longest_edge"):
                shortest = int(size["shortest_edge"])
            elif size.get("height") and size.get("width"):
                exact = (int(size["height"]), int(size["width"]))
            else:
                raise InputError(f"preprocessor_config.json: size {size} is not supported")
        crop = None
        if values["do_center_crop"]:
            side = values["crop_size"]
            crop = (side, side) if isinstance(side, int) else (side["height"], side["width"])
        normalize, pad = values["do_normalize"], values["do_pad"] and kind == "LlavaImageProcessor"
        mean = tuple(values["image_mean"])
        return cls(
            shortest_edge=shortest,
            exact=exact,
            crop=crop,
            resample=int(values["resample"]),
            rescale=values["rescale_factor"] if values["do_rescale"] else None,
            mean=mean if normalize else None,
            std=tuple(values["image_std"]) if normalize else None,
            pad_colour=tuple(int(value * 255) for value in mean) if pad else None,
        )

    def __call__(self, image: Image.Image) -> np.ndarray:
        """An RGB picture as float32 [3, height, width]."""
        if self.pad_colour is not None:
            image = self._pad(image, self.pad_colour)
        height, width = self._resized(image.width, image.height)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling(self.resample))
        pixels = np.asarray(image, np.uint8).transpose(2, 0, 1)
        if self.crop is not None:
            pixels = _center_crop(pixels, self.crop)
        values = pixels.astype(np.float32)
        if self.rescale is not None:
            values = (pixels.astype(np.float64) * self.rescale).astype(np.float32)
        if self.mean is not None and self.std is not None:
            mean = np.array(self.mean, np.float32)[:, None, None]
            values = (values - mean) / np.array(self.std, np.float32)[:, None, None]
        return values

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of what comes out for a picture of that size."""
        if self.crop is not None:
            return self.crop
        if self.pad_colour is not None:
            width = height = max(width, height)
        return self._resized(width, height)

    def check(self, width: int, height: int, image_size: int) -> None:
        """Raise InputError unless a picture comes out as the tower takes it."""
        made = self.output_size(width, height)
        if made != (image_size, image_size):
            raise InputError(
                f"preprocessor_config.json turns a picture of {width} × {height} into "
                f"{made[1]} × {made[0]}, but the vision tower takes {image_size} × {image_size}"
            )

    def geometry(self, width: int, height: int) -> Geometry:
        """Where the output lies on a picture of that size."""
        pad = (0, 0)
        if self.pad_colour is not None:
            side = max(width, height)
            pad = ((side - width) // 2, (side - height) // 2)
            width = height = side
        new_height, new_width = self._resized(width, height)
        crop = (0, 0)
        if self.crop is not None:
            crop = (_crop_start(new_width, self.crop[1]), _crop_start(new_height, self.crop[0]))
        return Geometry(pad, (new_width / width, new_height / height), crop)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) after scaling."""
        if self.exact is not None:
            return self.exact
        if self.shortest_edge is None:
            return height, width
        edge = self.shortest_edge
        if width <= height:
            return int(edge * height / width), edge
        return edge, int(edge * width / height)

    @staticmethod
    def _pad(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
        side = max(image.size)
        if image.size == (side, side):
            return image
        square = Image.new("RGB", (side, side), colour)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square


def _crop_start(length: int, wanted: int) -> int:
    """Where a centre crop begins; negative where it is larger than the picture."""
    if wanted <= length:
        return (length - wanted) // 2
    # transformers pads up to the crop first, rounding its upper half up.
    return -((wanted - length + 1) // 2)


def _center_crop(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of [channels, height, width], with zeros around it where it is too small."""
    made = np.zeros((pixels.shape[0], *size), pixels.dtype)
    spans = []
    for length, wanted in zip(pixels.shape[1:], size, strict=True):
        start = _crop_start(length, wanted)
        begin, end = max(start, 0), min(start + wanted, length)
        spans.append((slice(begin - start, end - start), slice(begin, end)))
    (rows_to, rows_from), (cols_to, cols_from) = spans
    made[:, rows_to, cols_to] = pixels[:, rows_from, cols_from]
    return made

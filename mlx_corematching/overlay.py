"""The kept image tokens, drawn on the pictures (the paper's Figure 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from mlx_corematching.core.prefill import Trace
    from mlx_corematching.inputs.pictures import Picture
    from mlx_corematching.inputs.processor import Processor
    from mlx_corematching.models.llava import Llava

_SHORT_SIDE = 336
_GAP = 8
_VEIL = (255, 255, 255)
_DROPPED, _UNSEEN = 0.82, 0.92  # how much of the veil covers what was dropped, what was cropped


def draw_overlay(
    pictures: Sequence[Picture], trace: Trace, model: Llava, processor: Processor
) -> Image.Image:
    """All pictures of a prompt side by side, with everything but the kept tokens veiled.

    Args:
        pictures: those whose image tokens the trace covers, in order.
        trace: of the last response.
    """
    kept = np.isin(trace.image_tokens, trace.kept_image_tokens).reshape(len(pictures), -1)
    drawn = [
        _draw(picture.image, mask, model, processor)
        for picture, mask in zip(pictures, kept, strict=True)
    ]
    width = sum(image.width for image in drawn) + _GAP * (len(drawn) - 1)
    sheet = Image.new("RGB", (width, max(image.height for image in drawn)), "white")
    left = 0
    for image in drawn:
        sheet.paste(image, (left, 0))
        left += image.width + _GAP
    return sheet


def _draw(image: Image.Image, kept: np.ndarray, model: Llava, processor: Processor) -> Image.Image:
    """One picture; kept is bool [image tokens]."""
    vision = model.config.vision
    patches = kept[-(vision.grid**2) :]  # a class token that was kept has no place in the picture
    if vision.class_token is False and not model.config.keep_class_token:
        patches = np.concatenate([[False], kept])  # `default` drops the first patch of SigLIP
    geometry = processor.image_processor.geometry(image.width, image.height)
    scale = max(1.0, _SHORT_SIDE / min(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    veil = Image.new("L", size, round(255 * _UNSEEN))
    pen = ImageDraw.Draw(veil)
    for index, keep in enumerate(patches):
        row, col = divmod(index, vision.grid)
        box = [round(edge * scale) for edge in geometry.patch_box(row, col, vision.patch_size)]
        if box[2] > box[0] and box[3] > box[1]:
            # Pillow's rectangles include their last row and column.
            pen.rectangle(
                (box[0], box[1], box[2] - 1, box[3] - 1), fill=0 if keep else round(255 * _DROPPED)
            )
    large = image.resize(size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", size, _VEIL), large, veil)

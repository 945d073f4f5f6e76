"""`verify`: every tensor of a converted folder against the source's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_corematching.convert.recipe import CHUNK, Quantization, Recipe, prepare
from mlx_corematching.convert.source import (
    DTYPES,
    SafetensorsFiles,
    Source,
    find_source,
    open_source,
)
from mlx_corematching.errors import InputError
from mlx_corematching.models.config import LlavaConfig

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

# Half a unit in the last place, relative, and half the smallest number above 0.
_ROUNDING = {
    "float16": (2.0**-11, 2.0**-25),
    "bfloat16": (2.0**-8, 2.0**-134),
    "float32": (2.0**-24, 2.0**-150),
}
# mx.quantize reckons in float32, the check in float64.
_FLOAT32_SLACK = 2.0**-21


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        tensors: of the source, all of them compared.
        quantized: how many of them are quantised.
        worst: the largest error of a quantised weight, as a share of its bound; at most 1.
    """

    tensors: int
    quantized: int
    worst: float

    def __str__(self) -> str:
        equal = f"{self.tensors - self.quantized} tensors equal the source's exactly"
        if not self.quantized:
            return equal
        return (
            f"{equal}, and {self.quantized} quantised ones are within the bound of their "
            f"rounding (largest error {self.worst:.4f} of it)"
        )


def verify(
    source: str | Path | Source,
    folder: str | Path,
    *,
    revision: str | None = None,
    progress: Callable[[list[str]], object] = iter,
) -> Verification:
    """Compare every tensor of a converted folder with the source's.

    Unquantised tensors have to equal the source's, cast to their stored type, bit for bit.
    Quantised weights have to lie within the bound that `_check_groups` explains.

    Args:
        source: a folder, a hub id, or an open source.
        folder: what `convert` made of it.

    Raises:
        InputError: they differ, or one cannot be read; the message names the tensor.
    """
    if not isinstance(source, Source):
        source = open_source(find_source(source, revision))
    folder = Path(folder).expanduser()
    stored = SafetensorsFiles(folder)
    recipe = _stored_recipe(folder)
    _check_names(source, stored, recipe)
    quantized, worst = 0, 0.0
    names: list[str] = list(progress(list(source.keys)))  # type: ignore[call-overload]
    for name in names:
        if recipe.quantizes(name, source.header(name).shape):
            assert recipe.quantization is not None
            quantized += 1
            worst = max(worst, _check_quantized(source, stored, name, recipe.quantization))
        else:
            _check_equal(source, stored, name)
    return Verification(len(names), quantized, worst)

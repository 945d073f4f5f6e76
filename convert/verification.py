"""`verify`: every tensor of a converted folder against the source's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_corematching.convert.progress import bar
from mlx_corematching.convert.recipe import CHUNK, Quantization, Recipe, prepare
from mlx_corematching.convert.source import (
    DTYPES,
    SafetensorsFiles,
    Source,
    find_source,
    open_source,
    source_shape,
)
from mlx_corematching.errors import InputError
from mlx_corematching.models.config import LlavaConfig

if TYPE_CHECKING:
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
    source: str | Path | Source, folder: str | Path, *, revision: str | None = None
) -> Verification:
    """Compare every tensor of a converted folder with the source's.

    Unquantised tensors have to equal the source's, cast to their stored type, bit for bit.
    Quantised weights have to lie within the bound that `_group_errors` explains.

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
    for name in bar(source.keys, "Verifying", len(source.keys)):
        if recipe.quantizes(name, source.header(name).shape):
            assert recipe.quantization is not None
            quantized += 1
            worst = max(worst, _check_quantized(source, stored, name, recipe.quantization))
        else:
            _check_equal(source, stored, name)
    return Verification(len(source.keys), quantized, worst)


def _stored_recipe(folder: Path) -> Recipe:
    config = LlavaConfig.from_folder(folder)
    if config.corematching is None:
        raise InputError(f"{folder} is not converted, so there is nothing to verify")
    made = config.quantization
    return Recipe(None, Quantization(made["bits"], made["group_size"]) if made else None)


def _check_names(source: Source, stored: SafetensorsFiles, recipe: Recipe) -> None:
    """The stored names, shapes and types are those that conversion makes, and no others."""
    expected: dict[str, tuple[int, ...]] = {}
    for name in source.keys:
        shape = source_shape(name, source.header(name).shape)
        if recipe.quantization is not None and recipe.quantizes(name, shape):
            made = recipe.quantization
            expected |= zip(made.parts(name), made.shapes(shape), strict=True)
        else:
            expected[name] = shape
    for name in sorted(expected.keys() ^ stored.headers.keys()):
        lacks = "lacks" if name in expected else "has a tensor that the source has not:"
        raise InputError(f"verification failed: the result {lacks} {name}")
    for name, shape in expected.items():
        header = stored.headers[name]
        if header.shape != shape:
            raise InputError(
                f"verification failed: {name} is {list(header.shape)}, and has to be {list(shape)}"
            )
        packed = name in source.keys and recipe.quantizes(name, shape)
        if header.dtype not in (("U32",) if packed else DTYPES):
            raise InputError(f"verification failed: {name} is of type {header.dtype}")


def _check_equal(source: Source, stored: SafetensorsFiles, name: str) -> None:
    import mlx.core as mx

    found = stored.read(name)
    wanted = prepare(name, source.read(name), DTYPES[stored.headers[name].dtype])
    bits = mx.uint32 if found.itemsize == 4 else mx.uint16
    # As bits, so that a zero's sign counts and nothing is equal to all else.
    if not mx.array_equal(found.view(bits), wanted.view(bits)).item():
        raise InputError(f"verification failed: {name} differs from the source's")


def _check_quantized(
    source: Source, stored: SafetensorsFiles, name: str, made: Quantization
) -> float:
    """The largest error as a share of its bound; InputError if it is above 1."""
    import mlx.core as mx
    import numpy as np

    packed_name, scales_name, biases_name = made.parts(name)
    dtype = DTYPES[stored.headers[scales_name].dtype]
    weights = prepare(name, source.read(name), dtype)
    packed = stored.read(packed_name)
    scales, biases = stored.read(scales_name), stored.read(biases_name)
    rows, columns = weights.shape
    step = max(1, CHUNK // columns)
    worst = 0.0
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        share = _group_errors(
            np.array(weights[part].astype(mx.float32)).reshape(-1, made.group_size),
            _unpack(np.array(packed[part]), made.bits).reshape(-1, made.group_size),
            np.array(scales[part].astype(mx.float32)).reshape(-1, 1),
            np.array(biases[part].astype(mx.float32)).reshape(-1, 1),
            2**made.bits - 1,
            dtype,
        )
        # Not `> 1`: a share that is not a number has to fail too.
        if not share.max() <= 1:
            row = start + int(np.argmax(~(share <= 1))) * made.group_size // columns
            raise InputError(
                f"verification failed: {name} differs from the source's in row {row} by more "
                "than its quantisation can"
            )
        worst = max(worst, float(share.max()))
    return worst


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """uint32 [rows, columns * bits / 32] to the codes, uint8 [rows, columns], lowest bits first."""
    import numpy as np

    octets = packed.astype("<u4").view(np.uint8)
    if bits == 8:
        return octets
    return np.stack([octets & 15, octets >> 4], axis=-1).reshape(len(packed), -1)


def _group_errors(
    weights: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    biases: np.ndarray,
    top: int,
    dtype: str,
) -> np.ndarray:
    """Each group's largest error as a share of its bound; above 1 where it is no rounding.

    A weight w is stored as a code q of 0..top, and read as b + q s', with s' the scale s
    rounded to `dtype`; b is a weight of the group itself, or 0, and so is not rounded. Hence

        |w - (b + q s')| <= max(|s| / 2, span - top |s|) + q |s - s'|

    where half a step is the rounding of w; span - top |s| is what lies past the last code,
    because s is bent so that a code falls on zero; and |s - s'| itself may be no more than
    half a unit in the last place.

    Args:
        weights: [groups, group size]
        codes: [groups, group size]
        scales, biases: [groups, 1]

    Returns:
        [groups]
    """
    import numpy as np

    relative, smallest = _ROUNDING[dtype]
    weights, codes, scales, biases = (
        part.astype(np.float64) for part in (weights, codes, scales, biases)
    )
    errors = np.abs(weights - (biases + codes * scales))
    shares = np.full(len(weights), np.inf)
    for step, span, fits in _readings(weights, biases, top):
        rounded = np.abs(step - scales)
        fits &= rounded <= (relative + _FLOAT32_SLACK) * np.abs(step) + smallest
        # Mostly one reading fits a group, so this is done once for each.
        i = np.flatnonzero(fits)
        size = np.abs(step[i])
        slack = _FLOAT32_SLACK * (np.abs(biases[i]) + top * size)
        bound = np.maximum(size / 2, span[i] - top * size) + codes[i] * rounded[i] + slack
        shares[i] = np.minimum(shares[i], (errors[i] / bound).max(axis=1))
    return shares


def _readings(
    weights: np.ndarray, biases: np.ndarray, top: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The scales, before they were rounded, that mx.quantize may have taken.

    Its rule leaves two things open: the Metal kernel counts 0 among a group's weights where
    it looks for the largest, and a quotient near one half may be rounded up or down.

    Yields:
        The step, the span it was made for, and whether it is possible, [groups, 1] each.
    """
    import numpy as np

    low, high = weights.min(axis=1, keepdims=True), weights.max(axis=1, keepdims=True)
    for most, possible in ((high, True), (np.zeros_like(high), high < 0)):
        downwards = np.abs(low) <= np.abs(most)
        edge = np.where(downwards, most, low)
        even = np.maximum((most - low) / top, 1e-7) * np.where(downwards, -1, 1)
        turns = edge / even
        near = 0.5 + 1e-5 * np.maximum(1, np.abs(turns))
        for whole in (np.floor(turns), np.floor(turns) + 1):
            zero = whole == 0
            step = np.where(zero, even, edge / np.where(zero, 1, whole))
            fits = (np.abs(turns - whole) <= near) & (np.where(zero, 0, edge) == biases)
            yield step, most - low, fits & possible

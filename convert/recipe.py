"""What becomes of one tensor: cast, turned neuron-major, quantised, and checked for damage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_corematching.errors import InputError
from mlx_corematching.models.tensors import Shape, is_down_proj

if TYPE_CHECKING:
    import mlx.core as mx

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4}

# Elements looked at in one go, so that a check's temporaries stay small beside a tensor.
CHUNK = 1 << 22


@dataclass(frozen=True)
class Quantization:
    """mx.quantize's affine mode: `bits` a weight, `group_size` weights to a scale and a bias."""

    bits: int
    group_size: int

    def parts(self, name: str) -> tuple[str, str, str]:
        """The names of packed weights, scales and biases of a quantised tensor."""
        module = name.removesuffix(".weight")
        return name, f"{module}.scales", f"{module}.biases"

    def shapes(self, shape: Shape) -> tuple[Shape, Shape, Shape]:
        """The shapes of packed weights (uint32), scales and biases of an [rows, columns]."""
        rows, columns = shape
        groups = (rows, columns // self.group_size)
        return (rows, columns * self.bits // 32), groups, groups


@dataclass(frozen=True)
class Recipe:
    """How tensors are stored.

    Attributes:
        dtype: float16, bfloat16 or float32; None leaves each tensor's own.
        quantization: of the decoder's matrices; None for none.
    """

    dtype: str | None = None
    quantization: Quantization | None = None

    def quantizes(self, name: str, shape: Shape) -> bool:
        return self.quantization is not None and is_decoder_matrix(name, shape)

    def nbytes(self, name: str, shape: Shape, dtype: str) -> int:
        """Bytes that a tensor of this canonical shape, `dtype` in the source, will take."""
        size = SIZES[self.dtype or dtype]
        if not self.quantizes(name, shape):
            return size * _elements(shape)
        assert self.quantization is not None
        packed, scales, biases = self.quantization.shapes(shape)
        return 4 * _elements(packed) + size * (_elements(scales) + _elements(biases))

    def apply(self, name: str, tensor: mx.array) -> dict[str, mx.array]:
        """The tensors to store for one of the source, evaluated.

        Raises:
            InputError: a value is infinite or not a number, or becomes so by the cast.
        """
        import mlx.core as mx

        cast = prepare(name, tensor, self.dtype)
        if self.quantization is None or not self.quantizes(name, cast.shape):
            return {name: cast}
        parts = mx.quantize(cast, self.quantization.group_size, self.quantization.bits)
        mx.eval(parts)
        return dict(zip(self.quantization.parts(name), parts, strict=True))


def is_decoder_matrix(name: str, shape: Shape) -> bool:
    """Attention, FFN, embeddings and output head: what quantisation is for."""
    return name.startswith("language_model.") and len(shape) == 2


def prepare(name: str, tensor: mx.array, dtype: str | None) -> mx.array:
    """A tensor as it would be stored unquantised: cast, and in canonical orientation.

    Raises:
        InputError: the source cannot be read, or holds values that are not finite, or a value
            is too large for `dtype`.
    """
    import mlx.core as mx

    try:
        mx.eval(tensor)
    except RuntimeError as error:
        raise InputError(f"the source's {name} cannot be read ({error}); fetch it again") from None
    if not is_finite(tensor):
        raise InputError(
            f"the source's {name} holds values that are infinite or not a number: the checkpoint "
            "is damaged; fetch it again"
        )
    if dtype is not None and tensor.dtype != getattr(mx, dtype):
        tensor = tensor.astype(getattr(mx, dtype))
        if not is_finite(tensor):
            better = "bfloat16" if dtype == "float16" else "float32"
            raise InputError(f"{name} holds values too large for {dtype}; use --dtype {better}")
    if is_down_proj(name):
        tensor = mx.contiguous(tensor.T)
    mx.eval(tensor)
    return tensor


def is_finite(tensor: mx.array) -> bool:
    import mlx.core as mx

    flat = tensor.reshape(-1)
    return all(
        mx.all(mx.isfinite(flat[start : start + CHUNK])).item()
        for start in range(0, flat.size, CHUNK)
    )


def check_groups(shapes: Mapping[str, Shape], quantization: Quantization) -> None:
    """InputError unless the group size divides the last axis of every decoder matrix."""
    columns = {n: shape[-1] for n, shape in shapes.items() if is_decoder_matrix(n, shape)}
    for name, count in columns.items():
        if count % quantization.group_size:
            fitting = [size for size in GROUP_SIZES if _divides(size, columns.values())]
            advice = (
                f"use --q-group-size {' or '.join(map(str, fitting))}"
                if fitting
                else "no group size does, so convert it without --quantize"
            )
            raise InputError(
                f"a group size of {quantization.group_size} does not divide the {count} columns "
                f"of {name}; {advice}"
            )


def _divides(size: int, counts: Iterable[int]) -> bool:
    return all(count % size == 0 for count in counts)


def _elements(shape: Shape) -> int:
    product = 1
    for length in shape:
        product *= length
    return product

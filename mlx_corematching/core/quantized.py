"""Products with quantised matrices, on whichever backend runs them."""

from __future__ import annotations

import mlx.core as mx

# With fewer rows than this the CPU backend's own quantised product is the faster one.
_UNPACK_FROM_ROWS = 32


def quantized_product(
    x: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    *,
    transpose: bool,
    group_size: int,
    bits: int,
) -> mx.array:
    """`x @ w.T`, or `x @ w` without `transpose`, for a packed w of [rows, columns].

    The CPU backend multiplies many rows one at a time, and half-precision scales with
    half-precision rows some forty times slower. There a prompt's rows meet the unpacked
    matrix, which is let go at once, and everything is computed in float32.
    """
    rows = x.size // x.shape[-1]
    if rows >= _UNPACK_FROM_ROWS and on_cpu():
        w = mx.dequantize(
            weight, scales.astype(mx.float32), biases.astype(mx.float32), group_size, bits
        )
        return x @ (w.T if transpose else w)
    return mx.quantized_matmul(
        x, weight, scales, biases, transpose=transpose, group_size=group_size, bits=bits
    )


def on_cpu() -> bool:
    """Whether MLX computes on its CPU backend."""
    return mx.default_device().type == mx.DeviceType.cpu

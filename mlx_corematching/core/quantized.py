"""Products with quantised matrices, on whichever backend runs them."""

from __future__ import annotations

import mlx.core as mx

# With fewer rows than this the CPU backend's own quantised product is the faster one.
UNPACK_FROM_ROWS = 32
# Weights that are unpacked at a time, so that they take little memory: 4 MiB.
UNPACK_AT_ONCE = 1 << 20


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

    The CPU backend multiplies many rows one at a time. There a prompt's rows meet the matrix
    unpacked to float32, a few rows at a time, and each block is waited for: work that is queued
    ahead holds its memory, and makes nothing faster there.
    """
    if x.size // x.shape[-1] < UNPACK_FROM_ROWS or not on_cpu():
        return mx.quantized_matmul(
            x, weight, scales, biases, transpose=transpose, group_size=group_size, bits=bits
        )
    rows, columns = weight.shape[0], scales.shape[1] * group_size
    step = max(1, UNPACK_AT_ONCE // columns)
    parts: list[mx.array] = []
    for start in range(0, rows, step):
        block = slice(start, start + step)
        w = mx.dequantize(
            weight[block],
            scales[block].astype(mx.float32),
            biases[block].astype(mx.float32),
            group_size,
            bits,
        )
        part = x @ w.T if transpose else x[..., block] @ w
        parts = [*parts, part] if transpose else [parts[0] + part] if parts else [part]
        mx.eval(parts[-1])
        del w
    return mx.concatenate(parts, axis=-1)


def on_cpu() -> bool:
    """Whether MLX computes on its CPU backend."""
    return mx.default_device().type == mx.DeviceType.cpu

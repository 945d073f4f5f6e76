"""Products with packed matrices: however many rows, the same product."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_corematching.core import quantized
from mlx_corematching.core.quantized import UNPACK_FROM_ROWS, quantized_product


@given(
    rows=st.sampled_from([1, 3, UNPACK_FROM_ROWS - 1, UNPACK_FROM_ROWS, 70]),
    bits=st.sampled_from([4, 8]),
    transpose=st.booleans(),
    block=st.sampled_from([1, 64 * 5, 64 * 64, 1 << 20]),
    half=st.booleans(),
    seed=st.integers(0, 100),
)
def test_it_is_the_product_with_the_unpacked_matrix(rows, bits, transpose, block, half, seed):
    random = np.random.RandomState(seed)
    w = mx.array(random.standard_normal((37, 64)).astype(np.float32))
    packed, scales, biases = mx.quantize(w, 32, bits)
    if half:
        scales, biases = scales.astype(mx.float16), biases.astype(mx.float16)
    x = random.standard_normal((1, rows, 64 if transpose else 37)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantized, "UNPACK_AT_ONCE", block)
        found = quantized_product(
            mx.array(x), packed, scales, biases, transpose=transpose, group_size=32, bits=bits
        )
    matrix = mx.dequantize(
        packed, scales.astype(mx.float32), biases.astype(mx.float32), group_size=32, bits=bits
    )
    plain = np.array(matrix, np.float64)
    expected = x[0].astype(np.float64) @ (plain.T if transpose else plain)
    assert found.dtype == mx.float32
    np.testing.assert_allclose(np.array(found)[0], expected, atol=2e-4)

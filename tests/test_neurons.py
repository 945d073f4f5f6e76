"""Token-wise and sentence-wise core neurons are exactly those of the definitions."""

import mlx.core as mx
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlx_corematching.core.neurons import NeuronCounts, activated, token_core
from mlx_corematching.core.settings import round_share

shares = st.sampled_from([0.0, 0.01, 0.07, 0.1, 0.2, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0])
# Few distinct values, so that ties are the rule; subnormals and both zeros among them.
tied = st.sampled_from([-1.0, -0.0, 0.0, 5e-8, 0.5, 1.0, 1.0, 2.0])
wide = st.floats(-100, 100, width=16)


def rows_of(elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(1, 6), st.integers(1, 24))
    return hnp.arrays(np.float32, shapes, elements=elements)


activations = st.one_of(rows_of(tied), rows_of(wide))
dtypes = st.sampled_from([mx.float32, mx.float16, mx.bfloat16])


def as_numpy(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


@given(activations, dtypes, shares)
def test_token_core_is_the_definition(rows, dtype, rho):
    a = mx.array(rows).astype(dtype)
    mask = np.array(token_core(a, rho))
    for row, chosen in zip(as_numpy(a), mask, strict=True):
        assert set(np.flatnonzero(chosen)) == oracle.token_core(row, rho)


@given(activations, dtypes)
def test_activated_is_the_definition(rows, dtype):
    a = mx.array(rows).astype(dtype)
    for row, fired in zip(as_numpy(a), np.array(activated(a)), strict=True):
        assert set(np.flatnonzero(fired)) == oracle.activated(row)


@given(activations, dtypes, shares, shares)
def test_sentence_core_is_the_definition(rows, dtype, rho, beta):
    a = mx.array(rows).astype(dtype)
    counts = NeuronCounts.empty(rows.shape[1])
    counts.add(a, rho)
    core = counts.sentence_core(round_share(beta, rows.shape[1]))
    assert core.tolist() == oracle.sentence_core(as_numpy(a), rho, beta)


@given(activations, shares)
def test_frequency_is_the_definition(rows, rho):
    counts = NeuronCounts.empty(rows.shape[1])
    counts.add(mx.array(rows), rho)
    assert counts.frequency.tolist() == oracle.frequency(rows, rho).tolist()


@given(activations, st.integers(0, 6), shares)
def test_counting_in_parts_is_counting_at_once(rows, cut, rho):
    whole, parts = NeuronCounts.empty(rows.shape[1]), NeuronCounts.empty(rows.shape[1])
    whole.add(mx.array(rows), rho)
    for part in (rows[:cut], rows[cut:]):
        if len(part):
            parts.add(mx.array(part), rho)
    assert parts.frequency.tolist() == whole.frequency.tolist()
    assert parts.tokens == whole.tokens


@given(rows_of(wide), shares, st.sampled_from([0.25, 2.0, 1024.0]))
def test_token_core_does_not_depend_on_scale(rows, rho, scale):
    a = mx.array(rows)
    assert mx.array_equal(token_core(a, rho), token_core(a * scale, rho))


@settings(max_examples=20)
@given(st.integers(0, 2**31 - 1))
def test_core_neurons_of_a_realistic_layer(seed):
    random = np.random.RandomState(seed)
    gate, up = random.standard_normal((2, 40, 400)).astype(np.float32)
    a = gate / (1 + np.exp(-gate)) * up
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        typed = mx.array(a).astype(dtype)
        counts = NeuronCounts.empty(400)
        counts.add(typed, 0.2)
        assert counts.sentence_core(160).tolist() == oracle.sentence_core(as_numpy(typed), 0.2, 0.4)


def test_rho_0_names_no_neuron_and_strength_decides():
    rows = np.array([[3.0, 1.0, -1.0, 2.0]], np.float32)
    assert not token_core(mx.array(rows), 0.0).any()
    counts = NeuronCounts.empty(4)
    counts.add(mx.array(rows), 0.0)
    assert counts.sentence_core(2).tolist() == [0, 3]


def test_rho_1_names_every_activated_neuron():
    a = mx.array([[3.0, 0.0, -1.0, 2.0]])
    assert mx.array_equal(token_core(a, 1.0), activated(a))


def test_a_token_that_activates_nothing_has_no_core():
    assert not token_core(mx.array([[-1.0, 0.0, -3.0]]), 1.0).any()


@pytest.mark.parametrize(
    ("beta", "neurons", "count"), [(0.4, 11008, 4403), (0.3, 10, 3), (0.25, 10, 2), (0.35, 10, 4)]
)
def test_beta_is_the_decimal_that_was_written(beta, neurons, count):
    assert round_share(beta, neurons) == count


def test_more_tokens_than_the_key_can_hold_are_refused():
    counts = NeuronCounts.empty(28672)
    counts.tokens = 1 << 20
    with pytest.raises(ValueError, match="too many"):
        counts.sentence_core(10)

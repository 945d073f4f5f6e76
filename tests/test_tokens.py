"""Scores, knee and the choice of core tokens."""

import mlx.core as mx
import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlx_corematching.core.tokens import LayerView, choose, core_scores, knee

scores = hnp.arrays(np.int32, st.integers(1, 40), elements=st.integers(0, 60))


@given(scores)
def test_knee_is_the_definition(values):
    assert knee(values) == oracle.knee(values.tolist())


@given(scores)
def test_core_tokens_are_the_definition(values):
    assert choose(values, None).tolist() == oracle.core_tokens(values.tolist())


@given(scores, st.integers(1, 1000), st.integers(-100, 100))
def test_the_choice_does_not_depend_on_scale_or_offset(values, scale, offset):
    assert choose(values * scale + offset, None).tolist() == choose(values, None).tolist()


@given(scores, st.randoms())
def test_the_choice_follows_a_token_wherever_it_stands(values, random):
    order = list(range(len(values)))
    random.shuffle(order)
    kept = {order[i] for i in choose(values[order], None)}
    assert kept == set(choose(values, None).tolist())


@given(scores, st.integers(0, 50))
def test_a_fixed_number_keeps_the_highest(values, keep):
    kept = choose(values, keep)
    assert len(kept) == min(keep, len(values))
    assert list(kept) == sorted(kept)
    dropped = np.setdiff1d(np.arange(len(values)), kept)
    if len(kept) and len(dropped):
        assert values[kept].min() >= values[dropped].max()


@pytest.mark.parametrize("values", [[5], [5, 5], [7, 3], [4] * 9, [9, 7, 5, 3, 1]])
def test_a_curve_without_a_knee_keeps_all(values):
    assert knee(np.array(values)) is None
    assert choose(np.array(values), None).tolist() == list(range(len(values)))


def test_ties_at_the_knee_are_kept_and_ties_past_a_number_go_to_the_earlier():
    values = np.array([0, 4, 10, 1, 4, 10, 2, 3])
    assert choose(values, None).tolist() == [1, 2, 4, 5]
    assert choose(values, 3).tolist() == [1, 2, 5]


def test_negative_and_real_scores_serve_too():
    values = np.array([-0.1, -5.0, 0.0, -5.5, -6.0, -5.2])
    assert choose(values, None).tolist() == [0, 1, 2]


@given(hnp.arrays(np.float32, (7, 12), elements=st.floats(-2, 2, width=32)), st.data())
def test_scores_are_the_definition(a, data):
    rows = sorted(data.draw(st.sets(st.integers(0, 6), min_size=1)))
    core = sorted(data.draw(st.sets(st.integers(0, 11))))
    view = LayerView(mx.array(a), mx.array(rows, mx.int32), mx.array(core, mx.int32))
    assert core_scores(view).tolist() == oracle.scores(a[rows], core)

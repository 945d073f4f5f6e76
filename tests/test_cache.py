"""The pruned KV cache, against plain lists: whatever is stored, dropped and forgotten."""

import mlx.core as mx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlx_corematching.core.cache import EXPECTED_TOKENS, LayerCache, slots

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.integers(1, 150)),
        st.tuples(st.just("keep"), st.integers(0, 10_000)),
        st.tuples(st.just("trim"), st.integers(0, 40)),
        st.tuples(st.just("expect"), st.integers(0, 500)),
    ),
    min_size=1,
    max_size=12,
)


@given(STEPS)
def test_it_holds_what_was_stored_and_not_dropped(steps):
    cache, plain, number = LayerCache(), [], 0
    for step, value in steps:
        if step == "store":
            new = np.arange(number, number + value, dtype=np.float32)
            number += value
            keys = mx.array(np.stack([new, -new], -1)[None, None])
            start = cache.position
            plain += [(start + i, float(x)) for i, x in enumerate(new)]
            found, values = cache.store(keys, keys + 0.5, range(start, start + value))
            assert found.shape == values.shape == (1, 1, len(plain), 2)
        elif step == "keep" and plain:
            rows = np.flatnonzero(np.random.RandomState(value).rand(len(plain)) < 0.5).tolist()
            rows = rows or [len(plain) - 1]
            cache.keep(rows)
            plain = [plain[row] for row in rows]
        elif step == "trim":
            dropped = cache.trim(value)
            assert dropped == min(value, len(plain))
            plain = plain[: len(plain) - dropped]
        elif step == "expect":
            cache.expected = value
    assert cache.positions == [position for position, _ in plain]
    assert cache.offset == len(plain)
    if plain:
        stored = np.array(cache.keys[0, 0, : cache.offset])
        expected = np.array([[x, -x] for _, x in plain], np.float32)
        assert np.array_equal(stored, expected)
        assert np.array_equal(np.array(cache.values[0, 0, : cache.offset]), expected + 0.5)


def store(cache, tokens):
    keys = mx.zeros((1, 2, tokens, 4))
    cache.store(keys, keys, range(cache.position, cache.position + tokens))


def test_room_for_the_expected_answer_is_made_once():
    cache = LayerCache()
    cache.expected = 100
    store(cache, 30)
    assert cache.keys.shape[2] == slots(130) == 192
    cache.keep(list(range(20)))  # and it is not lost with what is dropped
    assert cache.keys.shape[2] >= 120
    room = cache.keys.shape[2]
    for _ in range(100):
        store(cache, 1)
    assert cache.keys.shape[2] == room
    for _ in range(room - 120 + 1):
        store(cache, 1)
    assert cache.keys.shape[2] == room + LayerCache.step


def test_no_more_room_is_made_than_for_a_long_answer():
    cache = LayerCache()
    cache.expected = 100_000
    store(cache, 1)
    assert cache.keys.shape[2] == slots(1 + EXPECTED_TOKENS)

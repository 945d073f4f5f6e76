"""The method inside the model: kept tokens, core neurons, and the logits of sparse steps."""

import mlx.core as mx
import numpy as np
import oracle
import pytest
from tiny import tiny_model, tiny_prompt

from mlx_corematching.core.prefill import Prefill
from mlx_corematching.core.settings import CoreMatching

SETTINGS = {
    "paper": CoreMatching.paper(),
    "tokens": CoreMatching(neurons=False),
    "neurons": CoreMatching(tokens=False),
    "few tokens": CoreMatching(keep_tokens=3),
    "no image token": CoreMatching(keep_tokens=0),
    "text": CoreMatching(reference="text"),
    "last": CoreMatching(reference="last"),
    "first layer": CoreMatching(prune_layer=1),
    "last layer": CoreMatching(prune_layer=4),
    "few neurons": CoreMatching(beta=0.05, rho=0.05),
    "no neuron": CoreMatching(beta=0.0),
}
MODELS = {
    "llama": {},
    "gqa with biases": {"attention_bias": True, "num_key_value_heads": 1, "head_dim": 32},
    "qwen2, tied": {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
}


class Run:
    """A prompt read by the model, with the FFN activations recorded on the way."""

    def __init__(self, model, settings, **prompt):
        self.model, self.settings = model, settings
        self.caches = model.language_model.make_cache()
        self.recorded: dict[int, np.ndarray] = {}
        self.ends = 0
        self.logits = self.read(*tiny_prompt(model, **prompt))

    def read(self, ids, rows, pixels):
        features = self.model.image_features(pixels)
        self.embeddings = self.model.embed(ids, rows, features)
        self.rows, self.start = rows, self.ends
        self.method = Recording(self, self.settings, rows, len(ids), self.start)
        logits = self.model.prefill(self.embeddings, self.caches, self.method)
        self.ends += len(ids)
        # Rows of this prompt that the caches still hold.
        self.kept_rows = [p - self.start for p in self.caches[0].positions if p >= self.start]
        return np.array(logits)

    def step(self, token):
        return np.array(self.model.language_model(mx.array([[token]]), self.caches)[0, 0])


class Recording(Prefill):
    def __init__(self, run, *arguments):
        super().__init__(*arguments)
        self.run = run

    def observe(self, layer, activations, cache):
        self.run.recorded[layer] = np.array(activations.astype(mx.float32))
        return super().observe(layer, activations, cache)


def referred(rows, run):
    """The oracle's reading of `reference`, for a prompt with one picture."""
    after = run.ends - run.start - 1 - int(run.rows[-1])
    return {"all": rows, "text": rows[len(rows) - after :], "last": rows[-1:]}[
        run.settings.reference
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_core_neurons_of_every_layer_are_the_definition(name):
    run = Run(tiny_model(), SETTINGS[name])
    for layer, core in enumerate(run.method.trace.core_neurons, start=1):
        if not run.settings.neurons:
            assert core is None
            continue
        rows = referred(run.recorded[layer], run)
        assert core.tolist() == oracle.sentence_core(rows, run.settings.rho, run.settings.beta)


@pytest.mark.parametrize("name", SETTINGS)
def test_kept_tokens_are_the_definition(name):
    run = Run(tiny_model(), SETTINGS[name])
    s = run.settings
    tokens = run.ends
    if not s.tokens:
        assert run.kept_rows == list(range(tokens))
        assert run.method.trace.scores is None
        return
    seen = run.recorded[s.prune_layer]
    core = oracle.sentence_core(referred(seen, run), s.rho, s.beta)
    scores = oracle.scores(seen[run.rows], core)
    assert run.method.trace.scores.tolist() == scores
    if s.keep_tokens is None:
        chosen = oracle.core_tokens(scores)
        assert run.method.trace.knee == oracle.knee(scores)
    else:
        chosen = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: s.keep_tokens]
    image = set(run.rows.tolist())
    kept = sorted({*range(tokens)} - image | {int(run.rows[i]) for i in chosen})
    assert run.kept_rows == kept
    assert run.method.trace.kept_image_tokens.tolist() == sorted(set(kept) & image)


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", ["paper", "few tokens", "neurons", "tokens", "no neuron", "text"])
def test_logits_of_prefill_and_of_sparse_steps(name, family, bits):
    model = tiny_model(MODELS[family], bits=bits)
    run = Run(model, SETTINGS[name])
    decoder = oracle.Decoder(model)
    prune = run.settings.prune_layer if run.settings.tokens else None
    expected = decoder.prefill(np.array(run.embeddings[0], np.float64), 0, prune, run.kept_rows)
    np.testing.assert_allclose(run.logits, expected, atol=2e-4)
    for layer, core in zip(decoder.layers, run.method.trace.core_neurons, strict=True):
        layer.core = None if core is None else core.tolist()
    for step, token in enumerate([7, 21, 9]):
        np.testing.assert_allclose(
            run.step(token), decoder.decode(token, run.ends + step), atol=2e-4
        )
    assert [cache.position for cache in run.caches] == [run.ends + 3] * len(run.caches)
    assert {cache.offset for cache in run.caches} == {len(run.kept_rows) + 3}


def test_a_second_question_continues_the_pruned_conversation_and_its_counts():
    model = tiny_model()
    run = Run(model, CoreMatching.paper())
    decoder = oracle.Decoder(model)
    decoder.prefill(np.array(run.embeddings[0], np.float64), 0, 2, run.kept_rows)
    seen = {layer: [rows] for layer, rows in run.recorded.items()}
    for layer, core in zip(decoder.layers, run.method.trace.core_neurons, strict=True):
        layer.core = core.tolist()
    decoder.decode(11, run.ends)
    run.step(11)
    run.ends += 1
    stored = list(run.caches[0].positions)

    logits = run.read([5, 6, 40, 13], np.array([], np.int64), [])

    expected = decoder.prefill(np.array(run.embeddings[0], np.float64), run.start, None, [])
    np.testing.assert_allclose(logits, expected, atol=2e-4)
    assert run.caches[0].positions == [*stored, *range(run.start, run.start + 4)]
    for layer, core in enumerate(run.method.trace.core_neurons, start=1):
        rows = np.concatenate([*seen[layer], run.recorded[layer]])
        assert core.tolist() == oracle.sentence_core(rows, 0.2, 0.4)
        decoder.layers[layer - 1].core = core.tolist()
    np.testing.assert_allclose(run.step(8), decoder.decode(8, run.ends), atol=2e-4)


def test_a_second_picture_is_pruned_beside_the_first():
    model = tiny_model()
    run = Run(model, CoreMatching(keep_tokens=5))
    first = list(run.caches[-1].positions)
    run.read(*tiny_prompt(model, seed=1))
    kept = run.method.trace.kept_image_tokens
    assert len(kept) == 5
    assert kept.min() >= run.start
    for cache in run.caches:
        assert cache.positions[: len(first)] == first
        assert cache.offset == len(cache.positions)
        assert cache.position == run.ends


@pytest.mark.parametrize("pictures", [1, 2, 3])
@pytest.mark.parametrize("bits", [None, 4])
def test_settings_that_keep_everything_are_exactly_dense(pictures, bits):
    model = tiny_model(bits=bits)
    tokens = model.config.image_tokens * pictures
    everything = CoreMatching(beta=1.0, rho=1.0, keep_tokens=tokens)
    dense = Run(model, CoreMatching.dense(), pictures=pictures)
    run = Run(model, everything, pictures=pictures)
    assert np.array_equal(dense.logits, run.logits)
    for token in (9, 30, 9):
        assert np.array_equal(dense.step(token), run.step(token))


def test_a_prompt_without_a_picture_prunes_nothing():
    model = tiny_model()
    run = Run(model, CoreMatching.paper(), pictures=0, before=9)
    assert run.kept_rows == list(range(9))
    assert run.method.trace.scores is None
    assert len(run.method.trace.image_tokens) == 0
    assert [len(core) for core in run.method.trace.core_neurons] == [38] * 4  # round(0.4 * 96)


def test_a_prompt_of_one_token():
    run = Run(tiny_model(), CoreMatching.paper(), pictures=0, before=1)
    assert [len(core) for core in run.method.trace.core_neurons] == [38] * 4


def test_the_last_token_stays_even_if_it_is_an_image_token():
    run = Run(tiny_model(), CoreMatching(keep_tokens=0), after=0)
    assert run.kept_rows == [0, 1, 2, run.ends - 1]


def test_every_token_of_a_sliding_window_model_sees_as_far_as_its_position_says():
    window = {"model_type": "mistral", "sliding_window": 8, "num_key_value_heads": 2}
    model = tiny_model(window)
    run = Run(model, CoreMatching(keep_tokens=4))
    decoder = oracle.Decoder(model)
    original = decoder.attend

    def attend(index, h, position):
        layer = decoder.layers[index]
        everything = dict(layer.stored)
        for p in list(layer.stored):
            if position - p >= 8:
                del layer.stored[p]
        h = original(index, h, position)
        layer.stored = {**everything, position: layer.stored[position]}
        return h

    decoder.attend = attend
    expected = decoder.prefill(np.array(run.embeddings[0], np.float64), 0, 2, run.kept_rows)
    np.testing.assert_allclose(run.logits, expected, atol=2e-4)
    for layer, core in zip(decoder.layers, run.method.trace.core_neurons, strict=True):
        layer.core = core.tolist()
    np.testing.assert_allclose(run.step(7), decoder.decode(7, run.ends), atol=2e-4)


def test_trimming_forgets_what_was_said_and_keeps_positions():
    model = tiny_model()
    run = Run(model, CoreMatching(keep_tokens=3))
    expected = run.step(7)
    for token in (8, 9):
        run.step(token)
    for cache in run.caches:
        assert cache.trim(3) == 3
        assert cache.position == run.ends
    assert np.array_equal(run.step(7), expected)


def test_compact_weights_are_not_made_before_they_are_used():
    model = tiny_model({"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 2})
    run = Run(model, CoreMatching(beta=0.5))
    mx.eval(run.caches[0].counts.frequency)
    mx.synchronize()
    before = mx.get_active_memory()
    run.step(7)
    gathered = sum(cache.ffn.nbytes for cache in run.caches)
    assert gathered == 2 * 3 * 2048 * 512 * 4
    assert mx.get_active_memory() - before > 0.9 * gathered


def test_a_selector_is_one_function():
    from mlx_corematching.core.tokens import SELECTORS

    SELECTORS["first"] = lambda view: -view.image_rows
    try:
        run = Run(tiny_model(), CoreMatching(keep_tokens=2, selector="first"))
    finally:
        del SELECTORS["first"]
    assert run.method.trace.kept_image_tokens.tolist() == [3, 4]

"""The memory mode `streaming`: the same answers, with dense FFNs and the tower left on disk."""

import gc

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from mlx_corematching import CoreMatching, InputError, PromptCache, load, stream_generate
from mlx_corematching.bench.random_model import RandomWeights, complete_config, write_checkpoint
from mlx_corematching.core.prefill import Prefill
from mlx_corematching.loading import load_model

TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "vocab_size": 512}


@pytest.fixture(scope="module", params=[None, 4, 8], ids=["float32", "4-bit", "8-bit"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = complete_config(tiny_config(TEXT), request.param)
    dtype = mx.float16 if request.param else mx.float32
    write_checkpoint(folder, RandomWeights(config, request.param, dtype))
    return folder


def read(model, settings, decodes=True):
    """Prefill a prompt with a picture; the caches, and the logits of it and of three steps."""
    ids = [5, 9, *[4] * 16, 7, 30, 12]
    rows = np.arange(2, 18)
    pixels = np.random.RandomState(0).standard_normal((3, 56, 56)).astype(np.float32)
    caches = model.language_model.make_cache()
    method = Prefill(settings, rows, len(ids), decodes=decodes)
    logits = model.prefill(model.embed(ids, rows, model.image_features([pixels])), caches, method)
    found = [np.array(logits)]
    if decodes:
        found += [np.array(model.language_model(mx.array([[t]]), caches)) for t in (6, 40, 11)]
    return caches, found


@pytest.mark.parametrize("preset", ["paper", "neurons"])
def test_logits_are_those_of_the_resident_model(folder, preset):
    settings = CoreMatching.preset(preset)
    _, resident = read(load_model(folder), settings)
    _, streaming = read(load_model(folder, memory="streaming"), settings)
    for ours, theirs in zip(streaming, resident, strict=True):
        assert np.array_equal(ours, theirs)


def test_dense_ffns_and_the_tower_are_never_held_all_at_once(folder):
    gc.collect()
    before = mx.get_active_memory()
    resident = load_model(folder)
    whole = mx.get_active_memory() - before
    ffns = sum(a.nbytes for layer in resident.language_model.layers for a in _arrays(layer.mlp))
    eyes = sum(a.nbytes for a in _arrays(resident.eyes))
    del resident
    gc.collect()

    model = load_model(folder, memory="streaming")
    assert mx.get_active_memory() - before <= whole - ffns - eyes + 1e5
    mx.reset_peak_memory()
    caches, _ = read(model, CoreMatching(tokens=False, beta=0.25))
    compact = sum(cache.ffn.nbytes for cache in caches)
    assert compact == pytest.approx(ffns / 4, rel=0.01)
    # Two layers' worth and some activations, where six layers are there.
    peak = mx.get_peak_memory() - before
    assert peak < whole - ffns - eyes + compact + ffns / 3 + 2e6
    assert peak < whole


def test_a_one_token_answer_gathers_nothing(folder):
    model = load_model(folder, memory="streaming")
    gc.collect()
    before = mx.get_active_memory()
    caches, _ = read(model, CoreMatching.paper(), decodes=False)
    kept = sum(cache.keys.nbytes + cache.values.nbytes for cache in caches)
    assert mx.get_active_memory() - before < kept + 3e5
    assert sum(cache.ffn.nbytes for cache in caches) > 1e6  # what was spared
    mx.eval([cache.ffn.arrays for cache in caches])  # it could still be made
    assert mx.get_active_memory() - before > 1e6


@pytest.fixture(scope="module")
def demos():
    return load(), load(memory="streaming")


def test_conversations_are_the_same(demos):
    scene = Image.new("RGB", (336, 336), (200, 30, 40))
    said = []
    for model, processor in demos:
        cache, tokens = PromptCache(), []
        for question, image in (("Describe the image.", scene), ("How many objects?", None)):
            tokens += [
                response.token
                for response in stream_generate(
                    model,
                    processor,
                    question,
                    image,
                    sparsity=CoreMatching.paper(),
                    max_tokens=12,
                    prompt_cache=cache,
                )
            ]
        said.append(tokens)
    assert said[0] == said[1]
    assert len(said[0]) > 4


@pytest.mark.parametrize("preset", ["dense", "tokens"])
def test_what_decodes_with_every_neuron_is_refused(demos, preset):
    with pytest.raises(InputError, match="choose the preset neurons or paper"):
        next(stream_generate(*demos[1], "What is this?", sparsity=CoreMatching.preset(preset)))


def test_all_neurons_are_every_neuron_whatever_they_are_called(demos):
    with pytest.raises(InputError, match="use every neuron"):
        next(stream_generate(*demos[1], "What?", sparsity=CoreMatching(beta=1.0)))


def test_there_are_two_modes():
    with pytest.raises(InputError, match="resident, streaming"):
        load(memory="swap")


def _arrays(module):
    from mlx.utils import tree_flatten

    return [array for _, array in tree_flatten(module.parameters())]

"""Counts of weights, bytes and operations, held against models that are really there."""

import gc
from dataclasses import replace

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny import tiny_config, tiny_model, tiny_prompt

from mlx_corematching import CoreMatching, InputError
from mlx_corematching.bench.measure import measure
from mlx_corematching.bench.random_model import RandomWeights, complete_config
from mlx_corematching.bench.subject import Shape, opened_shape
from mlx_corematching.core.prefill import Prefill
from mlx_corematching.costs.chips import CHIPS, chip
from mlx_corematching.costs.memory import predict_peak
from mlx_corematching.costs.projection import project
from mlx_corematching.costs.weights import Storage
from mlx_corematching.costs.work import Costs, Question
from mlx_corematching.models.config import LlavaConfig
from mlx_corematching.models.shapes import shape_config

PRESETS = {
    "dense": CoreMatching.dense(),
    "tokens": CoreMatching(neurons=False, keep_tokens=5),
    "neurons": CoreMatching(tokens=False),
    "paper": CoreMatching(keep_tokens=5),
}
FAMILIES = {
    "llama": {"hidden_size": 128, "intermediate_size": 192},
    "grouped heads, biases": {"num_key_value_heads": 1, "head_dim": 32, "attention_bias": True},
    "tied": {"model_type": "qwen2", "tie_word_embeddings": True},
}


def counted(model, bits=None, size=4):
    return Costs(model.config, Storage(size, bits, 32, size))


def nbytes(module):
    return sum(array.nbytes for _, array in tree_flatten(module.parameters()))


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_model(family, bits):
    model = tiny_model(FAMILIES[family], bits=bits)
    weights = counted(model, bits).weights
    assert weights.total.nbytes == nbytes(model)
    layers = model.language_model.layers
    assert weights.ffn.nbytes == sum(nbytes(layer.mlp) for layer in layers)
    assert weights.eyes.nbytes == nbytes(model.eyes)
    if bits is None:
        assert weights.total.parameters * 4 == nbytes(model)


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("preset", PRESETS)
def test_bytes_of_a_token_are_those_of_the_arrays_it_reads(preset, bits):
    settings = PRESETS[preset]
    model = tiny_model(FAMILIES["llama"], bits=bits)
    language_model = model.language_model
    ids, rows, pixels = tiny_prompt(model)
    caches = language_model.make_cache()
    h = model.embed(ids, rows, model.image_features(pixels))
    model.prefill(h, caches, Prefill(settings, rows, len(ids)))
    language_model(mx.array([[7]]), caches)

    read = nbytes(language_model.lm_head) + nbytes(language_model.model.norm)
    for layer, cache in zip(language_model.layers, caches, strict=True):
        norms = nbytes(layer.input_layernorm) + nbytes(layer.post_attention_layernorm)
        read += nbytes(layer.self_attn) + norms
        read += cache.ffn.nbytes if cache.ffn else nbytes(layer.mlp)
    costs = counted(model, bits)
    assert costs.weight_bytes_per_token(settings) == read

    # Two tokens are answered, so that the middle one is the one above.
    question = Question(text=len(ids) - 16, image=16, kept=5, new=2)
    stored = sum(2 * c.offset * c.keys.shape[1] * c.keys.shape[3] * 4 for c in caches)
    assert costs.kv_bytes_per_token(question, settings) == stored


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_of_the_products_that_are_made(family, preset):
    settings = PRESETS[preset]
    config = LlavaConfig.from_dict(tiny_config(FAMILIES[family]))
    text = config.text
    costs, question = Costs(config, Storage()), Question(text=9, image=16, kept=5, new=3)
    hidden, heads, kv = text.hidden_size, text.num_attention_heads, text.num_key_value_heads
    prompt, kept = 25, 14 if settings.tokens else 25

    def matmul(rows, inner, columns):
        return 2 * rows * inner * columns

    def layer(positions, gate_up_rows, down_rows, neurons):
        """One layer on rows that see so many tokens each."""
        n = len(positions)
        made = matmul(n, hidden, (heads + 2 * kv) * text.head_dim)
        made += matmul(n, heads * text.head_dim, hidden)
        for seen in positions:
            made += heads * (matmul(1, text.head_dim, seen) + matmul(1, seen, text.head_dim))
        return made + matmul(gate_up_rows, hidden, 2 * neurons) + matmul(down_rows, neurons, hidden)

    expected = matmul(1, hidden, text.vocab_size)
    for index in range(1, 5):
        rows = prompt if index <= 2 else kept
        last = index == 4
        watched = settings.neurons or (settings.tokens and index == 2)
        expected += layer(
            range(1, rows + 1),
            1 if last and not watched else rows,
            1 if last else rows,
            text.intermediate_size,
        )
    assert costs.prefill_flops(question, settings).total == expected

    core = round(0.4 * text.intermediate_size) if settings.neurons else text.intermediate_size
    tokens = [
        4 * layer([kept + number], 1, 1, core) + matmul(1, hidden, text.vocab_size)
        for number in (1, 2)
    ]
    assert costs.answer_flops(question, settings) == pytest.approx(
        expected + sum(tokens), rel=1e-12
    )


def test_llava_7b_is_what_the_paper_says():
    costs = Costs(LlavaConfig.from_dict(shape_config("llava-1.5-7b")), Storage())
    weights = costs.weights
    per_token = (weights.attention + weights.ffn + weights.head).parameters
    assert per_token / 1e9 == pytest.approx(6.61, abs=0.005)
    sparse = costs.weight_bytes_per_token(CoreMatching.paper()) / 2
    assert sparse / 1e9 == pytest.approx(4.01, abs=0.005)
    # The paper's Apple M2 was 1.64 times faster.
    assert per_token / sparse == pytest.approx(1.65, abs=0.005)


PEAKS = {
    "float32": ("512,1408,8,8,8,8000", None, 256),
    "grouped": ("1024,2816,5,16,4,8000", None, 144),
    "4-bit": ("2048,5504,6,16,16,32000", 4, 36),
}


@pytest.mark.parametrize("memory", ["resident", "streaming"])
@pytest.mark.parametrize("name", PEAKS)
def test_predicted_peaks_are_within_a_tenth(name, memory):
    shape, bits, image = PEAKS[name]
    config = shape_config(shape, image_tokens=image, tower_layers=4)
    config["vision_config"] |= {"hidden_size": 256, "intermediate_size": 512}
    dtype = "float16" if bits else "float32"
    gc.collect()
    before = mx.get_active_memory()
    with opened_shape(Shape(config, shape, bits, dtype, 16, 1), memory, 8) as subject:
        costs = Costs(subject.model.config, subject.storage)
        for preset, settings in PRESETS.items():
            if memory == "streaming" and not settings.neurons:
                continue
            sample = measure(subject.model, settings, subject.task)
            question = Question(16, image, sample.kept, 8)
            predicted = predict_peak(costs, question, settings, memory, cpu=True).nbytes
            measured = sample.peak_memory_gb * 1e9 - before
            assert predicted == pytest.approx(measured, rel=0.1), preset


def test_streaming_takes_less_and_sparsity_in_memory_more():
    costs = Costs(LlavaConfig.from_dict(shape_config("llava-1.5-13b")), Storage(2, 4, 64, 2))
    question = Question(24, 0, 0, 32)
    paper = CoreMatching.paper()

    def peak(settings, memory, question=question):
        return predict_peak(costs, question, settings, memory, cpu=False).nbytes

    assert peak(paper, "streaming") < 4.8e9
    assert peak(paper, "streaming") < peak(CoreMatching.dense(), "resident")
    assert peak(paper, "resident") > peak(CoreMatching.dense(), "resident")
    one = replace(question, new=1)
    assert peak(paper, "resident", one) == peak(CoreMatching.dense(), "resident", one)


def test_a_projection_is_arithmetic():
    costs = Costs(LlavaConfig.from_dict(shape_config("llava-1.5-7b")), Storage())
    question, settings = Question(64, 576, 64, 101), CoreMatching.paper()
    found = project(costs, question, settings, chip("m2"))
    assert found.decode_tokens_per_s == 100e9 / costs.bytes_per_token(question, settings)
    flops = costs.prefill_flops(question, settings).total + costs.vision_flops()
    assert found.prefill_s == pytest.approx(flops / 3.58e12)
    assert found.answer_s == pytest.approx(found.prefill_s + 100 / found.decode_tokens_per_s)
    assert "estimated" in found.chip


@pytest.mark.parametrize("name", ["M2 Pro", "m2-pro", "Apple M2 Pro", " apple m2_pro "])
def test_chips_are_known_by_any_of_their_names(name):
    assert chip(name) is CHIPS["m2-pro"]


def test_an_unknown_chip_is_told_the_known_ones():
    with pytest.raises(InputError, match=r"no chip 'M17'; there are m1, .*m5-ultra"):
        chip("M17")


def test_every_chip_has_figures_and_sources():
    for known in CHIPS.values():
        assert 60 < known.bandwidth_gb_s <= 1300
        assert 2 < known.gpu_tflops < 40
        assert known.source.startswith("https://")


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ("llava-9b", {}, "there is no shape 'llava-9b'"),
        ("1,2,3", {}, "six whole numbers"),
        ("64,96,2,3,3,100", {}, "cannot be"),
        ("64,96,2,4,3,100", {}, "cannot be"),
        ("66,96,2,2,2,100", {}, "even parts"),
        ("64,96,0,4,4,100", {}, "cannot be"),
        ("64,96,2,0,0,100", {}, "cannot be"),
        ("llava-1.5-7b", {"image_tokens": 577}, "577 image tokens are no square of patches; 576"),
        ("llava-1.5-7b", {"tower_layers": 1}, "2 layers or more"),
    ],
)
def test_shapes_that_cannot_be(shape, options, message):
    with pytest.raises(InputError, match=message):
        shape_config(shape, **options)


def test_rows_that_groups_do_not_divide_are_refused():
    config = complete_config(shape_config("96,96,2,4,4,100"), 4)
    with pytest.raises(InputError, match="96 weights do not divide"):
        RandomWeights(config, 4, mx.float16)

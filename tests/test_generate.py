"""`load`, `generate`, `stream_generate` and conversations, on the bundled model."""

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from PIL import Image

from mlx_corematching import CoreMatching, InputError, PromptCache, generate, load, stream_generate
from mlx_corematching.engine import Run
from mlx_corematching.models.decoder import LanguageModel

IMAGES = Path(__file__).parent.parent / "examples" / "images"
SCENE = IMAGES / "scene_0003.png"


@pytest.fixture(scope="module")
def demo():
    return load()


def answers(demo, *args, **options):
    return list(stream_generate(*demo, *args, **options))


def test_the_demo_model_sees_colours(demo):
    questions = map(json.loads, (IMAGES / "questions.jsonl").read_text().splitlines())
    colours = [q for q in questions if q["category"] == "color"]
    assert len(colours) >= 8
    for preset in ("dense", "paper", "balanced"):
        right = [
            generate(*demo, q["text"], IMAGES / q["image"], sparsity=CoreMatching.preset(preset))
            == q["answer"]
            for q in colours
        ]
        assert sum(right) >= 0.8 * len(right), preset


def test_the_pieces_joined_are_the_answer(demo):
    responses = answers(demo, "Describe the image.", SCENE)
    text = "".join(response.text for response in responses)
    assert text == generate(*demo, "Describe the image.", SCENE)
    assert len(text.split()) > 3
    assert [r.finish_reason for r in responses] == [None] * (len(responses) - 1) + ["stop"]
    assert [r.generated_tokens for r in responses] == list(range(1, len(responses) + 1))
    assert all(r.trace is None for r in responses[:-1])


def test_the_last_response_says_what_was_kept(demo):
    demo[0].features.clear()  # a picture that was seen before takes no time in the tower
    last = answers(demo, "Describe the image.", SCENE, sparsity=CoreMatching.paper())[-1]
    assert last.preset == "paper"
    assert last.model == "demo"
    assert last.image_tokens == 144 == len(last.trace.scores)
    assert 0 < last.kept_image_tokens < 144
    assert len(last.trace.kept_image_tokens) == last.kept_image_tokens
    assert set(last.trace.kept_image_tokens) <= set(last.trace.image_tokens)
    level = sorted(last.trace.scores, reverse=True)[last.trace.knee]
    assert last.kept_image_tokens == (last.trace.scores >= level).sum()
    assert [len(core) for core in last.trace.core_neurons] == [410] * 6  # round(0.4 * 1024)
    assert last.core_neuron_fraction == 410 / 1024
    assert last.prefill_s > 0
    assert last.vision_s > 0
    assert last.first_token_s > last.prefill_s + last.vision_s
    assert last.decode_tokens_per_s > 0
    assert last.peak_memory_gb > 0


def test_a_picture_is_looked_at_once(demo, monkeypatch):
    model, _ = demo
    model.features.clear()
    first = answers(demo, "What color is the background?", SCENE)
    seen = []
    monkeypatch.setattr(model, "image_features", lambda pixels: seen.append(pixels))
    # By content, whatever the picture comes as, and whichever question is asked.
    again = answers(demo, "What color is the background?", Image.open(SCENE).convert("RGB"))
    answers(demo, "Describe the image.", SCENE)
    assert seen == []
    assert first[-1].vision_s > 0
    assert again[-1].vision_s == 0
    assert [r.token for r in again] == [r.token for r in first]


def test_features_of_pictures_take_a_bounded_room():
    from mlx_corematching.models.features import FeatureCache

    cache = FeatureCache(limit=3 * 40)
    for name in "abc":
        cache.put(name, mx.zeros(10))
    assert cache.get("a") is not None  # and is now the one that was used last
    cache.put("d", mx.zeros(10))
    assert [name for name in "abcd" if cache.get(name) is None] == ["b"]
    cache.put("large", mx.zeros(100))
    assert cache.get("large") is None
    assert len(cache) == 3


def test_settings_that_keep_everything_answer_as_dense_does(demo):
    everything = CoreMatching(beta=1.0, keep_tokens=144)
    for question in ("Describe the image.", "How many objects are in the image?"):
        dense = generate(*demo, question, SCENE, sparsity=CoreMatching.dense())
        assert generate(*demo, question, SCENE, sparsity=everything) == dense


def test_a_follow_up_reads_only_what_is_new(demo):
    cache = PromptCache()
    sparse = {"sparsity": CoreMatching.balanced(), "prompt_cache": cache}
    first = answers(demo, "What color is the background?", SCENE, **sparse)[-1]
    stored = cache.stored_tokens
    counted = cache.layers[0].counts.tokens
    second = answers(demo, "Where is the pig?", **sparse)[-1]
    assert second.prompt_tokens > first.prompt_tokens
    assert second.image_tokens == 0
    assert stored < cache.stored_tokens < stored + 60
    assert cache.layers[0].counts.tokens > counted
    assert [m["role"] for m in cache.messages] == ["user", "assistant"] * 2
    assert len(cache.ids) == cache.layers[0].position
    assert cache.nbytes > 0


def test_a_dense_follow_up_says_what_a_fresh_reading_of_the_chat_says(demo):
    dense = CoreMatching.dense()
    cache = PromptCache()
    generate(*demo, "What color is the background?", SCENE, sparsity=dense, prompt_cache=cache)
    continued = generate(*demo, "Describe the image.", sparsity=dense, prompt_cache=cache)
    chat = cache.messages[:-1]
    assert generate(*demo, chat, sparsity=dense) == continued
    # The same chat again rolls back what was said and answers the same.
    assert generate(*demo, chat, sparsity=dense, prompt_cache=cache) == continued


def test_another_chat_starts_anew(demo):
    cache = PromptCache()
    question = "What color is the background?"
    sparse = CoreMatching.balanced()
    generate(*demo, question, SCENE, sparsity=sparse, prompt_cache=cache)
    other = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    image = IMAGES / "scene_0010.png"
    fresh = generate(*demo, question, image, sparsity=sparse)
    assert generate(*demo, other, image, sparsity=sparse, prompt_cache=cache) == fresh
    assert len(cache.pictures) == 1
    assert cache.layers[0].counts.tokens < 170


def test_two_pictures_in_one_prompt(demo):
    pictures = [SCENE, IMAGES / "scene_0004.png"]
    last = answers(demo, "What color is the background?", pictures)[-1]
    assert last.image_tokens == 288


def test_pictures_come_as_paths_as_pil_and_as_arrays_of_both(demo):
    question = "What color is the background?"
    expected = generate(*demo, question, SCENE)
    with Image.open(SCENE) as picture:
        assert generate(*demo, question, picture) == expected
    assert generate(*demo, question, [str(SCENE)]) == expected


def test_a_question_without_a_picture(demo):
    last = answers(demo, "What color is the background?", max_tokens=3)[-1]
    assert last.image_tokens == 0


def test_a_one_token_answer_never_pays_for_compact_weights(demo, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a decode step was begun")

    monkeypatch.setattr(Run, "tokens", refuse)
    responses = answers(demo, "Describe the image.", SCENE, max_tokens=1)
    assert [r.finish_reason for r in responses] == ["length"]
    assert responses[0].decode_tokens_per_s is None


def test_no_step_is_computed_that_no_token_comes_of(demo, monkeypatch):
    steps = []
    call = LanguageModel.__call__
    monkeypatch.setattr(
        LanguageModel, "__call__", lambda self, *a: steps.append(1) or call(self, *a)
    )
    responses = answers(demo, "Describe the image.", SCENE, max_tokens=5)
    assert len(responses) == 5
    assert len(steps) == 4  # the first token comes of the prefill


def test_max_tokens_ends_an_answer(demo):
    cache = PromptCache()
    responses = answers(demo, "Describe the image.", SCENE, max_tokens=5, prompt_cache=cache)
    assert [r.generated_tokens for r in responses] == [1, 2, 3, 4, 5]
    assert responses[-1].finish_reason == "length"
    assert cache.layers[0].position == len(cache.ids)


def test_an_answer_left_early_can_be_continued(demo):
    cache = PromptCache()
    stream = stream_generate(*demo, "Describe the image.", SCENE, prompt_cache=cache)
    for _ in range(4):
        next(stream)
    stream.close()
    assert {layer.position for layer in cache.layers} == {len(cache.ids)}
    assert cache.messages[-1]["role"] == "assistant"
    assert generate(*demo, "What color is the background?", prompt_cache=cache)


def test_sampling_is_repeatable_by_seed(demo):
    def sampled(seed):
        options = {"temp": 5.0, "seed": seed, "max_tokens": 12}  # at lower ones it is too sure
        return generate(*demo, "Describe the image.", SCENE, **options)

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(6)}) > 1


def test_the_answer_ends_where_the_context_does(demo):
    model, _ = demo
    context = model.config.text.max_position_embeddings
    long = "word " * 200
    last = answers(demo, long, SCENE, max_tokens=100_000, temp=3.0, seed=0)[-1]
    assert last.prompt_tokens + last.generated_tokens <= context


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temp": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"sparsity": CoreMatching(prune_layer=9)}, "prune layer is 9, but this model has 6"),
        ({"sparsity": CoreMatching(selector="guess")}, "selector"),
    ],
)
def test_settings_that_cannot_be(demo, options, message):
    with pytest.raises(InputError, match=message):
        answers(demo, "What is this?", SCENE, **options)


def test_a_prompt_longer_than_the_context(demo):
    with pytest.raises(InputError, match="context holds 1024"):
        answers(demo, "word " * 2000, SCENE)


def test_a_conversation_keeps_its_settings(demo):
    cache = PromptCache()
    generate(*demo, "What is this?", SCENE, prompt_cache=cache, max_tokens=2)
    with pytest.raises(InputError, match="settings it was begun with"):
        generate(*demo, "And now?", sparsity=CoreMatching.paper(), prompt_cache=cache)


def test_a_failed_question_leaves_the_conversation_as_it_was(demo):
    cache = PromptCache()
    generate(*demo, "What color is the background?", SCENE, prompt_cache=cache)
    before = (list(cache.ids), len(cache.messages))
    for bad in ({"image": "no-such.png"}, {"max_tokens": 0}, {"sparsity": CoreMatching.paper()}):
        with pytest.raises(InputError):
            generate(*demo, "What is this?", prompt_cache=cache, **bad)
    assert (cache.ids, len(cache.messages)) == before


def test_weights_that_are_not_finite_are_named():
    model, processor = load()
    broken = model.language_model.layers[3].input_layernorm
    broken.weight = mx.full(broken.weight.shape, float("nan"))
    with pytest.raises(InputError, match=r"layers\.3\.input_layernorm\.weight"):
        generate(model, processor, "What is this?", SCENE)


def test_importing_the_package_is_light_and_names_do_not_clash():
    code = """
import sys
import mlx_corematching
heavy = {"mlx", "mlx_lm", "transformers", "numpy", "PIL", "huggingface_hub"} & set(sys.modules)
assert not heavy, heavy
import mlx_corematching.generate
from mlx_corematching import generate
assert callable(generate), generate
assert "generate" in dir(mlx_corematching)
"""
    subprocess.run([sys.executable, "-c", code], check=True)

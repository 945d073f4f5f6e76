"""The bundled model answers like the same weights in transformers: 100 questions and more.

The Hugging Face model is rebuilt from the bundled checkpoint: unpacked from its 8 bits, and with
the FFN turned back.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_corematching import CoreMatching, load, stream_generate
from mlx_corematching.core.prefill import Prefill
from mlx_corematching.loading import DEMO

torch = pytest.importorskip("torch", reason="needs the parity extra (torch)")
pytestmark = pytest.mark.parity

IMAGES = Path(__file__).parent.parent / "examples" / "images"
QUESTIONS = [json.loads(line) for line in (IMAGES / "questions.jsonl").read_text().splitlines()]
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def ours():
    model, processor = load()
    # Both sides in float32: the comparison is of the mathematics.
    model.set_dtype(mx.float32)
    return model, processor


@pytest.fixture(scope="module")
def theirs():
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = json.loads((DEMO / "config.json").read_text())
    quantization = config.pop("quantization")
    stored = mx.load(str(DEMO / "model.safetensors"))
    state = {}
    for name, value in stored.items():
        module = name.removesuffix(".weight")
        if name.endswith((".scales", ".biases")):
            continue
        if f"{module}.scales" in stored:
            scales, biases = stored[f"{module}.scales"], stored[f"{module}.biases"]
            value = mx.dequantize(
                value,
                scales.astype(mx.float32),
                biases.astype(mx.float32),
                group_size=quantization["group_size"],
                bits=quantization["bits"],
            )
        if name.endswith("mlp.down_proj.weight"):
            value = value.T
        for ours, hugging in (
            ("language_model.model.", "model.language_model."),
            ("language_model.lm_head.", "lm_head."),
            ("vision_tower.vision_model.", "model.vision_tower."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
        ):
            if name.startswith(ours):
                name = hugging + name.removeprefix(ours)
                break
        state[name] = torch.tensor(np.array(value.astype(mx.float32)))
    model = LlavaForConditionalGeneration(LlavaConfig.from_dict(config)).float().eval()
    model.load_state_dict(state, strict=True)
    return model


def their_inputs(processor, prepared):
    ids = torch.tensor([prepared.prompt.ids])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.tensor(
            np.stack([processor.pixels(picture) for picture in prepared.pictures])
        ),
    }


def chat(question):
    image = {"type": "image", "image": IMAGES / question["image"]}
    return [{"role": "user", "content": [image, {"type": "text", "text": question["text"]}]}]


def test_there_are_a_hundred_questions():
    assert len(QUESTIONS) >= 100


def test_greedy_answers_and_logits_are_the_same(ours, theirs):
    model, processor = ours
    worst = 0.0
    for number, question in enumerate(QUESTIONS):
        prepared = processor.prepare(chat(question))
        inputs = their_inputs(processor, prepared)
        with torch.no_grad():
            said = theirs.generate(**inputs, max_new_tokens=32, do_sample=False)
        text = processor.tokenizer.decode(
            said[0, len(prepared.prompt.ids) :].tolist(), skip_special_tokens=True
        )
        responses = stream_generate(
            model, processor, chat(question), sparsity=CoreMatching.dense(), max_tokens=32
        )
        answer = "".join(response.text for response in responses)
        assert answer.strip() == text.strip(), question
        if number % 5 == 0:
            with torch.no_grad():
                logits = theirs(**inputs).logits[0, -1].numpy()
            worst = max(worst, float(np.abs(our_logits(model, processor, prepared) - logits).max()))
    assert worst <= TOLERANCE


def our_logits(model, processor, prepared):
    rows = np.array(prepared.prompt.image_index)
    features = model.image_features([processor.pixels(picture) for picture in prepared.pictures])
    h = model.embed(prepared.prompt.ids, rows, features)
    method = Prefill(CoreMatching.dense(), rows, len(prepared.prompt.ids))
    return np.array(model.prefill(h, model.language_model.make_cache(), method))

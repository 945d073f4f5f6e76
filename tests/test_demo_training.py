"""The demo model's recipe: its packed forward pass, its targets, its checkpoints."""

import random

import numpy as np
import pytest

from examples.demo_world.questions import KINDS
from examples.demo_world.scenes import GRID, lay_out
from examples.demo_world.vocabulary import COLOR_NAMES, THINGS, WORDS

torch = pytest.importorskip("torch", reason="needs the extra train (torch)")
pytestmark = pytest.mark.parity

from examples.demo_world.train import architecture, language, spelling  # noqa: E402
from examples.demo_world.train.decoder import hidden_states  # noqa: E402
from examples.demo_world.train.loop import Part, Stage, run  # noqa: E402
from examples.demo_world.train.turns import Encoder, pack  # noqa: E402

SCENES = [lay_out(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def tokenizer():
    return architecture.make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return architecture.make_model(len(tokenizer)).eval()


def turns_of(rows):
    """(row, slice of a turn), for every turn."""
    for row, turn in enumerate(rows.turn):
        for number in range(int(turn.max()) + 1):
            at = torch.nonzero(turn == number)[:, 0]
            yield row, slice(int(at[0]), int(at[-1]) + 1)


def test_names_words_and_colors_are_single_tokens(tokenizer):
    for name in (*(thing.name for thing in THINGS), *WORDS, *COLOR_NAMES):
        assert len(tokenizer(f" {name}", add_special_tokens=False).input_ids) == 1
    cats, cat = (tokenizer(w, add_special_tokens=False).input_ids for w in (" cats", " cat"))
    assert cats[:1] == cat
    assert tokenizer("Is").input_ids[0] == architecture.BOS


def test_a_turn_is_a_question_and_its_answer(tokenizer):
    rows = pack(SCENES, random.Random(1), Encoder(tokenizer), dict.fromkeys(KINDS, 1.0), 3, 0)
    asked = {}
    for row, at in turns_of(rows):
        tokens, target = rows.tokens[row, at], rows.target[row, at]
        prompt, answer = tokenizer.decode(tokens).removesuffix("</s>").split(" ASSISTANT: ")
        told = target[target != -100]
        assert tokenizer.decode(told) == f" {answer}</s>"
        assert (rows.position[row, at] == torch.arange(len(tokens))).all()
        asked.setdefault(row // rows.per_picture, []).append(prompt)
    assert set(asked) == {0, 1, 2}
    assert all(len(prompts) == len(set(prompts)) >= 8 for prompts in asked.values())


def test_names_carry_how_many_and_where(tokenizer):
    encode = Encoder(tokenizer)
    rows = pack(SCENES, random.Random(1), encode, {"presence": 1.0, "describe": 1.0}, 2, 0)
    for row, number in enumerate(rows.number):
        scene = SCENES[row // rows.per_picture]
        for token, how_many in zip(rows.tokens[row], number, strict=True):
            name = tokenizer.decode(token).strip()
            there = sum(THINGS[placed.thing].name == name for placed in scene.things)
            words = there + (scene.sign is not None and scene.sign.word == name)
            is_name = name in WORDS or any(thing.name == name for thing in THINGS)
            assert how_many == (words if is_name else -100)


def test_packed_rows_are_transformers_one_by_one(tokenizer, model):
    """A turn among others, beside a shared prefix, has the hidden states it has alone."""
    decoder = model.model.language_model
    rows = pack(SCENES, random.Random(2), Encoder(tokenizer), language.MIX, 2, 0.5)
    prefix = 0.3 * torch.randn(len(SCENES), 20, decoder.config.hidden_size)
    with torch.no_grad():
        words = decoder.embed_tokens(rows.tokens)
        packed, early, _ = hidden_states(decoder, prefix, words, rows, 2)
        for row, at in turns_of(rows):
            alone = torch.cat([prefix[row // rows.per_picture], words[row, at]])[None]
            wanted = decoder(inputs_embeds=alone, output_hidden_states=True)
            got = packed[row, at]
            torch.testing.assert_close(got, wanted.last_hidden_state[0, 20:], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(
                early[row, at], wanted.hidden_states[2][0, 20:], atol=1e-4, rtol=1e-4
            )


def test_facts_are_those_of_what_covers_each_patch():
    scenes = [lay_out(seed) for seed in range(30)]
    owners = np.stack([spelling.rough_owners(scene, random.Random(0)) for scene in scenes])
    told = spelling.facts(scenes, owners)
    for index, scene in enumerate(scenes):
        for patch, owner in enumerate(owners[index].ravel()):
            row, column = divmod(patch, GRID)
            name, x, y = (getattr(told, key)[index, patch] for key in ("name", "x", "y"))
            sign_color = told.sign_color[index, patch]
            if owner < 0:
                assert spelling.NAMES[name] == scene.background
                assert (x, y) == (
                    pytest.approx((column + 0.5) / GRID),
                    pytest.approx((row + 0.5) / GRID),
                )
            elif owner == len(scene.things):
                assert spelling.NAMES[name] == scene.sign.word
                assert COLOR_NAMES[sign_color] == scene.sign.color
            else:
                placed = scene.things[owner]
                assert spelling.NAMES[name] == THINGS[placed.thing].name
                assert (x * 168, y * 168) == (pytest.approx(placed.x), pytest.approx(placed.y))
            if owner < len(scene.things):
                assert sign_color == spelling.NO_COLOR
        centres = told.centre[index].sum()
        assert centres == len(scene.things) + (scene.sign is not None)


def test_ordinals_count_in_reading_order():
    scenes = [lay_out(seed) for seed in range(30)]
    owners = np.stack([spelling.rough_owners(scene, random.Random(0)) for scene in scenes])
    of_kind, of_all = language.ordinals(spelling.facts(scenes, owners))
    for index, scene in enumerate(scenes):
        places = sorted((int(t.y) // 14, int(t.x) // 14, t.thing) for t in scene.things)
        for number, (row, column, thing) in enumerate(places):
            patch = row * GRID + column
            assert of_all[index, patch] == number
            assert of_kind[index, patch] == sum(kind == thing for *_, kind in places[:number])
        assert (of_all[index] >= 0).sum() == len(places)


def small_stage(seed: int) -> Stage:
    torch.manual_seed(seed)
    layer = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 6))

    def batch(step):
        return torch.randn(8, 6, generator=torch.Generator().manual_seed(step))

    def losses(x):
        return {"loss": (layer(x) - x.flip(-1)).square().mean()}

    return Stage("small", {"layer": Part(layer, 1e-2, 1e-2)}, batch, losses, dict)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    straight = small_stage(0)
    run(straight, whole, steps=12, every=4)

    interrupted = small_stage(0)
    batch = interrupted.batch

    def until(step):
        if step == 6:
            raise KeyboardInterrupt
        return batch(step)

    interrupted.batch = until
    with pytest.raises(KeyboardInterrupt):
        run(interrupted, part, steps=12, every=4)
    resumed = small_stage(1)
    run(resumed, part, steps=12, every=4)
    for a, b in zip(
        straight.parts["layer"].module.parameters(),
        resumed.parts["layer"].module.parameters(),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert not list(part.glob("*.unfinished"))


def test_training_lowers_the_loss_and_says_by_how_much(tmp_path, capsys):
    stage = small_stage(0)
    before = stage.losses(stage.batch(0))["loss"].item()
    run(stage, tmp_path, steps=200, every=100)
    after = stage.losses(stage.batch(999))["loss"].item()
    assert after < 0.5 * before
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"small: loss {before:.3f} in the first step")

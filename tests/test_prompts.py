"""Chats become the token ids that transformers' processor makes of them."""

import pytest
from checkpoints import IMAGE_TOKEN, write_tokenizer

from mlx_corematching.errors import InputError
from mlx_corematching.inputs.prompts import VICUNA_TEMPLATE, Prompter, attach, normalise, question

RUN = 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from mlx_lm.tokenizer_utils import load

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load(folder)


@pytest.fixture
def prompter(tokenizer):
    return Prompter(tokenizer, IMAGE_TOKEN, RUN)


def user(*parts):
    return {"role": "user", "content": list(parts)}


IMAGE = {"type": "image"}


def text(words):
    return {"type": "text", "text": words}


CHAT = [
    user(IMAGE, text("What is this?")),
    {"role": "assistant", "content": "A dog."},
    user(IMAGE, text("And this?")),
]


def test_the_default_template_is_the_one_of_llava_1_5(tokenizer):
    prompter = Prompter(tokenizer, IMAGE_TOKEN, RUN)
    prompter.template = VICUNA_TEMPLATE
    chat = [{"role": "system", "content": "Be brief."}, *CHAT]
    assert prompter.render(chat) == (
        "Be brief. USER: <image>\nWhat is this? ASSISTANT: A dog.</s>"
        "USER: <image>\nAnd this? ASSISTANT:"
    )


def test_ids_equal_those_of_transformers(tokenizer, prompter):
    text = prompter.render(CHAT)
    theirs = tokenizer.encode(text.replace("<image>", "<image>" * RUN))
    prompt = prompter.encode(text)
    assert prompt.ids == theirs
    assert prompt.ids[0] == tokenizer.bos_token_id
    assert prompt.image_index == [i for i, token in enumerate(theirs) if token == IMAGE_TOKEN]
    assert len(prompt.image_starts) == 2


def test_a_template_that_writes_bos_gets_no_second_one(tokenizer):
    prompter = Prompter(tokenizer, IMAGE_TOKEN, RUN)
    prompter.template = "{{ bos_token }}{{ messages[0]['content'][0]['text'] }}"
    ids = prompter.encode(prompter.render([user(text("hello"))])).ids
    assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}",
        "{% for m in messages %}{{ '[' + m['content'] + ']' }}{% endfor %}",
    ],
)
def test_templates_for_text_alone_serve_too(tokenizer, template):
    prompter = Prompter(tokenizer, IMAGE_TOKEN, RUN)
    prompter.template = template
    assert prompter.render([question("What is this?", "a.png")]) == "[<image>\nWhat is this?]"


def test_places_that_the_user_wrote_are_used(prompter):
    rendered = prompter.render([question("Left <image> or right <image>?", ["a.png", "b.png"])])
    assert rendered == "USER: Left <image> or right <image>? ASSISTANT:"


def test_openai_messages():
    url = "data:image/png;base64,xyz"
    chat = normalise([user({"type": "image_url", "image_url": {"url": url}}, text("Hm?"))])
    assert chat[0]["content"][0] == {"type": "image", "image": url}


def test_pictures_given_beside_the_messages_fill_their_places():
    chat = attach(CHAT, ["a.png", "b.png"])
    assert [m["content"][0].get("image") for m in chat] == ["a.png", None, "b.png"]
    plain = attach([{"role": "user", "content": "Hm?"}], "a.png")
    assert plain[0]["content"] == [{"type": "image", "image": "a.png"}, text("Hm?")]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "prompt is empty"),
        ("text", "prompt is empty"),
        ([user()], "prompt is empty"),
        ([user(text("  \n"))], "prompt is empty"),
        (["hello"], "message 1 is not an object"),
        ([{"role": "user"}], "message 1 is not an object"),
        ([{"role": "robot", "content": "x"}], "role 'robot'"),
        ([{"role": "user", "content": 7}], "neither a text nor a list"),
        ([user({"type": "audio"})], "part of unknown type"),
        ([user({"type": "image_url", "image_url": {}})], "without a url"),
        ([{"role": "assistant", "content": [IMAGE]}], "can hold no pictures"),
        ([user(text("<image> <image>?"), IMAGE)], "2 times, but there are 1 pictures"),
        ([user(text("<image>?"))], "1 times, but there are 0 pictures"),
    ],
)
def test_messages_that_cannot_be_used(prompter, messages, message):
    with pytest.raises(InputError, match=message):
        prompter.render(messages)


def test_an_empty_question():
    with pytest.raises(InputError, match="prompt is empty"):
        question(" \t", "a.png")


def test_more_pictures_than_places():
    with pytest.raises(InputError, match="2 places for pictures, and 1 were given"):
        attach(CHAT, "a.png")


def test_a_template_that_refuses(tokenizer):
    prompter = Prompter(tokenizer, IMAGE_TOKEN, RUN)
    prompter.template = "{{ raise_exception('only once') }}"
    with pytest.raises(InputError, match="does not take these messages"):
        prompter.render([question("Hm?")])


def test_a_tokenizer_that_does_not_know_the_image_token(tokenizer):
    prompter = Prompter(tokenizer, 9999, RUN)
    with pytest.raises(InputError, match="do not belong together"):
        prompter.encode("USER: <image>\nHm?")

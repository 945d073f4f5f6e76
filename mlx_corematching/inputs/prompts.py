"""From questions and chats to token ids, pictures expanded to their image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_corematching.errors import InputError

# The format of LLaVA-1.5 (Vicuna's), for checkpoints that bring no template of their own.
VICUNA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% set parts = [{'type': 'text', 'text': message['content']}]"
    " if message['content'] is string else message['content'] %}"
    "{% for part in parts if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in parts if part['type'] == 'text' %}"
    "{{ part['text'] + (eos_token if message['role'] == 'assistant' else ' ') }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

_ROLES = ("system", "user", "assistant")
Message = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """Token ids with every picture expanded.

    Attributes:
        ids: one a position. [tokens]
        image_starts: where each picture's run of image tokens begins.
        image_tokens: how long each run is.
    """

    ids: list[int]
    image_starts: list[int]
    image_tokens: int

    @property
    def image_index(self) -> list[int]:
        """The positions of all image tokens, ascending."""
        return [
            position
            for start in self.image_starts
            for position in range(start, start + self.image_tokens)
        ]


def question(text: str, image: Any = None) -> Message:
    """One user message: the pictures (one, a list, or None), then the text."""
    if not text.strip():
        raise InputError("the prompt is empty; ask something")
    parts = [{"type": "image", "image": source} for source in _as_list(image)]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def attach(messages: Sequence[Message], image: Any) -> list[Message]:
    """The chat with pictures filled in where its image parts name none.

    Where it has no such parts, the pictures go in front of the last user message.
    """
    given = _as_list(image)
    chat = normalise(messages)
    empty = [
        part
        for message in chat
        for part in message["content"]
        if part["type"] == "image" and part["image"] is None
    ]
    if empty:
        if len(empty) != len(given):
            raise InputError(
                f"the messages have {len(empty)} places for pictures, and {len(given)} were given"
            )
        for part, source in zip(empty, given, strict=True):
            part["image"] = source
        return chat
    for message in reversed(chat):
        if message["role"] == "user":
            message["content"][:0] = [{"type": "image", "image": source} for source in given]
            return chat
    raise InputError("pictures were given, but the messages have no user message to put them in")


def normalise(messages: Sequence[Message]) -> list[Message]:
    """Chat messages with their content as a list of `text` and `image` parts.

    OpenAI's `image_url` parts become `image` parts; an image part's source is under `image`.

    Raises:
        InputError: it is not a list of such messages.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise InputError("the prompt is empty; give a question or a list of chat messages")
    return [_normalise(number, message) for number, message in enumerate(messages, start=1)]


def _normalise(number: int, message: Message) -> Message:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise InputError(f"message {number} is not an object with 'role' and 'content'")
    if message["role"] not in _ROLES:
        raise InputError(
            f"message {number} has the role {message['role']!r}; there are {', '.join(_ROLES)}"
        )
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise InputError(f"the content of message {number} is neither a text nor a list of parts")
    return {
        "role": message["role"],
        "content": [_part(number, message["role"], part) for part in content],
    }


def _part(number: int, role: str, part: Any) -> Message:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind in ("image", "image_url"):
        if role != "user":
            raise InputError(f"message {number} is of role {role!r}, which can hold no pictures")
        source = next((part[k] for k in ("image", "image_url", "url", "path") if k in part), None)
        if isinstance(source, dict):
            source = source.get("url")
        if kind == "image_url" and not isinstance(source, str):
            raise InputError(f"message {number} has an image_url part without a url")
        return {"type": "image", "image": source}
    raise InputError(f"message {number} has a part of unknown type: {str(part)[:80]}")


class Prompter:
    """Applies a checkpoint's chat template and expands its image tokens.

    Args:
        tokenizer: transformers' or mlx-lm's.
        image_token_id: the id that stands for a picture.
        image_tokens: how many tokens a picture becomes.
        template: used where the tokenizer has none of its own.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_token_id: int,
        image_tokens: int,
        template: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.image_token_id = image_token_id
        self.image_tokens = image_tokens
        self.template = tokenizer.chat_template or template or VICUNA_TEMPLATE
        token = tokenizer.convert_ids_to_tokens(image_token_id)
        self.image_token = token if isinstance(token, str) else "<image>"

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The chat as the text that the model reads, one image token a picture.

        Raises:
            InputError: the template refuses the chat, or the text holds image tokens of its own.
        """
        chat = normalise(messages)
        if not any(p["text"].strip() for m in chat for p in m["content"] if p["type"] == "text"):
            raise InputError("the prompt is empty; ask something")
        pictures = sum(p["type"] == "image" for m in chat for p in m["content"])
        written = sum(
            p["text"].count(self.image_token)
            for m in chat
            for p in m["content"]
            if p["type"] == "text"
        )
        if written:
            # LLaVA's users often write the places of the pictures themselves.
            if written != pictures:
                raise InputError(
                    f"the prompt says {self.image_token} {written} times, but there are "
                    f"{pictures} pictures"
                )
            for message in chat:
                message["content"] = [p for p in message["content"] if p["type"] == "text"]
        text = self._apply(chat, add_generation_prompt)
        if text is None or text.count(self.image_token) != pictures:
            text = self._apply(self._as_strings(chat), add_generation_prompt)
        if text is None or text.count(self.image_token) != pictures:
            raise InputError("the checkpoint's chat template does not take these messages")
        return text

    def encode(self, text: str) -> Prompt:
        """Token ids of a rendered chat."""
        tokenizer = self.tokenizer
        bos = tokenizer.bos_token
        ids = tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos)))
        expanded: list[int] = []
        starts = []
        for token in ids:
            if token == self.image_token_id:
                starts.append(len(expanded))
                expanded += [token] * self.image_tokens
            else:
                expanded.append(token)
        if len(starts) != text.count(self.image_token):
            raise InputError(
                f"the tokenizer does not know {self.image_token} as the one token "
                f"{self.image_token_id}; the checkpoint's files do not belong together"
            )
        return Prompt(expanded, starts, self.image_tokens)

    def _apply(self, chat: list[Message], add_generation_prompt: bool) -> str | None:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                chat,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (TemplateError, TypeError, KeyError):
            return None

    def _as_strings(self, chat: list[Message]) -> list[Message]:
        """The same for templates written for text alone."""
        return [
            {
                "role": message["role"],
                "content": "".join(
                    f"{self.image_token}\n" if part["type"] == "image" else part["text"]
                    for part in message["content"]
                ),
            }
            for message in chat
        ]


def _as_list(image: Any) -> list[Any]:
    if image is None:
        return []
    return list(image) if isinstance(image, (list, tuple)) else [image]

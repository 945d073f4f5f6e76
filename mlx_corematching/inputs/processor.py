"""`Processor`: tokenizer, image processor and chat template of one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_corematching.errors import InputError
from mlx_corematching.files import read_json
from mlx_corematching.inputs.pictures import Notice, Picture, load_picture, say
from mlx_corematching.inputs.preprocess import ImageProcessor
from mlx_corematching.inputs.prompts import Message, Prompt, Prompter, normalise


@dataclass(frozen=True)
class Prepared:
    """What the model reads of one chat.

    Attributes:
        prompt: its token ids.
        pictures: its pictures, in order.
        messages: the chat, with the loaded pictures in its image parts.
    """

    prompt: Prompt
    pictures: list[Picture]
    messages: list[Message]


class Processor:
    """Prepares chats and pictures for a model, and turns its tokens back into text.

    Attributes:
        tokenizer: mlx-lm's wrapper, with its streaming detokenizer and end-of-answer ids.
        image_processor: prepares pictures.
        prompter: applies the chat template.
        image_size: pixels along a side of what the vision tower takes.
    """

    def __init__(
        self, tokenizer: Any, image_processor: ImageProcessor, prompter: Prompter, image_size: int
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.prompter = prompter
        self.image_size = image_size

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        image_size: int,
        image_token_id: int,
        image_tokens: int,
        eos_token_ids: Iterable[int] = (),
    ) -> Processor:
        """Read a checkpoint's tokenizer and preprocessor files; nothing is fetched.

        Args:
            eos_token_ids: ids that end an answer, beside the tokenizer's own and those of
                generation_config.json.

        Raises:
            InputError: a file is missing or cannot be read.
        """
        image_processor = ImageProcessor.from_folder(folder)
        tokenizer = _load_tokenizer(folder, {*eos_token_ids, *_generation_eos(folder)})
        prompter = Prompter(tokenizer, image_token_id, image_tokens, _old_template(folder))
        return cls(tokenizer, image_processor, prompter, image_size)

    def prepare(self, messages: list[Message], notice: Notice | None = say) -> Prepared:
        """Load a chat's pictures, and encode it.

        Raises:
            InputError: a picture or the chat cannot be used.
        """
        chat = normalise(messages)
        text = self.prompter.render(chat)
        pictures = []
        for message in chat:
            for part in message["content"]:
                if part["type"] != "image":
                    continue
                if part["image"] is None:
                    raise InputError("the messages have a place for a picture, but none was given")
                picture = part["image"] = load_picture(part["image"], notice=notice)
                self.image_processor.check(*picture.image.size, self.image_size)
                pictures.append(picture)
        return Prepared(self.prompter.encode(text), pictures, chat)

    def pixels(self, picture: Picture) -> np.ndarray:
        """What the vision tower takes of a picture: float32 [3, size, size]."""
        return self.image_processor(picture.image)


def _load_tokenizer(folder: Path, eos_token_ids: set[int]) -> Any:
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        raise InputError(f"{folder} has no tokenizer (tokenizer.json); convert the original again")
    from mlx_lm.tokenizer_utils import load

    try:
        return load(
            folder,
            {"trust_remote_code": False, "local_files_only": True},
            eos_token_ids=sorted(eos_token_ids),
        )
    # tokenizers raises bare Exceptions for files that it cannot parse.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the tokenizer in {folder} cannot be read ({reason})") from None


def _generation_eos(folder: Path) -> list[int]:
    file = folder / "generation_config.json"
    value = read_json(file).get("eos_token_id") if file.exists() else None
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _old_template(folder: Path) -> str | None:
    """The template of older checkpoints, in a JSON file beside the tokenizer."""
    file = folder / "chat_template.json"
    if not file.exists():
        return None
    try:
        template = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{file} cannot be read ({error})") from None
    return template if isinstance(template, str) else None

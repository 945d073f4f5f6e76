"""What is measured: a checkpoint with a picture and a question, or a shape with random ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_corematching.bench.measure import Task
from mlx_corematching.errors import InputError

if TYPE_CHECKING:
    from mlx_corematching.costs.weights import Storage
    from mlx_corematching.models.config import LlavaConfig
    from mlx_corematching.models.llava import Llava


@dataclass(frozen=True)
class Shape:
    """A model without a checkpoint, and a prompt for it.

    Attributes:
        config: a config.json.
        what: the shape in words.
        bits: of the decoder's matrices; None leaves them in `dtype`.
        dtype: float16, bfloat16 or float32.
        text, images: tokens of text, and pictures.
    """

    config: dict[str, Any]
    what: str
    bits: int | None
    dtype: str
    text: int
    images: int


@dataclass(frozen=True)
class Subject:
    """A model in memory, and what it is asked.

    Attributes:
        text, image: tokens of the prompt.
        processor: the checkpoint's; None where there is none.
    """

    model: Llava
    storage: Storage
    task: Task
    what: str
    text: int
    image: int
    processor: Any = None


@contextmanager
def opened_shape(shape: Shape, memory: str, new_tokens: int) -> Iterator[Subject]:
    """A model of that shape with random weights; on disk, for as long as it streams."""
    import mlx.core as mx
    import numpy as np
    from PIL import Image

    from mlx_corematching.bench.random_model import (
        RandomWeights,
        complete_config,
        random_model,
        write_checkpoint,
    )
    from mlx_corematching.inputs.pictures import Picture
    from mlx_corematching.inputs.prompts import Prompt
    from mlx_corematching.loading import load_model

    config = complete_config(shape.config, shape.bits)
    weights = RandomWeights(config, shape.bits, getattr(mx, shape.dtype))
    prompt = random_prompt(config, shape.text, shape.images)
    image = config.image_tokens * shape.images
    side = config.vision.image_size
    random = np.random.RandomState(0)
    noise = [
        Picture(Image.fromarray(random.randint(0, 256, (side, side, 3), np.uint8)), "noise")
        for _ in range(shape.images)
    ]

    def pixels(picture: Picture) -> np.ndarray:
        return np.asarray(picture.image, np.float32).transpose(2, 0, 1) / 127.5 - 1

    assert isinstance(prompt, Prompt)
    with ExitStack() as stack:
        if memory == "streaming":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corematching-")))
            write_checkpoint(folder, weights)
            model = load_model(folder, memory=memory)
        else:
            model = random_model(weights)
        task = Task(lambda: (prompt, noise), pixels, new_tokens)
        yield Subject(model, storage_of(config, shape.dtype), task, shape.what, shape.text, image)


def write_pair(shape: Shape, folder: Path) -> tuple[Path, Path]:
    """A random checkpoint of that shape in Hugging Face format, and its conversion."""
    from mlx_corematching.bench.random_source import write_random_source

    # By name, because the converter's folder lies outside the package's own.
    convert = import_module("mlx_corematching.convert").convert
    source, converted = folder / "source", folder / "converted"
    write_random_source(source, shape.config, dtype=shape.dtype)
    convert(source, converted)
    return source, converted


def opened_model(
    path: str | None,
    image: str | None,
    question: str,
    memory: str,
    new_tokens: int,
    what: str | None = None,
) -> Subject:
    """A checkpoint, asked about a picture; raises InputError as `load` and `generate` do.

    Args:
        what: the model in words; its name if left out.
    """
    from mlx_corematching.inputs.pictures import Picture
    from mlx_corematching.inputs.prompts import Prompt
    from mlx_corematching.inputs.prompts import question as as_message
    from mlx_corematching.loading import load

    model, processor = load(path, memory=memory)

    def prepare() -> tuple[Prompt, list[Picture]]:
        prepared = processor.prepare([as_message(question, image)])
        return prepared.prompt, prepared.pictures

    prompt, _ = prepare()
    images = len(prompt.image_index)
    context = model.config.text.max_position_embeddings
    if len(prompt.ids) + new_tokens > context:
        raise InputError(
            f"{len(prompt.ids)} prompt tokens and {new_tokens} new ones do not fit into this "
            f"model's context of {context}; use a smaller --new-tokens"
        )
    dtype = str(model.language_model.model.norm.weight.dtype).removeprefix("mlx.core.")
    return Subject(
        model,
        storage_of(model.config, dtype),
        Task(prepare, processor.pixels, new_tokens),
        what or model.name,
        len(prompt.ids) - images,
        images,
        processor,
    )


def random_prompt(config: LlavaConfig, text: int, images: int) -> Any:
    """A prompt of so many text tokens, a few of them before the pictures."""
    import numpy as np

    from mlx_corematching.inputs.prompts import Prompt

    random = np.random.RandomState(0)
    words = random.randint(5, config.text.vocab_size, text).tolist()
    before = min(5, text // 2)
    ids, starts = words[:before], []
    for _ in range(images):
        starts.append(len(ids))
        ids += [config.image_token_id] * config.image_tokens
    return Prompt(ids + words[before:], starts, config.image_tokens)


def storage_of(config: LlavaConfig, dtype: str) -> Storage:
    """How a model's weights are held here, `dtype` being that of what is not quantised."""
    from mlx_corematching.core.quantized import on_cpu
    from mlx_corematching.costs.weights import Storage

    given = config.quantization or {}
    size = 4 if dtype == "float32" else 2
    return Storage.of(given.get("bits"), given.get("group_size", 64), size, cpu=on_cpu())

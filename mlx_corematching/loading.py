"""`load`: from a converted checkpoint to a model and its processor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlx_corematching.errors import InputError

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx.nn import Module

    from mlx_corematching.inputs.processor import Processor
    from mlx_corematching.models.config import LlavaConfig
    from mlx_corematching.models.llava import Llava
    from mlx_corematching.models.shelf import Weights

    AnyModule = TypeVar("AnyModule", bound=Module)

MEMORY_MODES = ("resident", "streaming")

DEMO = Path(__file__).parent / "demo"

_RUNTIME_FILES = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model", "*.txt", "README.md"]


def load(
    path_or_hub_id: str | Path | None = None,
    *,
    revision: str | None = None,
    memory: str = "resident",
) -> tuple[Llava, Processor]:
    """Load a checkpoint that `mlx_corematching.convert` wrote.

    Args:
        path_or_hub_id: a folder or a Hugging Face hub id; the bundled demo model if left out.
        revision: a hub branch, tag or commit.
        memory: `resident`, or `streaming`: vision tower and dense FFNs stay on disk and are
            read layer by layer with each prompt; decoding holds the core neurons alone.

    Raises:
        InputError: there is no such model, or it cannot be used; the message says why.
    """
    from mlx_corematching.inputs.processor import Processor

    folder = find_folder(path_or_hub_id, revision)
    model = load_model(folder, memory=memory)
    model.name = "demo" if path_or_hub_id is None else str(path_or_hub_id)
    config = model.config
    processor = Processor.from_folder(
        folder,
        image_size=config.vision.image_size,
        image_token_id=config.image_token_id,
        image_tokens=config.image_tokens,
        eos_token_ids=config.eos_token_ids,
    )
    return model, processor


def find_folder(path_or_hub_id: str | Path | None, revision: str | None = None) -> Path:
    """The folder of a checkpoint, fetched from the hub if need be; raises as `load` does."""
    from mlx_corematching.models.hub import resolve_folder

    if path_or_hub_id is None:
        return DEMO
    return resolve_folder(path_or_hub_id, revision, patterns=_RUNTIME_FILES)


def load_model(folder: Path, *, memory: str = "resident") -> Llava:
    """The model alone; raises InputError as `load` does."""
    import mlx.core as mx

    from mlx_corematching.core.quantized import on_cpu
    from mlx_corematching.models.config import LlavaConfig
    from mlx_corematching.models.llava import Llava
    from mlx_corematching.models.shards import read_headers
    from mlx_corematching.models.shelf import Shelf
    from mlx_corematching.models.tensors import optional_tensors

    if memory not in MEMORY_MODES:
        raise InputError(f"the memory mode is {memory!r}; it is one of {', '.join(MEMORY_MODES)}")
    config = LlavaConfig.from_folder(folder)
    check_format(folder, config)
    headers = read_headers(folder)
    _check_shapes(folder, config, {name: header.shape for name, header in headers.items()})
    unread = optional_tensors(config)
    shelf = Shelf({name: h.file for name, h in headers.items() if name not in unread})
    model = Llava(config)
    model.memory = memory
    # The CPU backend computes in half precision many times slower than in single.
    dtype = mx.float32 if config.quantization and on_cpu() else None
    fill_model(model, shelf.read, dtype)
    return model


def fill_model(model: Llava, read: Callable[[str], Weights], dtype: mx.Dtype | None) -> None:
    """Give a model its weights, or where to read them from.

    Args:
        read: from a prefix to the tensors whose stored names begin so, by the model's names
            without the prefix. Where the model streams it is called again and again.
        dtype: what to compute in; packed matrices stay as they are. None is the stored type.
    """
    import mlx.core as mx

    from mlx_corematching.core.ffn import FeedForward, StreamedFeedForward
    from mlx_corematching.models.llava import Eyes, StreamedEyes
    from mlx_corematching.models.tensors import DECODER

    config, language_model = model.config, model.language_model
    text = config.text

    def filled(module: AnyModule, weights: Weights) -> AnyModule:
        _quantize_like(module, weights, config.quantization)
        module.load_weights(list(weights.items()), strict=True)
        if dtype is not None:
            _compute_in(module, dtype)
        module.eval()
        return module

    def read_eyes() -> Eyes:
        eyes = Eyes(config)
        weights = {
            f"{part}.{name}": value
            for part in ("vision_tower", "multi_modal_projector")
            for name, value in read(f"{part}.").items()
        }
        return filled(eyes, weights)

    def read_ffn(index: int) -> FeedForward:
        ffn = FeedForward.empty(text.hidden_size, text.intermediate_size)
        return filled(ffn, read(f"{DECODER}.layers.{index}.mlp."))

    weights = read("language_model.")
    language_model.compute_dtype = dtype
    if model.memory == "streaming":
        model.eyes = StreamedEyes(read_eyes)
        for index, layer in enumerate(language_model.layers):
            layer.mlp = StreamedFeedForward(text.intermediate_size, partial(read_ffn, index))
        weights = {name: value for name, value in weights.items() if ".mlp." not in name}
    else:
        model.eyes = read_eyes()
    filled(language_model, weights)
    del weights
    model.eval()
    # Part by part, so that what is joined is held twice for one part at a time.
    for part in (model.eyes, *language_model.layers, language_model):
        mx.eval(part.parameters())


def _quantize_like(module: Module, weights: Weights, quantization: dict[str, Any] | None) -> None:
    import mlx.nn as nn

    if quantization:
        nn.quantize(
            module,
            quantization["group_size"],
            quantization["bits"],
            class_predicate=lambda path, _: f"{path}.scales" in weights,
        )


def _compute_in(module: Module, dtype: mx.Dtype) -> None:
    """Cast all but packed matrices: products with them take the type of what they meet."""
    from mlx.utils import tree_flatten, tree_unflatten

    parameters: list[tuple[str, mx.array]] = tree_flatten(module.parameters())  # type: ignore
    packed = {name.removesuffix("scales") for name, _ in parameters if name.endswith(".scales")}
    cast = [
        (name, value.astype(dtype))
        for name, value in parameters
        if name.rpartition(".")[0] + "." not in packed or name.endswith(".bias")
    ]
    module.update(tree_unflatten(cast))


def check_format(folder: Path, config: LlavaConfig) -> None:
    """Raise InputError unless a folder's checkpoint is one that `convert` wrote."""
    made = config.corematching
    if made is None:
        raise InputError(
            f"{folder} holds a checkpoint that is not converted yet; run "
            f"python -m mlx_corematching.convert --hf-path {folder} --mlx-path NEW_FOLDER"
        )
    if made.get("format") != 1 or made.get("down_proj") != "neuron_major":
        raise InputError(
            f"{folder} was converted by another version of this program (format "
            f"{made.get('format')!r}); convert the original again"
        )


def _check_shapes(folder: Path, config: LlavaConfig, found: dict[str, tuple[int, ...]]) -> None:
    from mlx_corematching.models.tensors import expected_tensors, optional_tensors, unjoined

    expected = expected_tensors(config)
    for name, shape in list(expected.items()):
        module = name.removesuffix(".weight")
        if f"{module}.scales" in found:
            expected |= _quantized_shapes(folder, config, module, shape)
        # What the model holds in one matrix is stored in one way.
        for part in unjoined(name)[1]:
            if (part.removesuffix(".weight") + ".scales" in found) != (f"{module}.scales" in found):
                raise InputError(
                    f"{folder}: {name} and {part} have to be quantised both or not at all; "
                    "convert the original again"
                )
    optional = optional_tensors(config)
    for name, shape in expected.items():
        if name not in found:
            if name in optional:
                continue
            raise InputError(f"{folder} lacks the tensor {name}; convert the original again")
        if found[name] != shape:
            raise InputError(
                f"{folder}: the tensor {name} is {list(found[name])}, but by config.json it "
                f"has to be {list(shape)}"
            )
    extra = sorted(found.keys() - expected.keys())
    if extra:
        raise InputError(f"{folder} has a tensor that does not belong to the model: {extra[0]}")


def _quantized_shapes(
    folder: Path, config: LlavaConfig, module: str, shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    if not config.quantization:
        raise InputError(
            f"{folder} has quantised weights ({module}), but config.json has no 'quantization'"
        )
    rows, columns = shape
    groups = columns // config.quantization["group_size"]
    return {
        f"{module}.weight": (rows, columns * config.quantization["bits"] // 32),
        f"{module}.scales": (rows, groups),
        f"{module}.biases": (rows, groups),
    }

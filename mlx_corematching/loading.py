"""`load`: from a converted checkpoint to a model and its processor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_corematching.errors import InputError

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_corematching.inputs.processor import Processor
    from mlx_corematching.models.config import LlavaConfig
    from mlx_corematching.models.llava import Llava

DEMO = Path(__file__).parent / "demo"

_RUNTIME_FILES = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model", "*.txt", "README.md"]


def load(
    path_or_hub_id: str | Path | None = None, *, revision: str | None = None
) -> tuple[Llava, Processor]:
    """Load a checkpoint that `mlx_corematching.convert` wrote.

    Args:
        path_or_hub_id: a folder or a Hugging Face hub id; the bundled demo model if left out.
        revision: a hub branch, tag or commit.

    Raises:
        InputError: there is no such model, or it cannot be used; the message says why.
    """
    from mlx_corematching.inputs.processor import Processor
    from mlx_corematching.models.hub import resolve_folder

    if path_or_hub_id is None:
        folder, name = DEMO, "demo"
    else:
        folder = resolve_folder(path_or_hub_id, revision, patterns=_RUNTIME_FILES)
        name = str(path_or_hub_id)
    model = load_model(folder)
    model.name = name
    config = model.config
    processor = Processor.from_folder(
        folder,
        image_size=config.vision.image_size,
        image_token_id=config.image_token_id,
        image_tokens=config.image_tokens,
        eos_token_ids=config.eos_token_ids,
    )
    return model, processor


def load_model(folder: Path) -> Llava:
    """The model alone, its weights in memory; raises InputError as `load` does."""
    import mlx.core as mx
    import mlx.nn as nn

    from mlx_corematching.models.config import LlavaConfig
    from mlx_corematching.models.llava import Llava

    config = LlavaConfig.from_folder(folder)
    _check_format(folder, config)
    weights = _read_weights(folder, config)
    model = Llava(config)
    if config.quantization:
        nn.quantize(
            model,
            config.quantization["group_size"],
            config.quantization["bits"],
            class_predicate=lambda path, _: f"{path}.scales" in weights,
        )
    model.load_weights(list(weights.items()), strict=True)
    if config.quantization and mx.default_device().type == mx.DeviceType.cpu:
        # The CPU backend multiplies half-precision scales some forty times slower.
        model.language_model.set_dtype(mx.float32)
    model.eval()
    mx.eval(model.parameters())
    return model


def _check_format(folder: Path, config: LlavaConfig) -> None:
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


def _read_weights(folder: Path, config: LlavaConfig) -> dict[str, mx.array]:
    """The tensors that the model reads, lazily loaded; every name and shape is checked."""
    import mlx.core as mx

    from mlx_corematching.models.shards import read_headers
    from mlx_corematching.models.tensors import optional_tensors

    headers = read_headers(folder)
    _check_shapes(folder, config, {name: header.shape for name, header in headers.items()})
    files = {header.file for header in headers.values()}
    unread = optional_tensors(config)
    weights: dict[str, mx.array] = {}
    for file in sorted(files):
        arrays: Any = mx.load(str(file))
        weights.update((name, array) for name, array in arrays.items() if name not in unread)
    return weights


def _check_shapes(folder: Path, config: LlavaConfig, found: dict[str, tuple[int, ...]]) -> None:
    from mlx_corematching.models.tensors import expected_tensors, optional_tensors

    expected = expected_tensors(config)
    for name, shape in list(expected.items()):
        module = name.removesuffix(".weight")
        if f"{module}.scales" in found:
            expected |= _quantized_shapes(folder, config, module, shape)
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

"""A checkpoint in Hugging Face format: which tensors it has, under which names, and their data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlx_corematching.errors import InputError
from mlx_corematching.models.config import LlavaConfig
from mlx_corematching.models.hub import resolve_folder
from mlx_corematching.models.shards import INDEX, TensorHeader, read_headers
from mlx_corematching.models.tensors import (
    LM_HEAD,
    TOWER,
    Shape,
    expected_tensors,
    is_down_proj,
    optional_tensors,
)

if TYPE_CHECKING:
    import mlx.core as mx

# Copied as they come. Never *.py: nothing of a checkpoint is ever executed.
COPIED = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "processor_config.json", "generation_config.json",
)  # fmt: skip
_SMALL_FILES = ["config.json", INDEX, "pytorch_model.bin.index.json", "README.md", *COPIED]

# safetensors' names of the types that are read, and MLX's.
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}

_UNUSED = re.compile(
    r".*\.rotary_emb\.inv_freq"
    r"|.*\.position_ids"
    # SigLIP's attention pooling, which makes one vector of a picture.
    rf"|{re.escape(TOWER)}\.head\..*"
)


class Files(Protocol):
    """The weight files of a checkpoint: safetensors, or pickles (`pickles.PickleFiles`)."""

    headers: dict[str, TensorHeader]

    def read(self, key: str) -> mx.array: ...


class SafetensorsFiles:
    def __init__(self, folder: Path) -> None:
        self.headers = read_headers(folder)

    def read(self, key: str) -> mx.array:
        """One tensor, which MLX reads from its file when it is evaluated."""
        import mlx.core as mx

        file = self.headers[key].file
        try:
            arrays: Any = mx.load(str(file))
        except RuntimeError as error:
            raise InputError(f"{file} cannot be read ({error}); fetch it again") from None
        return arrays[key]


@dataclass(frozen=True)
class Source:
    """A checkpoint whose every tensor is known to belong to the model.

    Attributes:
        folder: where it lies.
        config: its config.json.
        files: its weight files.
        keys: canonical name -> the key in the files, in the order of `expected_tensors`.
        left_out: keys of tensors that no forward pass reads.
    """

    folder: Path
    config: LlavaConfig
    files: Files
    keys: Mapping[str, str]
    left_out: tuple[str, ...]

    def header(self, name: str) -> TensorHeader:
        return self.files.headers[self.keys[name]]

    def read(self, name: str) -> mx.array:
        """A tensor by its canonical name, as it is in the source, not evaluated yet."""
        return self.files.read(self.keys[name])


def find_source(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """The source's folder. Of a hub model only what conversion reads is fetched."""
    fetched = [*_SMALL_FILES, "*.safetensors"]
    folder = resolve_folder(path_or_hub_id, revision, fetched)
    if not Path(path_or_hub_id).expanduser().is_dir() and not any(folder.glob("*.safetensors")):
        folder = resolve_folder(path_or_hub_id, revision, [*_SMALL_FILES, "pytorch_model*.bin"])
    return folder


def open_source(folder: Path) -> Source:
    """Check a checkpoint against its config, from the headers of its files alone.

    Raises:
        InputError: it is no LLaVA checkpoint that can be converted; the message says why and
            names the file or the tensor.
    """
    if not any(folder.iterdir()):
        raise InputError(f"{folder} is empty: it is not a model folder")
    config = LlavaConfig.from_folder(folder)
    if config.corematching is not None:
        raise InputError(f"{folder} is converted already; load it as it is")
    if config.quantization is not None or config.raw.get("quantization_config"):
        raise InputError(
            f"{folder} is quantised already; convert the original weights, with --quantize"
        )
    files = _open_files(folder)
    keys, left_out = _match(config, files.headers)
    for name, shape in expected_tensors(config).items():
        if name in keys:
            _check_tensor(keys[name], files.headers[keys[name]], source_shape(name, shape))
    return Source(folder, config, files, keys, left_out)


def source_shape(name: str, shape: Shape) -> Shape:
    """The shape in the source of what has `shape` after conversion."""
    return shape[::-1] if is_down_proj(name) else shape


def canonical_name(key: str) -> str:
    """The hub's name of a tensor, from the name in any of the three layouts.

    hub                              language_model.model.*   vision_tower.vision_model.*
    transformers 5, saved            language_model.model.*   vision_tower.*
    transformers 5, in memory        model.language_model.*   model.vision_tower.*   lm_head.*
    """
    if key == "lm_head.weight":
        return LM_HEAD
    if key.startswith("model.language_model."):
        return "language_model.model." + key.removeprefix("model.language_model.")
    name = key.removeprefix("model.")
    if name.startswith("vision_tower.") and not name.startswith(f"{TOWER}."):
        return f"{TOWER}." + name.removeprefix("vision_tower.")
    return name


def _open_files(folder: Path) -> Files:
    if any(folder.glob("*.safetensors")) or (folder / INDEX).exists():
        return SafetensorsFiles(folder)
    if any(folder.glob("pytorch_model*.bin*")):
        from mlx_corematching.convert.pickles import PickleFiles

        return PickleFiles(folder)
    raise InputError(f"{folder} holds no weights (model.safetensors or its shards)")


def _match(config: LlavaConfig, headers: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Canonical name -> key, and the keys left out; InputError for any doubt."""
    expected = expected_tensors(config)
    found: dict[str, str] = {}
    left_out, unknown = [], []
    for key in headers:
        name = canonical_name(key)
        if name in found:
            raise InputError(f"the source has {name} twice: as {found[name]} and as {key}")
        if name in expected:
            found[name] = key
        elif _UNUSED.fullmatch(name) or (config.text.tie_word_embeddings and name == LM_HEAD):
            left_out.append(key)
        else:
            unknown.append(key)
    if unknown:
        raise InputError(
            f"the source has {_count(unknown)} that config.json does not account for: "
            f"{_first(unknown)}"
        )
    optional = optional_tensors(config)
    missing = [name for name in expected if name not in found and name not in optional]
    if missing:
        raise InputError(f"the source lacks {_count(missing)}: {_first(missing)}")
    return {name: found[name] for name in expected if name in found}, tuple(left_out)


def _check_tensor(key: str, header: TensorHeader, shape: Shape) -> None:
    if header.dtype not in DTYPES:
        raise InputError(
            f"the tensor {key} in {header.file.name} is of type {header.dtype}, and only "
            f"{', '.join(DTYPES)} can be converted"
        )
    if header.shape != shape:
        raise InputError(
            f"the tensor {key} in {header.file.name} is {list(header.shape)}, but by config.json "
            f"it has to be {list(shape)}"
        )


def _count(names: list[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"


def _first(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")

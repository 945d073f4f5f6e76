"""What the safetensors files of a folder hold, read from their headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_corematching.errors import InputError
from mlx_corematching.files import read_json

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorHeader:
    """Where one tensor lies; `dtype` is safetensors' name of it (F16, BF16, U32, ...)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of a folder's safetensors shards, by name.

    Raises:
        InputError: there are none; one that the index names is missing; one is no safetensors
            file or is cut short; two hold the same tensor.
    """
    headers: dict[str, TensorHeader] = {}
    for file in shard_files(folder):
        for name, header in _read_file(file).items():
            if name in headers:
                raise InputError(f"{file} and {headers[name].file} both hold the tensor {name}")
            headers[name] = header
    return headers


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, those of its index where it has one."""
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{folder / INDEX} names no tensors")
        files = [folder / str(name) for name in sorted(set(weight_map.values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    for file in files:
        if file.parent != folder:
            raise InputError(f"{folder / INDEX} names a file outside its folder: {file}")
        if not file.exists():
            raise InputError(f"{folder} lacks the shard {file.name} that its index names")
    if not files:
        raise InputError(f"{folder} holds no weights (*.safetensors)")
    return files


def _read_file(file: Path) -> dict[str, TensorHeader]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: TensorHeader(file, tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file} is cut short or is no safetensors file ({error}); fetch it again"
        ) from None

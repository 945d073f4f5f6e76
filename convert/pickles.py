"""Old checkpoints: `pytorch_model.bin` and its shards, read without ever running what they hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_corematching.errors import InputError
from mlx_corematching.files import read_json
from mlx_corematching.models.shards import TensorHeader

if TYPE_CHECKING:
    import mlx.core as mx

_INDEX = "pytorch_model.bin.index.json"
_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


class PickleFiles:
    """Tensors in pickles; their data stays on disk, memory-mapped, until it is read."""

    def __init__(self, folder: Path) -> None:
        try:
            import torch  # noqa: F401
        except ImportError:
            raise InputError(
                f"{folder} holds its weights as pickles (*.bin), which PyTorch reads: "
                "pip install torch, or use a checkpoint with safetensors"
            ) from None
        self.headers: dict[str, TensorHeader] = {}
        self._tensors: dict[str, Any] = {}
        for file in _files(folder):
            for key, tensor in _load(file).items():
                if key in self.headers:
                    raise InputError(
                        f"{file} and {self.headers[key].file} both hold the tensor {key}"
                    )
                kind = str(tensor.dtype).removeprefix("torch.")
                self.headers[key] = TensorHeader(file, tuple(tensor.shape), _DTYPES.get(kind, kind))
                self._tensors[key] = tensor

    def read(self, key: str) -> mx.array:
        import mlx.core as mx
        import torch

        tensor = self._tensors[key]
        if tensor.dtype == torch.bfloat16:  # which numpy does not have
            return mx.array(tensor.view(torch.int16).numpy()).view(mx.bfloat16)
        return mx.array(tensor.numpy())


def _files(folder: Path) -> list[Path]:
    if not (folder / _INDEX).exists():
        return sorted(folder.glob("pytorch_model*.bin"))
    weight_map = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{folder / _INDEX} names no tensors")
    files = [folder / str(name) for name in sorted(set(weight_map.values()))]
    for file in files:
        if file.parent != folder:
            raise InputError(f"{folder / _INDEX} names a file outside its folder: {file}")
        if not file.exists():
            raise InputError(f"{folder} lacks the shard {file.name} that its index names")
    return files


def _load(file: Path) -> dict[str, Any]:
    import torch

    try:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
            if "mmap can only be used" not in str(error):
                raise
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{file} holds more than weights, or is damaged, and is not loaded: a pickle can run "
            "any program; use a checkpoint with safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(
            f"{file} is cut short or is no PyTorch file ({type(error).__name__}); fetch it again"
        ) from None
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
    ):
        raise InputError(f"{file} does not hold tensors by name")
    return loaded

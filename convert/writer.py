"""The new folder: planned shards, written to a temporary folder and renamed when all is there."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_corematching.errors import InputError
from mlx_corematching.models.shards import INDEX

if TYPE_CHECKING:
    import mlx.core as mx

# Past the weights: tokenizer, index, headers.
_SPARE_BYTES = 1 << 20

# The file system is full, the quota is used up, files may not grow that large.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Shard:
    """One file to write: the canonical names of its tensors, and the bytes of their data."""

    file: str
    names: tuple[str, ...]
    nbytes: int


def plan_shards(sizes: Mapping[str, int], limit: int) -> list[Shard]:
    """Spread tensors over files of at most `limit` bytes, in order.

    Args:
        sizes: bytes that each tensor will take, a quantised one's scales and biases included.
        limit: bytes; a tensor larger than that gets a file of its own.
    """
    groups: list[list[str]] = []
    used = 0
    for name, size in sizes.items():
        if not groups or used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    count = len(groups)
    return [
        Shard(
            "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors",
            tuple(names),
            sum(sizes[name] for name in names),
        )
        for number, names in enumerate(groups, start=1)
    ]


def write_shards(
    folder: Path, shards: list[Shard], make: Callable[[str], dict[str, mx.array]]
) -> dict[str, str]:
    """Write the weights and their index; returns which file each tensor went to.

    Args:
        make: from a canonical name to the tensors to store for it. One shard's are held.
    """
    weight_map: dict[str, str] = {}
    for shard in shards:
        arrays: dict[str, mx.array] = {}
        for name in shard.names:
            arrays |= make(name)
        _write_shard(folder / shard.file, arrays, shard.nbytes)
        weight_map |= dict.fromkeys(arrays, shard.file)
    total = sum(shard.nbytes for shard in shards)
    index = {"metadata": {"format": "mlx", "total_size": total}, "weight_map": weight_map}
    write_json(folder / INDEX, index)
    return weight_map


def write_json(file: Path, value: dict[str, Any]) -> None:
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())


def check_target(target: Path) -> None:
    """InputError unless a new folder can be made there."""
    if os.path.lexists(target):
        raise InputError(f"{target} exists already; remove it, or choose another --mlx-path")


def check_space(target: Path, nbytes: int) -> None:
    """InputError unless the target's file system has room for so many bytes."""
    place = target.absolute().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    needed = nbytes + _SPARE_BYTES
    if free < needed:
        raise InputError(
            f"the disk of {place} has {free / 1e9:.3f} GB free, and the result needs "
            f"{needed / 1e9:.3f} GB; make room, or choose another --mlx-path"
        )


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside the target, which becomes the target at the end.

    Whatever goes wrong inside, Ctrl-C included, the temporary folder and any parents made
    for it are removed again.
    """
    target = target.absolute()
    made = [parent for parent in target.parents if not parent.exists()]
    temporary = target.parent / f".{target.name}-{secrets.token_hex(4)}.incomplete"
    try:
        # Not tempfile.mkdtemp: the result is to have the usual permissions, not 0700.
        temporary.mkdir(parents=True)
        yield temporary
        check_target(target)
        temporary.rename(target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise InputError(_reason(target, error)) from error
        raise


def _write_shard(file: Path, arrays: dict[str, mx.array], nbytes: int) -> None:
    import mlx.core as mx

    try:
        mx.save_safetensors(str(file), arrays, metadata={"format": "mlx"})
    except RuntimeError as error:
        # MLX has no errno to offer: "[write] Unable to write N bytes to file."
        if "write" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error
    # What the disk refuses later than at the write itself, the kernel tells here.
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
    if file.stat().st_size < nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))


def _reason(target: Path, error: OSError) -> str:
    if error.errno in _FULL:
        return (
            f"disk full: {target} could not be written whole, and nothing is left of it; make "
            "room (or lift the limit on file sizes) and run again"
        )
    return f"{target} could not be made: {error}"

"""`convert`: from a checkpoint in Hugging Face format to a folder that the runtime loads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_corematching.convert.card import check_upload, model_card, upload
from mlx_corematching.convert.progress import bar
from mlx_corematching.convert.recipe import (
    BITS,
    GROUP_SIZES,
    SIZES,
    Quantization,
    Recipe,
    check_groups,
)
from mlx_corematching.convert.source import (
    COPIED,
    DTYPES,
    Source,
    find_source,
    open_source,
    source_shape,
)
from mlx_corematching.convert.verification import Verification
from mlx_corematching.convert.verification import verify as verify_folder
from mlx_corematching.convert.writer import (
    check_space,
    check_target,
    new_folder,
    plan_shards,
    write_json,
    write_shards,
    write_text,
)
from mlx_corematching.errors import InputError
from mlx_corematching.models.hub import commit_of

if TYPE_CHECKING:
    import mlx.core as mx

MAX_SHARD_BYTES = 1 << 30


@dataclass(frozen=True)
class Conversion:
    """What was made.

    Attributes:
        folder: the result.
        tensors: tensors of the source that were converted.
        nbytes: bytes of their data in the result.
        shards: weight files of the result.
        left_out: keys of the source that no forward pass reads.
        verification: what `verify` found, if it was asked for.
        uploaded_to: the hub id, if it was uploaded.
    """

    folder: Path
    tensors: int
    nbytes: int
    shards: int
    left_out: tuple[str, ...]
    verification: Verification | None = None
    uploaded_to: str | None = None


def convert(
    hf_path: str | Path,
    mlx_path: str | Path = "mlx_model",
    *,
    dtype: str | None = None,
    quantize: bool = False,
    q_bits: int = 4,
    q_group_size: int = 64,
    revision: str | None = None,
    upload_repo: str | None = None,
    verify: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Conversion:
    """Convert a LLaVA checkpoint; nothing is left at `mlx_path` unless all of it succeeds.

    Tensors are read, converted and written one by one: memory peaks below the largest shard
    of the result plus twice the largest tensor.

    Args:
        hf_path: a folder or a hub id.
        mlx_path: the folder to make; it may not exist yet.
        dtype: float32, float16 or bfloat16, of the unquantised weights and of the quantised
            ones' scales; None leaves each tensor's own.
        quantize: the decoder's matrices, by mx.quantize's affine mode; vision tower,
            projector, norms and biases stay as they are.
        q_bits: 4 or 8.
        q_group_size: 32, 64 or 128 weights, along the hidden size, share a scale.
        revision: a hub branch, tag or commit of the source.
        upload_repo: the hub id to upload the result to.
        verify: compare every tensor with the source before the result gets its name.
        max_shard_bytes: the largest file of weights to write.

    Raises:
        InputError: something given cannot be used; the message says what and why.
    """
    recipe = _recipe(dtype, Quantization(q_bits, q_group_size) if quantize else None)
    target = Path(mlx_path).expanduser()
    check_target(target)
    if upload_repo is not None:
        check_upload(upload_repo)
    source = open_source(find_source(hf_path, revision))
    shapes = {name: source_shape(name, source.header(name).shape) for name in source.keys}
    if recipe.quantization is not None:
        check_groups(shapes, recipe.quantization)
    sizes = {
        name: recipe.nbytes(name, shape, DTYPES[source.header(name).dtype])
        for name, shape in shapes.items()
    }
    copied = [source.folder / name for name in COPIED if (source.folder / name).is_file()]
    check_space(target, sum(sizes.values()) + sum(file.stat().st_size for file in copied))
    shards = plan_shards(sizes, max_shard_bytes)
    verification = None
    with _no_buffer_cache(), new_folder(target) as folder:
        progress = iter(bar(source.keys, "Converting", len(source.keys)))

        def make(name: str) -> dict[str, mx.array]:
            next(progress)
            return recipe.apply(name, source.read(name))

        write_shards(folder, shards, make)
        for file in copied:
            shutil.copyfile(file, folder / file.name)
        write_text(
            folder / "README.md", _card(source, recipe, hf_path, revision, upload_repo, target)
        )
        write_json(folder / "config.json", _config(source.config.raw, recipe))
        if verify:
            verification = verify_folder(source, folder)
    if upload_repo is not None:
        upload(target, upload_repo)
    return Conversion(
        folder=target,
        tensors=len(sizes),
        nbytes=sum(sizes.values()),
        shards=len(shards),
        left_out=source.left_out,
        verification=verification,
        uploaded_to=upload_repo,
    )


def _recipe(dtype: str | None, quantization: Quantization | None) -> Recipe:
    if dtype is not None and dtype not in SIZES:
        raise InputError(f"dtype is {dtype!r}, and only {', '.join(SIZES)} are known")
    if quantization is not None:
        if quantization.bits not in BITS:
            raise InputError(f"q_bits is {quantization.bits!r}, and has to be one of {BITS}")
        if quantization.group_size not in GROUP_SIZES:
            raise InputError(
                f"q_group_size is {quantization.group_size!r}, and has to be one of {GROUP_SIZES}"
            )
    return Recipe(dtype, quantization)


def _config(raw: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The source's config.json, and what the loader has to know besides."""
    config = dict(raw)
    if recipe.dtype is not None:
        for part in (config, *_sections(config)):
            part.update(dict.fromkeys(part.keys() & {"dtype", "torch_dtype"}, recipe.dtype))
    if recipe.quantization is not None:
        made = recipe.quantization
        config["quantization"] = {"group_size": made.group_size, "bits": made.bits}
    config["corematching"] = {"format": 1, "down_proj": "neuron_major"}
    return config


def _sections(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Fresh copies of the nested settings, put in the place of the source's own."""
    for key in ("text_config", "vision_config"):
        if isinstance(config.get(key), dict):
            config[key] = dict(config[key])
            yield config[key]


def _card(
    source: Source,
    recipe: Recipe,
    hf_path: str | Path,
    revision: str | None,
    upload_repo: str | None,
    target: Path,
) -> str:
    from_hub = not Path(hf_path).expanduser().is_dir()
    return model_card(
        source.folder,
        recipe,
        hub_id=str(hf_path) if from_hub else None,
        revision=commit_of(source.folder) or revision,
        name=upload_repo or target.absolute().name,
    )


@contextmanager
def _no_buffer_cache() -> Iterator[None]:
    """MLX keeps freed buffers for reuse; tensors of all sizes would pile up there."""
    import mlx.core as mx

    limit = mx.set_cache_limit(0)
    try:
        yield
    finally:
        mx.set_cache_limit(limit)

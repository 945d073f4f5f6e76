"""How large a model's weights are, part by part, and how they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from mlx_corematching.errors import InputError
from mlx_corematching.models.tensors import (
    LM_HEAD,
    PROJECTOR,
    TOWER,
    expected_tensors,
    is_ffn,
    optional_tensors,
)

if TYPE_CHECKING:
    from mlx_corematching.models.config import LlavaConfig
    from mlx_corematching.models.shards import TensorHeader

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U32": 4}


@dataclass(frozen=True)
class Storage:
    """How weights lie in memory, and what is computed in.

    Attributes:
        float_bytes: of a weight that is not quantised, and of scales and biases.
        bits, group_size: of a quantised one; None if there are none.
        compute_bytes: of an activation, and of a key's or value's element.
    """

    float_bytes: int = 2
    bits: int | None = None
    group_size: int = 64
    compute_bytes: int = 2

    @classmethod
    def of(
        cls, bits: int | None, group_size: int = 64, float_bytes: int = 2, *, cpu: bool
    ) -> Storage:
        """As a model of such weights is held; quantised ones compute in float32 on the CPU."""
        return cls(float_bytes, bits, group_size, 4 if bits and cpu else float_bytes)

    @classmethod
    def of_checkpoint(
        cls, config: LlavaConfig, headers: Mapping[str, TensorHeader], *, cpu: bool
    ) -> Storage:
        """As a converted checkpoint is held once it is loaded."""
        norm = headers.get("language_model.model.norm.weight")
        if norm is None or norm.dtype not in _ITEM_BYTES:
            raise InputError("the checkpoint has no decoder; convert the original again")
        given = config.quantization or {}
        return cls.of(
            given.get("bits"), given.get("group_size", 64), _ITEM_BYTES[norm.dtype], cpu=cpu
        )

    def on_gpu(self) -> Storage:
        """The same weights where what is stored is what is computed in."""
        return replace(self, compute_bytes=self.float_bytes)

    def matrix_bytes(self, elements: int) -> int:
        """Bytes of so many elements of the decoder's matrices."""
        if self.bits is None:
            return elements * self.float_bytes
        return elements * self.bits // 8 + 2 * self.float_bytes * elements // self.group_size


@dataclass(frozen=True)
class Part:
    """Parameters, and the bytes that they take in memory."""

    parameters: int = 0
    nbytes: int = 0

    def __add__(self, other: Part) -> Part:
        return Part(self.parameters + other.parameters, self.nbytes + other.nbytes)


@dataclass(frozen=True)
class Weights:
    """A model's weights.

    Attributes:
        eyes: vision tower, as far as it is run, and projector.
        embedding: token embeddings.
        attention: all decoder layers' attention and norms.
        ffn: all decoder layers' FFNs.
        head: the output head; where it is tied this is the embedding, held once.
        tied: whether it is.
    """

    eyes: Part
    embedding: Part
    attention: Part
    ffn: Part
    head: Part
    tied: bool

    @classmethod
    def of(cls, config: LlavaConfig, storage: Storage) -> Weights:
        """The weights of a model with that config."""
        unread = optional_tensors(config)
        parts = dict.fromkeys(("eyes", "embedding", "attention", "ffn", "head"), Part())
        for name, shape in expected_tensors(config).items():
            if name in unread:
                continue
            count = prod(shape)
            if name.startswith((TOWER, PROJECTOR)):
                # Eyes are never quantised, and cast to what is computed in.
                group, nbytes = "eyes", count * storage.compute_bytes
            else:
                group = _group(name)
                matrix = len(shape) == 2
                nbytes = storage.matrix_bytes(count) if matrix else count * storage.compute_bytes
            parts[group] += Part(count, nbytes)
        tied = config.text.tie_word_embeddings
        if tied:
            parts["head"] = parts["embedding"]
        return cls(**parts, tied=tied)

    @property
    def total(self) -> Part:
        """Everything, a tied head counted once."""
        once = self.eyes + self.embedding + self.attention + self.ffn
        return once if self.tied else once + self.head


def _group(name: str) -> str:
    if name == LM_HEAD:
        return "head"
    if is_ffn(name):
        return "ffn"
    return "embedding" if "embed_tokens" in name else "attention"

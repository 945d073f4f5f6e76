"""From a Hugging Face LLaVA checkpoint to this runtime's format.

    python -m mlx_corematching.convert --hf-path llava-hf/llava-1.5-7b-hf -q

or `convert("llava-hf/llava-1.5-7b-hf", "llava-4bit", quantize=True)`. Both functions are
imported when they are first used, so that `--help` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_corematching.convert.conversion import Conversion, convert
    from mlx_corematching.convert.verification import Verification, verify

_HOMES = {
    "Conversion": "conversion",
    "Verification": "verification",
    "convert": "conversion",
    "verify": "verification",
}

__all__ = ["Conversion", "Verification", "convert", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value

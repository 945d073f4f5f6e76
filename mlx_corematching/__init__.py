"""LLaVA models in MLX, decoded with core neurons and core tokens alone (CoreMatching).

    from mlx_corematching import CoreMatching, generate, load

    model, processor = load()  # the bundled demo model; or a folder, or a hub id
    print(generate(model, processor, "What is this?", image="cat.jpg"))

Names are imported when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlx_corematching._version import __version__

if TYPE_CHECKING:
    from mlx_corematching.conversation import PromptCache
    from mlx_corematching.core.settings import CoreMatching
    from mlx_corematching.errors import InputError
    from mlx_corematching.generate import Response, generate, stream_generate
    from mlx_corematching.loading import load

_HOMES = {
    "CoreMatching": "core.settings",
    "InputError": "errors",
    "PromptCache": "conversation",
    "Response": "generate",
    "generate": "generate",
    "load": "loading",
    "stream_generate": "generate",
}

__all__ = [
    "CoreMatching",
    "InputError",
    "PromptCache",
    "Response",
    "__version__",
    "generate",
    "load",
    "stream_generate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Importing the submodule `generate` would otherwise hide the function of that name.
        if name == "generate" and isinstance(value, ModuleType):
            value = value.generate
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

"""Reading a checkpoint's small files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_corematching.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file; InputError if it is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}: it is not a model folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return value

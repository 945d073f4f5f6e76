"""The progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterable


def bar(names: Iterable[str], description: str, total: int) -> Iterable[str]:
    """Count names as they are taken, on standard error, if that is a terminal."""
    from tqdm import tqdm

    # disable=None: only where the file is no terminal.
    return tqdm(
        names, description, total, leave=False, file=sys.stderr, unit=" tensors", disable=None
    )

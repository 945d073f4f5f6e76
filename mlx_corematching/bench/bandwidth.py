"""How fast this machine's memory is, as MLX's device sees it."""

from __future__ import annotations

import time
from collections.abc import Callable


def memory_bandwidth(nbytes: int = 1 << 29, repeats: int = 7) -> float:
    """The best rate at which `nbytes` of memory were read or copied, in 10^9 bytes a second.

    MLX adds up an array that no cache holds; on the CPU backend, which does that on one core
    and not at its best, numpy's copy (as many bytes written as read) is tried beside it.
    """
    import mlx.core as mx
    import numpy as np

    from mlx_corematching.core.quantized import on_cpu

    def read(words: mx.array) -> float:
        mx.eval(words)
        return _best(lambda: mx.eval(words.sum()), repeats)

    def copy(source: np.ndarray, target: np.ndarray) -> float:
        return _best(lambda: np.copyto(target, source), repeats)

    seconds = read(mx.ones(nbytes // 4, mx.uint32))
    if on_cpu():
        half = nbytes // 8
        seconds = min(seconds, copy(np.ones(half, np.uint32), np.zeros(half, np.uint32)))
    return nbytes / seconds / 1e9


def _best(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the quickest of several runs, after one that does not count."""
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)

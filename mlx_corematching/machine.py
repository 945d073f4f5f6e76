"""This machine: its chip, its memory, and how much of it MLX is let have."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Lock


@dataclass(frozen=True)
class Machine:
    """What answers run on.

    Attributes:
        chip: "Apple M2 Pro", say, or the processor's name.
        system: operating system, and macOS's version.
        backend: what MLX computes on: metal, cuda or cpu.
        mlx: MLX's version.
        memory_bytes: all memory of the device that MLX computes on.
        usable_bytes: what a process can hold there without slowing down: on Apple GPUs the
            recommended working set, elsewhere the memory that is free now. 0 if unknown.
    """

    chip: str
    system: str
    backend: str
    mlx: str
    memory_bytes: int
    usable_bytes: int

    @classmethod
    def this(cls) -> Machine:
        """The machine that this process runs on."""
        import mlx.core as mx

        gpu = mx.default_device().type == mx.DeviceType.gpu
        backend = "metal" if gpu and mx.metal.is_available() else "cuda" if gpu else "cpu"
        info = mx.device_info() if gpu else {}
        total = int(info.get("memory_size") or info.get("total_memory") or _memory_bytes())
        if gpu:
            usable = info.get("max_recommended_working_set_size") or info.get("free_memory")
        else:
            usable = _free_bytes()
        return cls(
            chip=_chip() or str(info.get("device_name") or "unknown"),
            system=f"macOS {platform.mac_ver()[0]}"
            if sys.platform == "darwin"
            else f"{platform.system()} {platform.machine()}",
            backend=backend,
            mlx=version("mlx"),
            memory_bytes=total,
            usable_bytes=int(usable or total),
        )


@contextmanager
def memory_limits() -> Iterator[None]:
    """Let MLX wire what the device recommends, and limit what it keeps of freed memory.

    Wired weights are not paged out between tokens. Freed buffers may fill half of what the
    model leaves of the recommended working set, so that a small machine's other programs
    need not make room for them. Both limits are put back once the last answer under way has
    ended, in whichever order they end. On devices that recommend nothing (all but Apple's
    GPUs) nothing is changed.
    """
    import mlx.core as mx

    recommended = mx.device_info().get("max_recommended_working_set_size")
    if not recommended:
        yield
        return
    with _limits:
        if not _limits.users:
            room = max(int(recommended) - mx.get_active_memory(), 0)
            _limits.cache = mx.set_cache_limit(room // 2)
            _limits.wired = mx.set_wired_limit(int(recommended))
        _limits.users += 1
    try:
        yield
    finally:
        with _limits:
            _limits.users -= 1
            if not _limits.users:
                # The wired limit must not change under work that is still queued.
                mx.synchronize()
                mx.set_wired_limit(_limits.wired)
                mx.set_cache_limit(_limits.cache)


class _Limits:
    """How many answers are under way, and MLX's limits before the first of them."""

    def __init__(self) -> None:
        self.users = self.cache = self.wired = 0
        self._lock = Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_limits = _Limits()


def _chip() -> str:
    if sys.platform == "darwin":
        with suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(
                ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"],
                capture_output=True,
                text=True,
                timeout=5,
                check=True,
            ).stdout.strip()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _memory_bytes() -> int:
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0


def _free_bytes() -> int:
    """Memory that Linux says can be had without swapping; all of it elsewhere."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return _memory_bytes()

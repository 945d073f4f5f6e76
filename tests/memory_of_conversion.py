"""Peak memory of a conversion: a program, not a test.

    python tests/memory_of_conversion.py [--verify]

Makes a float16 checkpoint of 4 GB in 4 shards, converts it in a child process with and
without quantisation, and prints the child's peak resident memory beside the limit. Needs
12 GB of disk in the temporary folder, which is emptied at the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import CONFIGS, _decoder_shapes, _projector_shapes, _tower_shapes

LIMIT_GB = 2.5
SHARDS = 4


def config() -> dict[str, Any]:
    """2 billion parameters, with the embeddings and FFNs of LLaVA-1.5-7B's width."""
    given = json.loads(json.dumps(CONFIGS["llama"]))
    given["torch_dtype"] = "float16"
    given["text_config"] |= {
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 9,
        "num_attention_heads": 32,
    }
    return given


def write(folder: Path) -> int:
    """One tensor at a time; the same random megabytes over and over. Returns bytes of weights."""
    given = config()
    (folder / "config.json").write_text(json.dumps(given))
    shapes = {**_tower_shapes(given), **_projector_shapes(given), **_decoder_shapes(given)}
    noise = (0.02 * np.random.RandomState(0).standard_normal(1 << 22)).astype(np.float16)
    names = sorted(shapes)
    weight_map, total = {}, 0
    for number in range(SHARDS):
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        header, offset = {}, 0
        part = names[number::SHARDS]
        for name in part:
            size = 2 * int(np.prod(shapes[name]))
            header[name] = {
                "dtype": "F16",
                "shape": list(shapes[name]),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            for name in part:
                for piece in pieces(int(np.prod(shapes[name])), noise):
                    opened.write(piece.data)
        weight_map.update(dict.fromkeys(part, file))
        total += offset
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


def pieces(count: int, noise: np.ndarray) -> Iterator[np.ndarray]:
    while count > 0:
        yield noise[:count]
        count -= noise.size


def convert(arguments: list[str]) -> tuple[float, float]:
    """Peak resident memory in GB and seconds of one conversion in a process of its own."""
    program = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run([sys.executable, '-m', 'mlx_corematching.convert', *sys.argv[1:]])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(done.returncode)\n"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return int(done.stdout) * unit / 1e9, time.perf_counter() - start


def main() -> int:
    verify = ["--verify"] if "--verify" in sys.argv[1:] else []
    worst = 0.0
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source"
        source.mkdir()
        print(f"checkpoint: {write(source) / 1e9:.2f} GB in {SHARDS} shards", flush=True)
        for options in ([], ["-q"]):
            out = str(Path(place) / f"out{len(options)}")
            peak, seconds = convert(
                ["--hf-path", str(source), "--mlx-path", out, *options, *verify]
            )
            worst = max(worst, peak)
            name = " ".join([*options, *verify]) or "plain"
            print(f"{name}: peak {peak:.2f} GB (limit {LIMIT_GB} GB), {seconds:.0f} s", flush=True)
    return int(worst > LIMIT_GB)


if __name__ == "__main__":
    sys.exit(main())

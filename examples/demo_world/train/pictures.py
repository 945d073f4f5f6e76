"""The training pictures: read from disk as needed, normalised, slightly jittered in colour."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..scenes import Scene


class Pictures:
    """A folder that `make` wrote. The last ``held_back`` scenes are kept to measure with."""

    def __init__(self, folder: Path, held_back: int = 500) -> None:
        self.pixels = np.load(folder / "pictures.npy", mmap_mode="r")
        self.owners = np.load(folder / "owners.npy")
        self.scenes = [
            Scene.from_dict(json.loads(line)) for line in (folder / "scenes.jsonl").open()
        ]
        held_back = min(held_back, len(self.scenes) // 10)
        self.trained = len(self.scenes) - held_back
        self.held_back = range(self.trained, len(self.scenes))

    def take(self, indices: np.ndarray) -> tuple[list[Scene], np.ndarray, np.ndarray]:
        """Scenes, pixels uint8 [B, SIZE, SIZE, 3], owners int8 [B, GRID, GRID]."""
        return [self.scenes[index] for index in indices], self.pixels[indices], self.owners[indices]


def jitter(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, colour cast, offset per picture; so small that colours keep their names."""
    batch = len(pixels)
    gain = (
        1
        + 0.08 * rng.standard_normal((batch, 1, 1, 1))
        + 0.04 * rng.standard_normal((batch, 1, 1, 3))
    )
    offset = 4 * rng.standard_normal((batch, 1, 1, 1))
    return pixels.astype(np.float32) * gain.astype(np.float32) + offset.astype(np.float32)


def normalised(pixels: np.ndarray) -> torch.Tensor:
    """[B, H, W, 3] of 0 to 255 to CLIP's [B, 3, H, W] float32."""
    mean, std = (
        np.array(values, np.float32) * 255 for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )
    scaled = (pixels.astype(np.float32) - mean) / std
    return torch.from_numpy(scaled).permute(0, 3, 1, 2).contiguous()

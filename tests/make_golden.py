"""Write tests/golden/: what transformers answers, for the runs that have no torch.

    python tests/make_golden.py

Needs the parity extra. The checkpoints themselves are made anew from a seed by each test.
"""

import tempfile
from pathlib import Path

import numpy as np
from checkpoints import CONFIGS
from dense_cases import GOLDEN, make_case, source, their_logits

from mlx_corematching.models.config import LlavaConfig


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name in CONFIGS:
        case = make_case(LlavaConfig.from_dict(CONFIGS[name]))
        with tempfile.TemporaryDirectory() as folder:
            logits = their_logits(source(name, Path(folder) / "source"), case)
        np.save(GOLDEN / f"{name}.npy", logits.astype(np.float32))
        print(f"{name}: logits {logits.shape}, standard deviation {logits.std():.3f}")


if __name__ == "__main__":
    main()

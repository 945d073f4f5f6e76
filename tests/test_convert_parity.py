"""The small checkpoints are genuine: transformers loads them all, and what it saves converts."""

import importlib.util

import numpy as np
import pytest
from checkpoints import CONFIGS, make_tensors, write_checkpoint

from mlx_corematching.convert import convert

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="needs the parity extra (torch)"
    ),
]


def load(folder):
    import torch
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_loads_every_checkpoint_whole(name, tmp_path):
    model, info = load(write_checkpoint(tmp_path / "source", CONFIGS[name], seed=5))
    assert not any(info.values()), info
    written = make_tensors(CONFIGS[name], 5)
    layer = "layers.0.mlp.down_proj.weight"
    np.testing.assert_array_equal(
        model.state_dict()[f"model.language_model.{layer}"].numpy(),
        written[f"language_model.model.{layer}"],
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_saves_converts(name, tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIGS[name], seed=5)
    load(source)[0].save_pretrained(tmp_path / "saved")
    convert(tmp_path / "saved", tmp_path / "converted", verify=True)
    convert(source, tmp_path / "direct")
    saved, direct = (
        (tmp_path / folder / "model.safetensors").read_bytes() for folder in ("converted", "direct")
    )
    assert saved == direct

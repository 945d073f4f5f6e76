"""The dense model says what transformers says."""

import importlib.util

import numpy as np
import pytest
from checkpoints import CONFIGS
from dense_cases import GOLDEN, converted, make_case, our_logits, source, their_logits

from mlx_corematching.models.config import LlavaConfig

TOLERANCE = 2e-4

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs the parity extra (torch)"
)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_the_golden_ones(name, tmp_path):
    case = make_case(LlavaConfig.from_dict(CONFIGS[name]))
    golden = np.load(GOLDEN / f"{name}.npy")
    assert golden.std() > 0.05  # flat logits would make the comparison an empty one
    np.testing.assert_allclose(our_logits(converted(name, tmp_path), case), golden, atol=TOLERANCE)


def test_there_is_a_golden_file_for_every_configuration_and_no_other():
    assert {path.stem for path in GOLDEN.glob("*.npy")} == set(CONFIGS)


@needs_torch
@pytest.mark.parity
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("pictures", [0, 1, 3])
def test_logits_equal_transformers(name, pictures, tmp_path):
    case = make_case(LlavaConfig.from_dict(CONFIGS[name]), pictures)
    if not pictures:
        case.pixels = case.pixels[:0]
    ours = our_logits(converted(name, tmp_path), case)
    theirs = their_logits(source(name, tmp_path / "theirs"), case)
    assert np.abs(ours - theirs).max() <= TOLERANCE

"""`verify` catches what it should, and its bound holds."""

import json

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import CONFIGS, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from mlx_corematching.convert import convert, verify
from mlx_corematching.convert.command import main
from mlx_corematching.convert.verification import _group_errors, _unpack
from mlx_corematching.errors import InputError

UP = "language_model.model.layers.2.mlp.up_proj.weight"
DOWN = "language_model.model.layers.2.mlp.down_proj.weight"
FILE = "model.safetensors"


def change(folder, name, alter):
    """Rewrite one stored tensor."""
    arrays = dict(mx.load(str(folder / FILE)))
    mx.eval(arrays)
    value = np.array(arrays[name].view(mx.uint16) if arrays[name].itemsize == 2 else arrays[name])
    dtype = arrays[name].dtype
    value = alter(value)
    arrays[name] = mx.array(value).view(dtype) if dtype.size == 2 else mx.array(value)
    mx.save_safetensors(str(folder / FILE), arrays, {"format": "mlx"})


def flip(place, bit):
    def alter(value):
        flat = value.reshape(-1).view({2: np.uint16, 4: np.uint32}[value.itemsize]).copy()
        flat[place] ^= flat.dtype.type(1 << bit)
        return flat.view(value.dtype).reshape(value.shape)

    return alter


@pytest.fixture
def pair(tmp_path, request):
    bits, dtype = request.param
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"], dtype=dtype)
    convert(source, tmp_path / "out", quantize=bits is not None, q_bits=bits or 4)
    return source, tmp_path / "out"


DTYPES = ["float32", "float16", "bfloat16"]
EVERY = [(bits, dtype) for bits in (None, 4, 8) for dtype in DTYPES]


@pytest.mark.parametrize("pair", EVERY, indirect=True)
def test_an_honest_conversion_passes(pair):
    found = verify(*pair)
    assert found.tensors == len(make_index(pair[0]))
    assert 0 <= found.worst <= 1


def make_index(source):
    return list(mx.load(str(source / FILE)))


@pytest.mark.parametrize("pair", [(None, dtype) for dtype in DTYPES], indirect=True)
@pytest.mark.parametrize("name", [UP, DOWN, "multi_modal_projector.linear_1.bias"])
def test_one_flipped_bit_is_caught_and_named(pair, name):
    change(pair[1], name, flip(17, 0))
    with pytest.raises(InputError, match=name):
        verify(*pair)


@pytest.mark.parametrize(
    "pair", [(bits, dtype) for bits in (4, 8) for dtype in DTYPES], indirect=True
)
@pytest.mark.parametrize("part", ["weight", "scales", "biases"])
def test_a_flipped_quantised_value_is_caught_and_named(pair, part):
    name = UP.replace("weight", part)
    change(pair[1], name, flip(33, 4 if part != "weight" else 9))
    with pytest.raises(InputError, match=rf"{UP} differs .* row {33 if part != 'weight' else ''}"):
        verify(*pair)


@pytest.mark.parametrize("pair", [(4, "float16")], indirect=True)
def test_every_code_that_is_one_off_is_caught(pair):
    rng = np.random.RandomState(0)
    original = (pair[1] / FILE).read_bytes()
    for place in rng.randint(0, 96 * 8, 30):
        nibble = rng.randint(8)

        def alter(value, place=place, nibble=nibble):
            flat = value.reshape(-1).copy()
            code = int(flat[place] >> (4 * nibble)) & 15
            moved = code - 1 if code == 15 else code + 1
            word = int(flat[place]) & ~(15 << (4 * nibble)) | moved << (4 * nibble)
            flat[place] = word
            return flat.reshape(value.shape)

        change(pair[1], UP, alter)
        with pytest.raises(InputError, match=UP):
            verify(*pair)
        (pair[1] / FILE).write_bytes(original)


def test_two_rows_swapped(tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])
    convert(source, tmp_path / "out")
    change(tmp_path / "out", DOWN, lambda value: value[::-1].copy())
    with pytest.raises(InputError, match=DOWN):
        verify(source, tmp_path / "out")


def test_a_lost_and_a_surplus_tensor(tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])
    convert(source, tmp_path / "out")
    (tmp_path / "out/model.safetensors.index.json").unlink()
    arrays = dict(mx.load(str(tmp_path / "out" / FILE)))
    mx.eval(arrays)
    for changed, words in (
        ({n: a for n, a in arrays.items() if n != UP}, f"lacks {UP}"),
        ({**arrays, "more": arrays[UP]}, "has not: more"),
    ):
        mx.save_safetensors(str(tmp_path / "out" / FILE), changed)
        with pytest.raises(InputError, match=words):
            verify(source, tmp_path / "out")


def test_another_checkpoint(tmp_path):
    for seed in (0, 1):
        write_checkpoint(tmp_path / f"{seed}", CONFIGS["llama"], seed=seed)
    convert(tmp_path / "0", tmp_path / "out", quantize=True)
    with pytest.raises(InputError, match="verification failed"):
        verify(tmp_path / "1", tmp_path / "out")


def test_a_source_is_not_a_conversion(tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])
    with pytest.raises(InputError, match="not converted"):
        verify(source, source)


def test_a_conversion_that_fails_its_verification_is_not_published(tmp_path, monkeypatch, capsys):
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])
    quantize = mx.quantize

    def faulty(*arguments, **options):
        packed, scales, biases = quantize(*arguments, **options)
        return packed, scales * 1.01, biases

    monkeypatch.setattr(mx, "quantize", faulty)
    out = tmp_path / "out"
    assert main(["--hf-path", str(source), "--mlx-path", str(out), "-q", "--verify"]) == 2
    assert "verification failed: language_model." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def shares(weights, bits, group, dtype):
    w = mx.array(weights, mx.float32).astype(getattr(mx, dtype)).reshape(-1, group)
    packed, scales, biases = mx.quantize(w, group, bits)

    def plain(array):
        return np.array(array.astype(mx.float32))

    codes = _unpack(np.array(packed), bits)
    np.testing.assert_allclose(
        plain(
            mx.dequantize(packed, scales.astype(mx.float32), biases.astype(mx.float32), group, bits)
        ),
        plain(biases) + codes * plain(scales),
        rtol=1e-5,
        atol=1e-30,
    )
    return _group_errors(plain(w), codes, plain(scales), plain(biases), 2**bits - 1, dtype)


@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([32, 64, 128]),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from([1e-9, 1e-7, 1e-5, 1e-2, 1.0, 1e3]),
    shift=st.sampled_from([0.0, 0.3, -1.0, 1.0, 5.0, -40.0]),
)
def test_the_bound_holds(seed, bits, group, dtype, size, shift):
    random = np.random.RandomState(seed)
    weights = size * (random.standard_normal((16, group)) + shift)
    weights[0] = 0
    weights[1] = size
    weights[2, 1:] = 0
    weights[3] = np.abs(weights[3])
    weights[4] = -np.abs(weights[4])
    assert shares(weights, bits, group, dtype).max() <= 1


def test_the_bound_is_tight():
    random = np.random.RandomState(0)
    for dtype in DTYPES:
        assert shares(random.standard_normal((4096, 64)), 4, 64, dtype).max() > 0.95


@pytest.mark.parametrize("sign", [1, -1])
def test_a_backend_that_counts_zero_among_the_weights_passes_too(sign):
    """As the Metal kernel does, for groups that are all negative."""
    top, group = 15, 32
    weights = sign * (3 + np.random.RandomState(0).rand(1, group)).astype(np.float32)
    low, high = min(weights.min(), 0 if sign > 0 else weights.min()), max(weights.max(), 0)
    if sign > 0:
        low = weights.min()
    edge = low if abs(low) > abs(high) else high
    scale = (high - low) / top * (1 if abs(low) > abs(high) else -1)
    scale = np.float32(edge / np.rint(edge / scale))
    codes = np.clip(np.rint((weights - edge) / scale), 0, top)
    share = _group_errors(
        weights,
        codes,
        np.array([[scale]], np.float32),
        np.array([[edge]], np.float32),
        top,
        "float32",
    )
    assert share.max() <= 1


def test_the_config_of_the_result_says_how_it_is_quantised(tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])
    convert(source, tmp_path / "out", quantize=True)
    config = json.loads((tmp_path / "out/config.json").read_text())
    del config["quantization"]
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="verification failed"):
        verify(source, tmp_path / "out")

"""What conversion makes: the same weights, under the runtime's names, neuron-major."""

import copy
import importlib.util
import json
import os
import stat
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import CONFIGS, LAYOUTS, bfloat16_bits, make_tensors, write_checkpoint

from mlx_corematching.convert import convert
from mlx_corematching.convert.command import main
from mlx_corematching.loading import load_model
from mlx_corematching.models.config import LlavaConfig
from mlx_corematching.models.tensors import expected_tensors

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="reading pickles needs torch"
)


def read(folder):
    """All stored tensors, by name, through the index."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    arrays = {}
    for file in sorted(set(index.values())):
        loaded, metadata = mx.load(str(folder / file), return_metadata=True)
        assert metadata["format"] == "mlx"
        assert set(loaded) == {name for name, place in index.items() if place == file}
        arrays |= loaded
    assert set(arrays) == set(index)
    return arrays


def neuron_major(name, value):
    return value.T if name.endswith("down_proj.weight") else value


def assert_same(folder, tensors, dtype="float32"):
    stored = read(folder)
    assert set(stored) == set(tensors)
    for name, value in tensors.items():
        assert stored[name].dtype == getattr(mx, dtype)
        wanted = neuron_major(name, value)
        if dtype == "bfloat16":
            np.testing.assert_array_equal(
                np.array(stored[name].view(mx.uint16)), bfloat16_bits(wanted)
            )
        else:
            np.testing.assert_array_equal(np.array(stored[name]), wanted.astype(dtype))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_converts_and_loads(name, tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIGS[name], seed=1)
    done = convert(source, tmp_path / "out", verify=True)
    tensors = make_tensors(CONFIGS[name], 1)
    assert_same(tmp_path / "out", tensors)
    assert done.tensors == done.verification.tensors == len(tensors)
    assert done.nbytes == sum(value.nbytes for value in tensors.values())
    config = LlavaConfig.from_folder(tmp_path / "out")
    assert {n: a.shape for n, a in read(tmp_path / "out").items()} == expected_tensors(config)
    load_model(tmp_path / "out")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    "pickle", [False, pytest.param(True, marks=needs_torch)], ids=["safetensors", "pickle"]
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_layout_and_file_format_gives_the_same_bytes(layout, shards, pickle, dtype, tmp_path):
    source = write_checkpoint(
        tmp_path / "source",
        CONFIGS["llama"],
        layout=layout,
        shards=shards,
        pickle=pickle,
        dtype=dtype,
    )
    convert(source, tmp_path / "out")
    assert_same(tmp_path / "out", make_tensors(CONFIGS["llama"]), dtype)


@pytest.mark.parametrize("given", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "float16", "bfloat16"])
def test_cast(given, wanted, tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIGS["mistral"], dtype=given)
    convert(source, tmp_path / "out", dtype=wanted, verify=True)
    stored = read(tmp_path / "out")
    for name, value in make_tensors(CONFIGS["mistral"]).items():
        cast = mx.array(neuron_major(name, value)).astype(getattr(mx, given))
        assert stored[name].dtype == getattr(mx, wanted)
        assert mx.array_equal(stored[name], cast.astype(getattr(mx, wanted)))
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == wanted


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_quantised(bits, group, dtype, tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama-gqa-llama3"], dtype=dtype)
    done = convert(
        source, tmp_path / "out", quantize=True, q_bits=bits, q_group_size=group, verify=True
    )
    assert 0 < done.verification.worst <= 1
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["quantization"] == {"group_size": group, "bits": bits}
    stored = read(tmp_path / "out")
    quantised = 0
    for name, value in make_tensors(CONFIGS["llama-gqa-llama3"]).items():
        value = mx.array(neuron_major(name, value)).astype(getattr(mx, dtype))
        if name.startswith("language_model.") and value.ndim == 2:
            quantised += 1
            parts = mx.quantize(value, group, bits)
            names = [name, *(name.replace("weight", part) for part in ("scales", "biases"))]
            for part, wanted in zip(names, parts, strict=True):
                assert mx.array_equal(stored.pop(part), wanted), part
        else:
            assert mx.array_equal(stored.pop(name), value), name
    assert not stored
    assert quantised == done.verification.quantized == 2 + 4 * 7
    load_model(tmp_path / "out")


def test_shards_stay_below_the_limit(tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])
    done = convert(source, tmp_path / "out", max_shard_bytes=200_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert done.shards == len(files) > 3
    assert files == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    for file in files:
        arrays = mx.load(str(tmp_path / "out" / file))
        assert sum(array.nbytes for array in arrays.values()) <= 200_000
    assert_same(tmp_path / "out", make_tensors(CONFIGS["llama"]))


def test_config_keeps_the_sources_fields(tmp_path):
    config = {**CONFIGS["llama"], "something_of_its_own": [1, "ü"]}
    convert(write_checkpoint(tmp_path / "source", config), tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert written.pop("corematching") == {"format": 1, "down_proj": "neuron_major"}
    assert written == config


def test_other_files_come_along_but_no_code(tmp_path):
    source = write_checkpoint(
        tmp_path / "source", CONFIGS["llama"], tokenizer=True, preprocessor=True
    )
    for name in ("modeling.py", "pytorch_model.bin", "notes.txt"):
        (source / name).write_text("no")
    (source / "generation_config.json").write_text("{}")
    convert(source, tmp_path / "out")
    copied = {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "preprocessor_config.json", "generation_config.json",
    }  # fmt: skip
    made = {"config.json", "README.md", "model.safetensors", "model.safetensors.index.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == copied | made
    for name in copied:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_the_result_has_usual_permissions(tmp_path):
    convert(write_checkpoint(tmp_path / "source", CONFIGS["llama"]), tmp_path / "out")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask
    assert (tmp_path / "out/model.safetensors").stat().st_mode & stat.S_IRUSR


def test_known_buffers_are_left_out_and_listed(tmp_path, capsys):
    config = CONFIGS["siglip-qwen2"]
    extra = {
        "vision_tower.vision_model.embeddings.position_ids": np.arange(16)[None],
        "vision_tower.vision_model.head.probe": np.ones((1, 1, 32), np.float32),
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
        "language_model.model.rotary_emb.inv_freq": np.ones(8, np.float32),
    }
    source = write_checkpoint(
        tmp_path / "source", config, tensors={**make_tensors(config), **extra}
    )
    assert main(["--hf-path", str(source), "--mlx-path", str(tmp_path / "out"), "--verify"]) == 0
    said = capsys.readouterr().err
    assert all(name in said for name in extra)
    assert_same(tmp_path / "out", make_tensors(config))


def test_a_stored_output_head_of_tied_embeddings_is_left_out(tmp_path):
    config = CONFIGS["qwen2-tied"]
    tensors = make_tensors(config)
    head = {"language_model.lm_head.weight": tensors["language_model.model.embed_tokens.weight"]}
    source = write_checkpoint(tmp_path / "source", config, tensors={**tensors, **head})
    assert convert(source, tmp_path / "out").left_out == tuple(head)
    assert_same(tmp_path / "out", tensors)


def test_what_no_forward_pass_reads_may_be_absent(tmp_path):
    config = CONFIGS["llama"]
    tensors = {
        name: value
        for name, value in make_tensors(config).items()
        if "encoder.layers.2." not in name and "post_layernorm" not in name
    }
    source = write_checkpoint(tmp_path / "source", config, tensors=tensors)
    convert(source, tmp_path / "out", verify=True)
    assert_same(tmp_path / "out", tensors)


def test_shards_without_an_index_are_all_read(tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"], shards=3)
    (source / "model.safetensors.index.json").unlink()
    convert(source, tmp_path / "out")
    assert_same(tmp_path / "out", make_tensors(CONFIGS["llama"]))


def test_mixed_types_are_kept(tmp_path):
    config = CONFIGS["llama"]
    source = write_checkpoint(tmp_path / "source", config, shards=2)
    halves = write_checkpoint(tmp_path / "halves", config, shards=2, dtype="float16")
    first = "model-00001-of-00002.safetensors"
    (source / first).write_bytes((halves / first).read_bytes())
    convert(source, tmp_path / "out", verify=True)
    assert {array.dtype for array in read(tmp_path / "out").values()} == {mx.float16, mx.float32}


def test_card(tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])
    (source / "README.md").write_text(
        "---\nlicense: llama2\nlanguage: [en]\nbase_model: someone/base\n"
        "tags: [pytorch]\n---\n# Of the source\n"
    )
    convert(source, tmp_path / "out", quantize=True, q_bits=8, q_group_size=32, dtype="float16")
    from huggingface_hub import ModelCard

    card = ModelCard.load(tmp_path / "out/README.md")
    data = card.data.to_dict()
    assert data["license"] == "llama2"
    assert data["library_name"] == "mlx"
    assert data["pipeline_tag"] == "image-text-to-text"
    assert data["base_model"] == "someone/base"
    assert "mlx" in data["tags"]
    assert "pytorch" not in data["tags"]
    assert "8 bits in groups of 32" in card.text
    assert "float16" in card.text
    assert str(tmp_path) not in card.content  # a public text names no place on this machine


def test_a_damaged_card_of_the_source_costs_nothing(tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])
    (source / "README.md").write_bytes(b"---\nlicense: [\n\xff\n---\n")
    convert(source, tmp_path / "out")
    assert "library_name: mlx" in (tmp_path / "out/README.md").read_text()


def test_parents_are_made_and_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_checkpoint(tmp_path / "source", CONFIGS["llama"])
    convert("~/source", "~/a/b/out")
    assert (tmp_path / "a/b/out/config.json").exists()


def test_the_config_given_is_not_changed(tmp_path):
    from mlx_corematching.convert.conversion import _config
    from mlx_corematching.convert.recipe import Recipe

    raw = copy.deepcopy({**CONFIGS["llama"], "text_config": {"torch_dtype": "float32"}})
    written = _config(raw, Recipe("float16"))
    assert raw["text_config"] == {"torch_dtype": "float32"}
    assert written["text_config"] == {"torch_dtype": "float16"}


def test_the_command_line_in_a_process_of_its_own(tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])
    command = [sys.executable, "-m", "mlx_corematching.convert"]
    arguments = ["--hf-path", source, "--mlx-path", tmp_path / "out", "-q", "--verify"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "30 quantised ones are within the bound" in done.stderr
    assert "\r" not in done.stderr  # no progress bar where nobody watches
    again = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1


def test_help_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from mlx_corematching.convert.command import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'mlx', 'numpy', 'torch', 'transformers', 'huggingface_hub', 'safetensors'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"--q-group-size" in done.stdout

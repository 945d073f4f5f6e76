"""Conversions that cannot be: one line that names the culprit, status 2, and nothing left."""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import CONFIGS, make_tensors, rename, write_checkpoint, write_safetensors

from mlx_corematching.convert import convert, writer
from mlx_corematching.convert.command import main
from mlx_corematching.errors import InputError

LLAMA = CONFIGS["llama"]
UP = "language_model.model.layers.1.mlp.up_proj.weight"
DOWN = "language_model.model.layers.1.mlp.down_proj.weight"
SHARD = "model-00002-of-00003.safetensors"

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="reading pickles needs torch"
)


@pytest.fixture
def out(tmp_path):
    """Where results would go; afterwards nothing may be there."""
    folder = tmp_path / "results"
    folder.mkdir()
    yield folder / "out"
    assert list(folder.iterdir()) == []


def refuse(capsys, source, out, *arguments):
    """The one line that the command prints."""
    assert main(["--hf-path", str(source), "--mlx-path", str(out), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def with_tensor(tmp_path, change, **options):
    """A checkpoint whose tensors `change` has altered in place."""
    tensors = make_tensors(LLAMA)
    change(tensors)
    return write_checkpoint(tmp_path / "source", LLAMA, tensors=tensors, **options)


# Tensors


def _wrong_shape(tensors):
    tensors[UP] = tensors[UP][:-1]


def _not_turned(tensors):
    tensors[DOWN] = np.ascontiguousarray(tensors[DOWN].T)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(UP), ["lacks 1 tensor", UP]),
        (lambda t: [t.pop(n) for n in list(t) if ".mlp.up" in n], ["lacks 4 tensors", UP]),
        (lambda t: t.update(surplus=t[UP]), ["1 tensor", "does not account", "surplus"]),
        (
            lambda t: t.update({f"image_newline.{i}": t[UP] for i in range(9)}),
            ["9 tensors", "image_newline.0", "..."],
        ),
        (_wrong_shape, [UP, "[95, 64]", "[96, 64]"]),
        (_not_turned, [DOWN, "[96, 64]", "[64, 96]"]),
        (lambda t: t.update({UP: t[UP].astype(np.int8)}), [UP, "I8", "BF16"]),
        (lambda t: t.update({UP: t[UP].astype(np.int64)}), [UP, "I64"]),
        (
            lambda t: t.update({"lm_head.weight": t["language_model.lm_head.weight"]}),
            ["twice", "language_model.lm_head.weight"],
        ),
        (lambda t: np.put(t[UP], 5000, np.nan), [UP, "not a number"]),
        (lambda t: np.put(t[UP], 5000, -np.inf), [UP, "infinite"]),
    ],
)
def test_tensors(change, words, tmp_path, out, capsys):
    line = refuse(capsys, with_tensor(tmp_path, change), out, "--verify")
    assert all(word in line for word in words), line


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_damaged_values_are_found_in_every_type(bad, dtype, tmp_path, out, capsys):
    name = "vision_tower.vision_model.encoder.layers.2.mlp.fc2.bias"
    source = with_tensor(tmp_path, lambda t: np.put(t[name], 31, bad), dtype=dtype)
    assert name in refuse(capsys, source, out, "-q", "--q-group-size", "32")


def test_a_value_too_large_for_float16(tmp_path, out, capsys):
    source = with_tensor(tmp_path, lambda t: np.put(t[UP], 7, 7e4))
    line = refuse(capsys, source, out, "--dtype", "float16")
    assert UP in line
    assert "bfloat16" in line
    convert(source, tmp_path / "fits", dtype="bfloat16")


def test_two_layouts_at_once(tmp_path, out, capsys):
    def change(tensors):
        tensors[rename(UP, "transformers5")] = tensors[UP]

    line = refuse(capsys, with_tensor(tmp_path, change), out)
    assert UP in line
    assert rename(UP, "transformers5") in line


# Files


def _cut(source):
    data = (source / SHARD).read_bytes()
    (source / SHARD).write_bytes(data[:-100])


def _index_names_no_tensors(source):
    (source / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def _index_points_outside(source):
    (source / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {UP: "../elsewhere.safetensors"}})
    )


def _same_tensor_twice(source):
    (source / "model.safetensors.index.json").unlink()
    shutil.copy(source / SHARD, source / "model-again.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, [SHARD, "cut short"]),
        (lambda s: (s / SHARD).unlink(), [SHARD, "lacks"]),
        (lambda s: (s / SHARD).write_text("a web page that says 404"), [SHARD]),
        (lambda s: (s / SHARD).write_bytes(b""), [SHARD]),
        (lambda s: (s / "config.json").unlink(), ["config.json"]),
        (lambda s: (s / "config.json").write_text("{"), ["config.json", "JSON"]),
        (lambda s: (s / "config.json").write_text("[]"), ["config.json"]),
        (lambda s: [f.unlink() for f in s.iterdir()], ["empty"]),
        (lambda s: [f.unlink() for f in s.glob("model*")], ["no weights"]),
        (_index_names_no_tensors, ["index"]),
        (_index_points_outside, ["outside", "elsewhere"]),
        (_same_tensor_twice, ["both hold", "model-again"]),
    ],
)
def test_files(damage, words, tmp_path, out, capsys):
    source = write_checkpoint(tmp_path / "source", LLAMA, shards=3)
    damage(source)
    line = refuse(capsys, source, out)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "mllama"}, ["cross-attention"]),
        ({"text_config": {**LLAMA["text_config"], "model_type": "mllama_text_model"}}, ["cross"]),
        ({"model_type": "llava_next"}, ["llava_next"]),
        ({"corematching": {"format": 1}}, ["converted already"]),
        ({"quantization": {"bits": 4, "group_size": 64}}, ["quantised already"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["quantised already"]),
    ],
)
def test_configs(fields, words, tmp_path, out, capsys):
    source = write_checkpoint(tmp_path / "source", {**LLAMA, **fields}, tensors=make_tensors(LLAMA))
    line = refuse(capsys, source, out)
    assert all(word in line for word in words), line


def test_a_converted_folder_is_no_source(tmp_path, out, capsys):
    source = write_checkpoint(tmp_path / "source", LLAMA)
    convert(source, tmp_path / "once")
    assert "converted already" in refuse(capsys, tmp_path / "once", out)


# Pickles


@needs_torch
def test_a_pickle_that_runs_a_program_is_not_run(tmp_path, out, capsys):
    import torch

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-run"),)

    source = write_checkpoint(tmp_path / "source", LLAMA, pickle=True)
    torch.save({"weight": Evil()}, source / "pytorch_model.bin")
    line = refuse(capsys, source, out)
    assert "pytorch_model.bin" in line
    assert "can run any program" in line
    assert not (tmp_path / "was-run").exists()


@needs_torch
@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 cut short"])
def test_a_damaged_pickle(content, tmp_path, out, capsys):
    source = write_checkpoint(tmp_path / "source", LLAMA, pickle=True)
    (source / "pytorch_model.bin").write_bytes(content)
    assert "pytorch_model.bin" in refuse(capsys, source, out)


@needs_torch
def test_a_missing_pickle_shard(tmp_path, out, capsys):
    source = write_checkpoint(tmp_path / "source", LLAMA, pickle=True, shards=2)
    (source / "pytorch_model-00002-of-00002.bin").unlink()
    assert "pytorch_model-00002-of-00002.bin" in refuse(capsys, source, out)


@needs_torch
def test_an_old_pickle_is_read(tmp_path):
    import torch

    source = write_checkpoint(tmp_path / "source", LLAMA, pickle=True)
    loaded = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save(loaded, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert(source, tmp_path / "result", verify=True)


def test_pickles_without_torch(tmp_path, out, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    source = write_checkpoint(tmp_path / "source", LLAMA)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    assert "pip install torch" in refuse(capsys, source, out)


# Sources


@pytest.mark.parametrize("source", ["./none", "none", "~/none", "/none/at/all", "a/b/c", ""])
def test_no_such_folder(source, out, capsys):
    assert "no folder" in refuse(capsys, source, out)


def test_a_hub_id_without_a_network(out, capsys):
    assert "cannot be reached" in refuse(capsys, "nobody/no-such-llava", out)


def test_a_file_as_source(tmp_path, out, capsys):
    source = write_checkpoint(tmp_path / "source", LLAMA)
    assert "is a file" in refuse(capsys, source / "model.safetensors", out)


def test_a_revision_of_a_folder(tmp_path, out, capsys):
    source = write_checkpoint(tmp_path / "source", LLAMA)
    assert "main" in refuse(capsys, source, out, "--revision", "main")


# Options


@pytest.mark.parametrize("option", [("--q-bits", "8"), ("--q-group-size", "32")])
def test_an_option_without_effect(option, tmp_path, out, capsys):
    source = write_checkpoint(tmp_path / "source", LLAMA)
    assert option[0] in refuse(capsys, source, out, *option)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--hf-path", "x", "--q-bits", "5"], ["--hf-path", "x", "--dtype", "int8"]],
)
def test_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int8"},
        {"quantize": True, "q_bits": 3},
        {"quantize": True, "q_group_size": 48},
    ],
)
def test_bad_arguments_of_the_function(options, tmp_path, out):
    with pytest.raises(InputError, match=str(next(reversed(options.values())))):
        convert(write_checkpoint(tmp_path / "source", LLAMA), out, **options)


def test_a_group_size_that_does_not_divide(tmp_path, out, capsys):
    source = write_checkpoint(tmp_path / "source", LLAMA)
    line = refuse(capsys, source, out, "-q", "--q-group-size", "128")
    assert "64 columns" in line
    assert "--q-group-size 32 or 64" in line


def test_no_group_size_divides(tmp_path, out, capsys):
    text = {**LLAMA["text_config"], "hidden_size": 48}
    source = write_checkpoint(tmp_path / "source", {**LLAMA, "text_config": text})
    assert "without --quantize" in refuse(capsys, source, out, "-q")


# Targets


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_the_target_exists(kind, tmp_path, capsys):
    source = write_checkpoint(tmp_path / "source", LLAMA)
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    assert "exists already" in refuse(capsys, source, target)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}
    assert kind != "file" or target.read_text() == "mine"


def test_the_target_lies_below_a_file(tmp_path, out, capsys):
    source = write_checkpoint(tmp_path / "source", LLAMA)
    refuse(capsys, source, source / "config.json" / "out")


def test_too_little_space_is_known_before_anything_is_written(tmp_path, out, capsys, monkeypatch):
    source = write_checkpoint(tmp_path / "source", LLAMA)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    monkeypatch.setattr(writer, "new_folder", None)
    line = refuse(capsys, source, out)
    assert "0.000 GB free" in line
    assert "make room" in line


def test_parents_made_for_the_target_go_too(tmp_path, out, capsys):
    source = with_tensor(tmp_path, lambda t: np.put(t[UP], 0, np.nan))
    refuse(capsys, source, out / "deep" / "er")


# Trouble on the way


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from mlx_corematching.convert.command import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("limit", [100_000, 5_000])
def test_a_write_that_fails_half_way(limit, tmp_path, out):
    source = write_checkpoint(tmp_path / "source", LLAMA)
    arguments = [str(limit), "--hf-path", source, "--mlx-path", out]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: disk full: ")
    assert done.stderr.count("\n") == 1


def test_a_disk_that_fills_up_with_the_small_files(tmp_path, out, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = write_checkpoint(tmp_path / "source", LLAMA, tokenizer=True)
    monkeypatch.setattr(shutil, "copyfile", full)
    assert "disk full" in refuse(capsys, source, out)


def test_a_file_shorter_than_planned(tmp_path, out, capsys, monkeypatch):
    """Should MLX ever lose an error of the writer, the size tells."""
    save = mx.save_safetensors

    def short(file, arrays, **options):
        save(file, arrays, **options)
        os.truncate(file, 1000)

    monkeypatch.setattr(mx, "save_safetensors", short)
    assert "disk full" in refuse(capsys, write_checkpoint(tmp_path / "source", LLAMA), out)


def test_a_source_that_is_cut_short_meanwhile(tmp_path, out, capsys, monkeypatch):
    source = write_checkpoint(tmp_path / "source", LLAMA)
    save = writer.plan_shards

    def plan(*arguments):
        os.truncate(source / "model.safetensors", 100_000)
        return save(*arguments)

    monkeypatch.setattr("mlx_corematching.convert.conversion.plan_shards", plan)
    assert "cannot be read" in refuse(capsys, source, out)


@pytest.mark.parametrize(
    ("raised", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (InputError("of the third shard"), 2, "error: of the third shard"),
        (ZeroDivisionError("odd"), 1, "error: internal: ZeroDivisionError: odd; run again"),
    ],
)
def test_stopped_in_the_middle(raised, status, words, tmp_path, out, capsys, monkeypatch):
    source = write_checkpoint(tmp_path / "source", LLAMA)
    save, calls = mx.save_safetensors, []

    def stop(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise raised
        save(*arguments, **options)

    monkeypatch.setattr(
        "mlx_corematching.convert.conversion.convert.__kwdefaults__",
        {**convert.__kwdefaults__, "max_shard_bytes": 100_000},
    )
    monkeypatch.setattr(mx, "save_safetensors", stop)
    assert main(["--hf-path", str(source), "--mlx-path", str(out)]) == status
    said = capsys.readouterr().err
    assert said.startswith(words)
    assert said.count("\n") == 1


def test_the_name_is_taken_meanwhile(tmp_path, capsys, monkeypatch):
    source = write_checkpoint(tmp_path / "source", LLAMA)
    out = tmp_path / "results" / "out"
    copy = writer.write_json

    def take(file, value):
        out.mkdir(exist_ok=True)
        copy(file, value)

    monkeypatch.setattr("mlx_corematching.convert.conversion.write_json", take)
    assert "exists already" in refuse(capsys, source, out)
    assert list(out.parent.iterdir()) == [out]
    assert list(out.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path, out, capsys):
    arguments = ["--hf-path", str(tmp_path / "none"), "--mlx-path", str(out), "--debug"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("error: ")


def test_a_file_with_another_type_of_header(tmp_path, out, capsys):
    source = write_checkpoint(tmp_path / "source", LLAMA)
    tensors = make_tensors(LLAMA)
    write_safetensors(source / "model.safetensors", tensors)
    data = (source / "model.safetensors").read_bytes().replace(b'"F32"', b'"F99"', 1)
    (source / "model.safetensors").write_bytes(data)
    assert "model.safetensors" in refuse(capsys, source, out)

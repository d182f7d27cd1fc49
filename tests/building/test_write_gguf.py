"""Models as GGUF files: folded, handed to a converter (here the tests' own), and there only when they are whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from tiny_gguf import tiny_llama, write_gguf
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import hf_evomerge
from hf_evomerge import LayerPath, LayerPool, open_source
from hf_evomerge.cli import app
from hf_evomerge.errors import EvoMergeError, PathError

CONVERTER = """
import sys
from pathlib import Path
folder, words = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2]))
sys.path.insert(0, {support!r})
from tiny_gguf import write_gguf
from transformers import AutoModelForCausalLM
write_gguf(AutoModelForCausalLM.from_pretrained(folder), Path(words["--outfile"]))
"""
RECORDER = """
import json, os, pathlib, sys
print("a line", file=sys.stderr)
if os.environ.get("FAILS"):
    sys.exit("the last line")
words = sys.argv[1:]
files = sorted(file.name for file in pathlib.Path(words[0]).iterdir())
pathlib.Path(words[2]).write_text(json.dumps([words, files, os.environ["HF_HUB_OFFLINE"]]))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Folders with tokenizers: a ``plain`` model, and ``merged``, a path with repeats and scales through it and another."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(constants, "HF_HOME", str(folder / "home"))
        source = open_source(str(write_gguf(tiny_llama(), folder / "source.gguf")))
    shutil.copytree(source.folder, folder / "plain")
    path = LayerPath.parse("0:0, 1:1, 1:0, 0:1, 1:1", [1.0, 0.9, -1.1, 1.2, 0.8])
    LayerPool([tiny_llama(), tiny_llama(1)]).model(path).save_pretrained(folder / "merged")
    source.write_tokenizer(folder / "merged")
    return folder


@pytest.fixture
def converter(tmp_path, monkeypatch) -> Path:
    """A converter that writes down how it was called."""
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text(RECORDER)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama.cpp"))
    return tmp_path / "llama.cpp" / "convert_hf_to_gguf.py"


def test_a_path_becomes_a_file_that_answers_alike(models, converter, tmp_path, monkeypatch):
    """The file holds the folded model: read again as a source it has the logits of the merged one."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    converter.write_text(CONVERTER.format(support=str(Path(__file__).parents[1] / "support")))
    file = hf_evomerge.write_gguf(models / "merged", tmp_path / "out" / "merged.gguf", kind="f32", progress=False)
    source = open_source(str(file))
    assert (source.config.model_type, source.layer_count) == ("llama", 5)
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(models / "merged")(ids).logits
        assert torch.allclose(AutoModelForCausalLM.from_pretrained(source.folder)(ids).logits, wanted, atol=1e-4)
    assert [item.name for item in file.parent.iterdir()] == ["merged.gguf"]


def test_the_converter_gets_a_folder_without_code(models, converter, tmp_path):
    """A plain model is handed over as it is, but for Python files, and nothing is fetched."""
    plain = shutil.copytree(models / "plain", tmp_path / "plain")
    (plain / "modeling.py").write_text("raise SystemExit")
    file = hf_evomerge.write_gguf(plain, tmp_path / "my-model.gguf", kind="q8_0", progress=False)
    words, files, offline = json.loads(file.read_text())
    assert (words[1], *words[3:]) == ("--outfile", "--outtype", "q8_0", "--model-name", "my-model")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert (not any(name.endswith(".py") for name in files), offline) == (True, "1")
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    (plain / "tokenizer_config.json").write_text(json.dumps({**settings, "auto_map": {"AutoTokenizer": "some/repo--x.Y"}}))
    with pytest.raises(EvoMergeError, match=r"tokenizer_config\.json names Python code \(auto_map\)"):
        hf_evomerge.write_gguf(plain, tmp_path / "other.gguf", progress=False)


def test_a_converter_that_fails_leaves_no_file(models, converter, tmp_path, monkeypatch):
    """Its last line is the message; the next try begins with the folded model that is there."""
    file = tmp_path / "out" / "merged.gguf"
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(EvoMergeError, match=r"^merged\.gguf: llama\.cpp's converter does not write it: the last line$"):
        hf_evomerge.write_gguf(models / "merged", file, progress=False)
    assert not file.exists()
    monkeypatch.delenv("FAILS")
    monkeypatch.setattr("hf_evomerge.building.gguf.write_checkpoint", None)
    hf_evomerge.write_gguf(models / "merged", file, progress=False)
    assert [item.name for item in file.parent.iterdir()] == ["merged.gguf"]


def test_what_cannot_be_written_is_refused_first(models, converter, tmp_path, monkeypatch):
    """A wrong name, a file that is there, a path without a plain equal, and no converter: one line, and no work."""
    monkeypatch.setattr("hf_evomerge.building.gguf.write_checkpoint", None)
    (tmp_path / "there.gguf").write_text("x")
    plain, there = models / "plain", tmp_path / "there.gguf"
    sums = LayerPool([tiny_llama()]).model(LayerPath.parse("0:0, 0:0*0.5 + 0:1*0.5, 0:1"))
    sums.save_pretrained(tmp_path / "sums")
    for model, file, kind, message in (
        (plain, tmp_path / "a.bin", "auto", r"a\.bin: the name of a GGUF file ends in \.gguf"),
        (plain, tmp_path / "a.gguf", "q4_k_m", "type: 'q4_k_m' is unknown; there are auto, f32, f16, bf16, q8_0"),
        (plain, there, "auto", r"there\.gguf: exists already; choose another name, or pass --overwrite"),
        (plain, there / "a.gguf", "auto", "is a file, not a folder"),
    ):
        with pytest.raises(EvoMergeError, match=message):
            hf_evomerge.write_gguf(model, file, kind=kind)
    with pytest.raises(PathError, match="cannot be folded"):
        hf_evomerge.write_gguf(tmp_path / "sums", tmp_path / "a.gguf")
    converter.unlink()
    with pytest.raises(
        EvoMergeError, match=r"^LLAMA_CPP: no convert_hf_to_gguf\.py in .*; name the folder of llama\.cpp's source$"
    ):
        hf_evomerge.write_gguf(plain, tmp_path / "a.gguf")
    monkeypatch.delenv("LLAMA_CPP")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        EvoMergeError, match=r"^GGUF files are written by llama\.cpp's .* git clone .*, and set LLAMA_CPP to its folder$"
    ):
        hf_evomerge.write_gguf(plain, tmp_path / "a.gguf")


def test_the_command_writes_a_folder_or_a_file_or_both(models, converter, tmp_path):
    """`fold` needs to know what to write; a GGUF file has a type of its own."""

    def run(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["fold", str(models / "merged"), *map(str, words)])
        return done.exit_code, done.output

    assert run() == (1, "error: nothing to write; name a folder with --out, or a file with --gguf\n")
    file, folder = tmp_path / "m.gguf", tmp_path / "m"
    assert (
        "error: --dtype: it is of the folder; for the GGUF file say --gguf-type" in run("--gguf", file, "--dtype", "float16")[1]
    )
    code, said = run("--gguf", file, "--out", folder)
    assert (code, f"wrote {folder}\n" in said, f"wrote {file}\n" in said) == (0, True, True)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 5
    assert json.loads(file.read_text())[0][4] == "auto"

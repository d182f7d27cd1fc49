"""Sources: what is read from a checkpoint's files, and what is refused."""

import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml
from classes import edit_json, edited, tensors_of
from families import tiny_config
from huggingface_hub.utils import filter_repo_objects
from refused import refused
from transformers import LlamaForCausalLM

from hf_evomerge.checkpoints.compatibility import check_mergeable
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.checkpoints.source import Source
from hf_evomerge.errors import SourceError
from hf_evomerge.recipes.recipe import SourceRef


def save(folder, dtype=torch.float32, **changes):
    """Save a tiny Llama."""
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 32, **changes}
    LlamaForCausalLM(tiny_config(**settings)).to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny Llama on disk."""
    return save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it that a test may damage."""
    return shutil.copytree(saved, tmp_path / "model")


def test_a_folder_is_read_as_it_is(saved):
    """Headers and config tell names, dtypes, shapes, layers and the tied head; tensors are those of
    the file."""
    source = open_source(SourceRef(model=str(saved)))
    expected = tensors_of(saved)
    assert source.folder == saved
    assert (source.layer_count, source.is_tied, source.config.model_type) == (2, True, "llama")
    assert set(source.tensors) == set(expected)
    info = source.tensors["model.embed_tokens.weight"]
    assert (info.dtype, info.shape, info.numel, info.is_float) == ("F32", (32, 16), 512, True)
    assert info.file == saved / "model.safetensors"
    assert all(torch.equal(source.read(name), tensor) for name, tensor in expected.items())
    assert str(source) == str(saved)


def test_shards_are_read_through_the_index(saved, tmp_path):
    """A checkpoint in shards is the same checkpoint."""
    LlamaForCausalLM.from_pretrained(saved).save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole = open_source(saved)
    cut = open_source(tmp_path)
    check_mergeable([whole, cut], whole)
    assert all(torch.equal(whole.read(name), cut.read(name)) for name in whole.tensors)


def test_opening_needs_no_torch(saved):
    """A source is opened and its headers are read without importing torch or transformers."""
    code = (
        f"import sys; from hf_evomerge.checkpoints.open import open_source\n"
        f"s = open_source({str(saved)!r}); s._files(); s._index()\n"
        "sys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("name", ["./not-there", "/not/there", "~/not-there", "a/b/c", "no one"])
def test_a_missing_folder_is_refused(name):
    """A folder that is not there is not looked for on the Hub."""
    with refused(f"{name}: no such folder"):
        open_source(name)


def test_a_repository_that_cannot_be_had_is_refused(monkeypatch):
    """Without the Hub, a repository that is not in the cache is refused with a hint."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = rf"no-one/nothing: no folder in {Path.cwd()}, not in the Hub cache, .* HF_HUB_OFFLINE"
    with refused(said):
        open_source("no-one/nothing")


def test_a_download_takes_neither_pickles_nor_code(saved, monkeypatch):
    """A source is opened with JSON, tokenizer and template files alone, at the revision of the
    recipe."""
    download = Mock(return_value=str(saved))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = open_source(SourceRef(model="some-one/some-model", revision="abc"))
    assert str(source) == "some-one/some-model@abc"
    asked = download.call_args.kwargs
    assert (download.call_args.args, asked["revision"]) == (("some-one/some-model",), "abc")
    names = ["config.json", "tokenizer.model", "additional_chat_templates/tool.jinja"]
    others = ["pytorch_model.bin", "modeling_x.py", "x.pt", "onnx/model.safetensors"]
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects([*names, *others], **patterns)) == names


def test_a_folder_has_no_revision(saved):
    """A revision next to a folder is refused rather than ignored."""
    with refused(r"a folder has no revision \(found 'main'\); leave it out"):
        open_source(SourceRef(model=str(saved), revision="main"))


def test_pickles_are_refused(folder):
    """A checkpoint that is only there as a pickle is refused, and the pickle is named."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with refused(r"no .safetensors file \(only pytorch_model.bin, a pickle, .*save_pretrained"):
        open_source(folder)


def test_a_missing_tokenizer_is_named_with_what_to_do(folder):
    """A model without a tokenizer file says which files to copy; one with a file that cannot be
    read says why not."""
    with pytest.raises(SourceError) as caught:
        open_source(folder).tokenizer()
    assert str(caught.value) == (
        f"{folder}: has no tokenizer.json; copy tokenizer.json and tokenizer_config.json of its "
        "base beside the weights"
    )
    (folder / "tokenizer.json").write_text("{}")
    with refused("its tokenizer cannot be read: "):
        open_source(folder).tokenizer()


def test_missing_files_are_refused(folder):
    """A folder without config, without weights, or with an adapter alone is refused with what is
    missing."""
    adapter = folder / "adapter_config.json"
    (folder / "german").mkdir()
    nothing = "no config.json in .*; "
    for change, message in (
        ((folder / "model.safetensors").unlink, r"no .safetensors file \(no weights\)"),
        (
            lambda: adapter.write_text("{}"),
            r"a LoRA adapter, not a model; write \{model: ITS BASE, adapter: ",
        ),
        (
            lambda: (folder / "config.json").rename(adapter),
            r"peft_type is None; only LORA adapters can be merged",
        ),
        (
            lambda: adapter.write_text('{"peft_type": "LORA"}'),
            r"a LoRA adapter that names no base; write \{model: ITS BASE, adapter: ",
        ),
        (adapter.unlink, f"{nothing}give the folder or repository of a transformers model"),
        (
            lambda: (folder / "model.gguf").write_bytes(b"GGUF"),
            f"{nothing}transformers makes one of a GGUF file",
        ),
        (
            lambda: (folder / "model.gguf").rename(folder / "german" / "adapter_config.json"),
            rf"{nothing}an adapter is in \S+/german: give that folder",
        ),
    ):
        change()
        with refused(message):
            open_source(folder)
    with refused(r"nowhere/: no such folder in .*; give a folder that"):
        open_source("nowhere/")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "header too small"),
        (lambda data: data[:200], "invalid header length"),
        (lambda data: data[:8] + b"x" + data[9:], "invalid JSON in header"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "header too large"),
    ],
)
def test_damaged_files_are_refused(folder, damage, message):
    """A damaged or cut file is found by its header, before any tensor is read."""
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    said = f"model.safetensors: not a safetensors file, or damaged: .*{message}.*; download it"
    with refused(said):
        _ = open_source(folder).tensors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"index\.json cannot be read: "),
        ("[" * 100_000, r"index\.json cannot be read: "),
        ('{"weight_map": {"a": 3}}', "not an index of safetensors files"),
        ('{"weight_map": 3}', "not an index of safetensors files"),
        (
            '{"weight_map": {"a": "model-2.safetensors"}}',
            "the index lists model-2.safetensors, which is not there",
        ),
        (
            '{"weight_map": {"a": "../model.safetensors"}}',
            "the index names a file outside the folder",
        ),
    ],
    ids=range(6),
)
def test_a_wrong_index_is_refused(text, message, folder):
    """An index that is not one, or names a file that is not there or outside, is refused."""
    (folder / "model.safetensors.index.json").write_text(text)
    with refused(message):
        _ = open_source(folder).tensors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "unheard-of"}', "cannot be read: "),
        ('{"model_type": "llama", "num_hidden_layers": "two"}', "cannot be read: "),
        ('{"model_type": "llama", "rope_parameters": [1]}', "cannot be read: "),
        ('{"a":' * 50_000, "cannot be read: "),
        ('{"model_type": 3}', "cannot be read: "),
        ('{"num_labels": 1000000000}', ": num_labels is 1000000000; at most 65536 are read"),
        (
            '{"model_type": "llama", "text_config": {"model_type": "llama"}}',
            "cannot be read: a llama has no text_config",
        ),
    ],
    ids=range(7),
)
def test_a_wrong_config_is_refused(text, message, folder):
    """A config of no known architecture, or with numbers that cannot be, is refused."""
    (folder / "config.json").write_text(text)
    with refused(f"model: config.json:? ?{message.removeprefix(': ')}"):
        _ = open_source(folder).config


def test_code_of_a_config_is_never_run(folder):
    """A config whose class comes with the model is refused, and its code is not run."""
    named = {"AutoConfig": "configuration_x.Config"}
    edit_json(folder / "config.json", model_type="unheard-of", auto_map=named)
    (folder / "configuration_x.py").write_text("raise SystemExit('ran')")
    said = "model: its config needs Python code that comes with the model; read it, and pass"
    with refused(said):
        _ = open_source(folder).config


@pytest.mark.parametrize(
    ("changes", "message"),
    {
        "{num_hidden_layers: 3, hidden_act: gelu}": (
            "number of layers differs: 2 in .*model, 3 in .*; hidden_act differs: silu in .*other"
        ),
        "vocab_size: 40": "vocabulary size differs: 32 in .*model, 40 in .*other",
        "tie_word_embeddings: false": (
            "tie_word_embeddings differs: True in .*model, False in .*other"
        ),
        "{hidden_size: 32, head_dim: 4}": (
            r"model.embed_tokens.weight: shape \[32, 16\] in .*model, \[32, 32\] in .*other"
        ),
        "{num_attention_heads: 8, num_key_value_heads: 4, head_dim: 2}": (
            "num_attention_heads differs: 4 in .*, 8 in"
        ),
        "attention_bias: true": (
            "tensor model.layers.0.self_attn.k_proj.bias of .*other is missing in .*model"
        ),
    }.items(),
)
@pytest.mark.parametrize("as_base", [False, True])
def test_parents_that_do_not_fit_are_refused(folder, tmp_path, changes, message, as_base):
    """Checkpoints that differ in architecture or shape are refused with both values, from configs
    and headers alone."""
    first = open_source(folder)
    other = open_source(save(tmp_path / "other", **yaml.safe_load(changes)))
    with refused(f"{message}.*; sources must be fine-tunes of one base"):
        check_mergeable(*(([first], other) if as_base else ([first, other],)))


def test_missing_tensors_and_other_kinds_are_refused(folder, saved):
    """A tensor that one parent lacks, or stores as integers, is named."""
    norm = "model.norm.weight"
    with edited(folder) as tensors:
        tensors[norm] = torch.ones(16, dtype=torch.int32)
    with refused(f"{norm}: F32 in .*, I32 in .*model"):
        check_mergeable([open_source(saved), open_source(folder)])
    with edited(folder) as tensors:
        del tensors[norm]
    with refused(f"tensor {norm} of .* is missing in .*model"):
        check_mergeable([open_source(saved), open_source(folder)])


def test_a_body_without_its_head_is_called_one(saved, tmp_path):
    """The names of a bare body's tensors all differ; what is said first is what it was saved
    from."""
    LlamaForCausalLM.from_pretrained(saved).model.save_pretrained(tmp_path / "body")
    with refused(r"body was saved from LlamaModel, .* from LlamaForCausalLM; tensor "):
        check_mergeable([open_source(saved), open_source(tmp_path / "body")])


def test_quantised_weights_are_refused(folder):
    """Numbers of few bits without a word in the config are refused by the dtype of a tensor."""
    with edited(folder) as tensors:
        tensors.update({name: each.to(torch.float8_e4m3fn) for name, each in tensors.items()})
    with refused("is F8_E4M3, which cannot be merged; give the model in bfloat16 or float32"):
        check_mergeable([open_source(folder)])


def test_the_config_is_not_asked_for_each_tensor(tmp_path, monkeypatch):
    """Mixtures of experts have tens of thousands of tensors: what is done for each must not look at
    all the others again."""
    asked = []

    def is_tied(source):
        asked.append(source)
        return True

    monkeypatch.setattr(Source, "is_tied", property(is_tied))
    source = open_source(save(tmp_path / "deep", num_hidden_layers=6))
    assert len(source.tensors) > 50
    assert len(asked) < 10

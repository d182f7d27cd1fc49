"""GGUF files as sources: read as transformers reads them, dequantised once, and refused where they are not whole."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from huggingface_hub import constants
from recipes import merge_of
from safetensors.torch import load_file
from tiny_gguf import TOKENS, tiny_llama, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_evomerge.building.build import build_model, check_recipe
from hf_evomerge.checkpoints import gguf as gguf_module
from hf_evomerge.checkpoints.digests import digest_source
from hf_evomerge.checkpoints.hashes import file_sha256
from hf_evomerge.checkpoints.inspect import inspect_model
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import RecipeError, SearchError, SourceError
from hf_evomerge.mergekit import to_mergekit
from hf_evomerge.recipes.recipe import Recipe, SourceRef
from hf_evomerge.recipes.strict_yaml import parse_yaml
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.file.scaffold import draft_search
from hf_evomerge.search.run import run_search


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with tiny models: ``f32``, ``q8`` with a head of its own, ``f16`` and another, ``b``."""
    folder = tmp_path_factory.mktemp("files")
    write_gguf(tiny_llama(), folder / "f32.gguf")
    write_gguf(tiny_llama(tie_word_embeddings=True), folder / "q8.gguf", Kind.Q8_0)
    write_gguf(tiny_llama(), folder / "f16.gguf", Kind.F16)
    write_gguf(tiny_llama(1), folder / "b.gguf")
    return folder


@pytest.fixture(scope="module")
def warm(tmp_path_factory) -> Path:
    """A cache that tests share."""
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(autouse=True)
def cache(warm, monkeypatch) -> Path:
    """Where dequantised files go."""
    monkeypatch.setattr(constants, "HF_HOME", str(warm))
    return warm / "hf_evomerge" / "gguf"


@pytest.fixture
def cold(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cold"))
    return tmp_path / "cold" / "hf_evomerge" / "gguf"


def test_a_file_is_the_model_that_it_was_written_from(files):
    """Names, numbers, sizes and tokens are those of the class; a file in float32 loses nothing."""
    source, model = open_source(str(files / "f32.gguf")), tiny_llama()
    assert set(source.tensors) == set(model.state_dict())
    assert all(torch.equal(source.read(name), tensor) for name, tensor in model.state_dict().items())
    assert (source.config.architectures, source.layer_count, source.vocab_size) == (["LlamaForCausalLM"], 2, len(TOKENS))
    assert getattr(source.config, "quantization_config", None) is None
    tokenizer = source.tokenizer()
    assert [TOKENS[i] for i in tokenizer("hello he")["input_ids"]] == ["hello", "Ġ", "he"]
    assert tokenizer.eos_token == "</s>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False) == "he"


def test_a_quantised_file_answers_as_transformers_does(files):
    """The logits are those of `from_pretrained` on the file, bit for bit, and the tokens those of its tokenizer."""
    source = open_source(str(files / "q8.gguf"))
    assert source.is_tied
    assert {info.dtype for info in source.tensors.values()} == {"F32"}
    ours = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(files, gguf_file=str(files / "q8.gguf"), dtype=torch.float32)
    ids = torch.tensor([source.tokenizer()("hello, hello")["input_ids"]])
    tokenizer = AutoTokenizer.from_pretrained(files, gguf_file=str(files / "q8.gguf"))
    assert ids[0].tolist() == tokenizer("hello, hello")["input_ids"]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
        assert not torch.equal(ours(ids).logits, tiny_llama(tie_word_embeddings=True)(ids).logits)


def test_a_file_of_16_bits_stays_one(files):
    """A file that is not quantised keeps its dtype."""
    source = open_source(str(files / "f16.gguf"))
    assert {info.dtype for info in source.tensors.values()} == {"F16"}
    name = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(source.read(name), tiny_llama().state_dict()[name].half())


def test_a_file_is_dequantised_once(files, cache, monkeypatch):
    """The cache is found by the file's content, whatever its name; gguf is not needed any more."""
    first = open_source(str(files / "b.gguf"))
    copy = shutil.copyfile(files / "b.gguf", files / "copy.gguf")
    monkeypatch.setattr(gguf_module, "_dequantise", None)
    monkeypatch.setattr(gguf_module, "find_spec", lambda name: None)
    second = open_source(SourceRef(model=str(files), gguf="copy.gguf"))
    assert first.folder == second.folder
    assert first.folder.parent == cache
    assert (first.gguf.sha256, str(second)) == (file_sha256(copy), str(copy))


def test_what_was_interrupted_is_not_taken_for_whole(files, cold, monkeypatch):
    """A model folder is in the cache only when everything is in it, and the next one begins afresh."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(AutoTokenizer, "from_pretrained", stop)
        with pytest.raises(KeyboardInterrupt):
            open_source(str(files / "b.gguf"))
    assert [item.suffix for item in cold.iterdir() if item.is_dir()] == [".partial"]
    (next(cold.glob("*.partial")) / "stale.json").write_text("{}")
    source = open_source(str(files / "b.gguf"))
    assert source.tokenizer().eos_token == "</s>"
    assert not (source.folder / "stale.json").exists()
    assert [item for item in cold.iterdir() if item.is_dir()] == [source.folder]


def test_a_merge_of_files_is_rebuilt_to_the_bit_or_not_at_all(files, tmp_path, cold):
    """The recipe beside the model has the sha256 of each file: the same bits from an empty cache, none from another file."""
    for name in ("q8", "b"):
        shutil.copyfile(files / f"{name}.gguf", tmp_path / f"{name}.gguf")
    write_gguf(tiny_llama(2, tie_word_embeddings=True), tmp_path / "a.gguf", Kind.Q4_0)
    names = [str(tmp_path / f"{name}.gguf") for name in ("q8", "a")]
    recipe = merge_of(*names, weights=[0.5, 0.5])
    assert "linear" in check_recipe(recipe).summary
    built = build_model(recipe, tmp_path / "built", progress=False)
    kept = Recipe.load(built / "recipe.yaml")
    assert [ref.gguf_sha256 for ref in kept.sources] == [file_sha256(Path(name)) for name in names]
    shutil.rmtree(cold)
    again = build_model(kept, tmp_path / "again", progress=False)
    assert file_sha256(built / "model.safetensors") == file_sha256(again / "model.safetensors")
    assert (built / "config.json").read_text() == (again / "config.json").read_text()
    assert AutoTokenizer.from_pretrained(built)("hello")["input_ids"] == [TOKENS.index("hello")]
    weights, sources = load_file(built / "model.safetensors"), [open_source(name) for name in names]
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(weights[name], sum(source.read(name) for source in sources) / 2)
    shutil.copyfile(tmp_path / "b.gguf", tmp_path / "a.gguf")
    os.utime(tmp_path / "a.gguf", ns=(1, 1))
    with pytest.raises(SourceError, match=r"a\.gguf: its sha256 is .*, not .* as it should; get that file$"):
        build_model(kept, tmp_path / "third", progress=False)


def test_a_file_stands_for_itself(files):
    """What a study takes down of a file is its sha256, wherever it is dequantised; inspect shows it by its name."""
    source = open_source(str(files / "f32.gguf"))
    assert digest_source(source, {}) == {"f32.gguf": [file_sha256(files / "f32.gguf")]}
    assert source.pinned == SourceRef(model=str(files), gguf="f32.gguf", gguf_sha256=file_sha256(files / "f32.gguf"))
    assert inspect_model(str(files / "f32.gguf")).model == str(files / "f32.gguf")


def test_a_draft_names_the_file(files, tmp_path):
    """The search file that is written for GGUF files names them, not their folder alone."""
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": f"hello {n}", "answer": "hello"}) for n in range(8)))
    draft = draft_search([str(files / "f32.gguf"), str(files / "b.gguf")], data)
    assert [ref.gguf for ref in parse_yaml(SearchConfig, draft.text, SearchError).sources] == ["f32.gguf", "b.gguf"]


def test_a_search_of_files_runs(files, tmp_path):
    """Parents, candidates and the winner come from GGUF files; the winner's recipe has their sha256."""
    lines = [json.dumps({"prompt": f"hello {word}", "answer": "hello"}) for word in ("he", "she", "llo", "hell")]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    settings = {
        "space": "ps",
        "sources": [{"model": str(files / f"{name}.gguf")} for name in ("f32", "b")],
        "merge": {"method": "linear", "groups": "model"},
        "optimize": [{"evaluations": 2, "population": 2}],
        "fitness": {"task": "likelihood"},
        "data": {"search": {"jsonl": str(tmp_path / "data.jsonl")}},
        "compare": {"finalists": 1},
    }
    run_search(SearchConfig.model_validate(settings), tmp_path / "search")
    recipe = Recipe.load(tmp_path / "search" / "model" / "recipe.yaml")
    assert [ref.gguf_sha256 for ref in recipe.sources] == [file_sha256(files / f"{name}.gguf") for name in ("f32", "b")]


def test_mergekit_has_no_such_sources(files):
    """A recipe with a GGUF file is not written as a mergekit file that would fail there."""
    with pytest.raises(RecipeError, match=r"sources: me/files/a\.gguf is a GGUF file, which mergekit does not read"):
        to_mergekit(merge_of("me/files/a.gguf"))


def test_a_file_on_the_hub(files, lfs_api, tmp_path):
    """It is named within its repository, and pinned to the commit."""
    lfs_api.create_repo("local/files")
    commit = lfs_api.upload_file(path_or_fileobj=files / "f32.gguf", path_in_repo="sub/f32.gguf", repo_id="local/files").oid
    source = open_source(SourceRef(model="local/files", gguf="sub/f32.gguf"))
    assert (source.pinned.revision, source.pinned.gguf_sha256) == (commit, file_sha256(files / "f32.gguf"))
    assert source.folder == open_source(str(files / "f32.gguf")).folder
    with pytest.raises(SourceError, match=r"^local/files: other\.gguf: cannot be downloaded: "):
        open_source("local/files/other.gguf")
    with pytest.raises(SourceError, match=r"^local/files: no config.json"):
        open_source("local/files")


def damaged(files: Path, file: Path, kind: str) -> str:
    """Write a file with something wrong; returns its name."""
    model = tiny_llama()
    if kind == "truncated":
        file.write_bytes((files / "f32.gguf").read_bytes()[:-4096])
    elif kind == "cut in the header":
        file.write_bytes((files / "f32.gguf").read_bytes()[:900])
    elif kind == "endless":
        data, key = (files / "f32.gguf").read_bytes(), b"tokenizer.ggml.token_type"
        at = data.index(key) + len(key) + 8  # behind the types of the value and of its items
        rest = data[at + 8 :]
        file.write_bytes(data[:at] + (1 << 62).to_bytes(8, "little") + rest + bytes(-len(rest) % 4))
    elif kind == "other":
        file.write_bytes(b"PK\x03\x04" * 100)
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "architecture":
        data = (files / "f32.gguf").read_bytes()
        file.write_bytes(data.replace(b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05\x00\x00\x00\x00\x00\x00\x00lamas"))
    elif kind == "part":
        write_gguf(model, file, keys={"split.count": 3})
    elif kind == "layers":
        write_gguf(model, file, keys={"llama.block_count": 4_000_000})
    elif kind == "keys":
        write_gguf(model, file, keys={f"x.{number}": number for number in range(10_000)})
    elif kind == "missing":
        write_gguf(model, file, without="model.layers.1.mlp.up_proj.weight")
    return str(file)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", r"not a GGUF file, or cut short \(it ends at byte \d+\); download it again"),
        ("cut in the header", r"not a GGUF file, or cut short \(.*\); download it again"),
        ("endless", r"not a GGUF file, or cut short \(it ends at byte \d+\); download it again"),
        ("other", r"not a GGUF file, or cut short \(.*\); download it again"),
        ("empty", r"not a GGUF file, or cut short \(.*\); download it again"),
        ("architecture", r"cannot be read as a GGUF model: .*lamas.*"),
        ("part", r"one of 3 parts; join them with llama\.cpp's llama-gguf-split --merge"),
        ("layers", r"llama\.block_count is 4000000, but it holds \d+ tensors"),
        ("keys", r"not a GGUF file, or cut short \(more than 10000 keys, .*\); download it again"),
        ("missing", r"holds \d+ numbers, a 'llama' of its sizes has \d+; it is not a whole model"),
        ("absent", r"no such file; there is no GGUF file at all"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(files, tmp_path, cold, kind, message):
    """The line says which file, what is wrong, and where it helps what to do; nothing is left in the cache."""
    name = damaged(files, tmp_path / "bad.gguf", kind)
    with pytest.raises(SourceError, match=rf"^{name}: {message}$") as error:
        open_source(name)
    assert "\n" not in str(error.value)
    assert not [item for item in cold.glob("*") if item.suffix not in (".lock", ".partial")]


def test_a_model_that_lacks_a_tensor_is_refused(tmp_path, cold):
    """No tensor is made up: what the file does not give is named, also where another tensor is too many."""
    file = write_gguf(tiny_llama(), tmp_path / "bad.gguf", without="model.norm.weight", spare=64)
    with pytest.raises(SourceError, match=r"bad\.gguf: gives no model\.norm\.weight that a 'llama' of its sizes has"):
        open_source(str(file))


def test_numbers_that_transformers_does_not_read_are_told(tmp_path, cold, caplog):
    """A tensor that the class has no place for is not dropped in silence."""
    open_source(str(write_gguf(tiny_llama(), tmp_path / "more.gguf", spare=64)))
    assert "more.gguf: transformers has no use for 64 of its numbers" in caplog.text


def test_without_the_packages_one_line_says_what_to_install(files, cold, monkeypatch):
    """GGUF files need an extra."""
    monkeypatch.setattr(gguf_module, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"b\.gguf: .* read with gguf; pip install 'hf-evomerge\[quantization\]'$"):
        open_source(str(files / "b.gguf"))


def test_a_folder_of_files_asks_for_the_name(files):
    """A folder is no model because a GGUF file lies in it; the message says how to name one."""
    with pytest.raises(SourceError, match=rf"no config\.json in .*; of a GGUF file say {files}/b\.gguf$"):
        open_source(str(files))
    with pytest.raises(SourceError, match=r"nothing\.gguf: no such file; there is b\.gguf, "):
        open_source(str(files / "nothing.gguf"))

"""Which sources a search takes, and what it says of doubtful ones: whatever a merge takes, and in
the same words."""

import json
import logging
import re
import shlex
import shutil

import pytest
import torch
import yaml
from classes import edit_json
from recipes import refs_in
from refusals import refused, told
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from hf_evomerge import EvoMergeError, check_recipe, evaluate_model, plan_search, run_search
from hf_evomerge.cli import app
from hf_evomerge.demo.quickstart import SPECIALISTS
from hf_evomerge.errors import SearchError
from hf_evomerge.search.file.scaffold import draft_search

OWN = """
from transformers import LlamaConfig, LlamaForCausalLM

open({log!r}, "a").write(".")


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def _hf(line):
    """A command's status, and its last line."""
    result = CliRunner().invoke(app, shlex.split(line))
    return result.exit_code, result.output.strip().splitlines()[-1]


@pytest.fixture
def brings_code(tiny, tmp_path):
    """The tiny family as an architecture whose Python code lies beside the weights, and leaves a
    mark when it runs."""
    folder = shutil.copytree(tiny, tmp_path / "own")
    for name in ("a", "b", "base"):
        (folder / name / "own.py").write_text(OWN.format(log=str(tmp_path / "ran")))
        code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
        edit_json(
            folder / name / "config.json",
            model_type="own",
            architectures=["OwnForCausalLM"],
            auto_map=code,
        )
    return folder


def test_code_runs_with_consent_alone(brings_code, tmp_path, search_config):
    """A search of sources that bring code is refused; with --trust-remote-code it runs, and so do
    resume, eval, inspect and diff, each asked anew."""
    file = tmp_path / "search.yaml"
    out = tmp_path / "out"
    search_config("ps", brings_code).save(file)
    search = f"search {file} -o {out} --workers 0"
    lines = [f"{search} --dry-run", search, f"search {out}"]
    lines += [f"eval {out}/model --search {file}", f"inspect {out}/model"]
    lines.append(f"diff {out}/model {brings_code}/a --base {brings_code}/base")
    ran = tmp_path / "ran"
    ran.touch()
    for line in lines:
        before = ran.read_bytes()
        status, told = _hf(line)
        assert (status, ran.read_bytes()) == (1, before)
        assert "--trust-remote-code" in told
        assert _hf(f"{line} --trust-remote-code")[0] == 0
    assert (out / "model" / "own.py").exists()


def test_no_file_can_consent(search_config):
    """Consent to foreign code is no key of a search file."""
    with refused(SearchError, "trust_remote_code: no such key"):
        search_config(trust_remote_code=True)


@pytest.fixture
def more_words(tiny, tmp_path):
    """The tiny family, ``b`` with two words more than the others."""
    folder = shutil.copytree(tiny, tmp_path / "more")
    model = AutoModelForCausalLM.from_pretrained(folder / "b")
    model.resize_token_embeddings(28, mean_resizing=False)
    model.save_pretrained(folder / "b")
    _edit_words(folder, lambda words: words.update(more1=26, more2=27))
    return folder


def _edit_words(folder, edit):
    file = folder / "b" / "tokenizer.json"
    data = json.loads(file.read_text())
    edit(data["model"]["vocab"])
    file.write_text(json.dumps(data))


def test_a_search_over_vocabularies(more_words, tmp_path, search_config):
    """What a search advises it takes: the winner's recipe says what becomes of the vocabularies,
    and its model has them."""
    with refused(EvoMergeError, "vocabulary: union"):
        plan_search(search_config("ps", more_words))
    names = [str(more_words / name) for name in ("a", "b")]
    problems = tmp_path / "problems.jsonl"
    lines = [f'{{"prompt": "w1 w{number}", "answer": 3}}\n' for number in range(9)]
    problems.write_text("".join(lines), encoding="utf-8")
    drafted = draft_search(names, problems, base=str(more_words / "base")).text
    assert "\noutput: {vocabulary: union} #" in drafted
    config = search_config(
        "ps",
        more_words,
        merge="{groups: tensor, starts: [average]}",
        optimize="[{by: gradient, evaluations: 6}]",
        output="{vocabulary: union}",
    )
    result = run_search(config, tmp_path / "out")
    assert result.winner.vocabulary == "union"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.get_input_embeddings().num_embeddings == 28


@pytest.mark.parametrize(
    ("changes", "message"),
    told("""
{merge: {sources: [0]}, output: {vocabulary: union, tokens: {default: 1}}}
  output.tokens.default: 1 is no source that
output: {tokens: {}}
  output.tokens: matched only with vocabulary: union
output: {tokenizer: 4}
  output.tokenizer: 4 is not a source
{output: {tokenizer: base}, base: null}
  output.tokenizer: there is no base
{space: dfs, output: {vocabulary: union}}
  output.vocabulary: there is no merge; a path has that of
"""),
)
def test_vocabularies_that_cannot_be(changes, message, search_config):
    """What a recipe refuses of vocabularies a search file refuses, in the same words."""
    with refused(SearchError, f"^{message}"):
        search_config(**{"space": "ps", **yaml.safe_load(changes)})


def _doubtful(folder):
    """Another rope, another norm, a token of its own, and weights that are no fine-tune of the
    base's."""
    file = folder / "b" / "config.json"
    edit_json(file, rms_norm_eps=1e-3, rope_parameters={"rope_type": "default", "rope_theta": 50.0})
    _edit_words(folder, lambda words: words.update(other=words.pop("w1")))
    weights = folder / "b" / "model.safetensors"
    tensors = {name: torch.randn_like(tensor) for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})


def test_what_is_doubtful_is_said(tiny, tmp_path, search_config, caplog):
    """A search and its dry run say of the sources what `merge --dry-run` says, and how little they
    are related; once."""
    folder = shutil.copytree(tiny, tmp_path / "tiny")
    _doubtful(folder)
    config = search_config("ps", folder)
    found = check_recipe(config.recipe(merge=config.merge.part())).warnings
    subjects = [line.partition(" ")[0] for line in found]
    assert subjects == ["rope_parameters", "rms_norm_eps", "tokenizers"]
    warnings = plan_search(config).warnings
    assert set(found) <= set(warnings)
    assert "hardly have a common ancestor" in warnings[0]
    with caplog.at_level(logging.WARNING, "hf_evomerge"):
        for _ in range(2):
            run_search(config, tmp_path / "out", build=False)
    other = ("no model answers", "the tokenizer of")
    said = [
        line
        for line in caplog.messages
        if line in warnings and not re.search("|".join(other), line)
    ]
    assert said == [warnings[0], *found]


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("base", []),
        ("maths", ["sources: maths and the base are the same model, every weight alike"]),
    ],
)
def test_a_base_that_is_a_source_is_named(base, said, search_config):
    """A dry run warns of a base that is one of the sources; not of the demo's."""
    *sources, root = refs_in(SPECIALISTS, "japanese", "maths", base)
    warnings = plan_search(search_config("ps", sources=sources, base=root)).warnings
    about_base = [line for line in warnings if "base" in line]
    assert len(about_base) == len(said)
    assert all(map(str.startswith, about_base, said))


def test_adapters_of_one_base_raise_no_doubt_of_it(search_config, adapters):
    """A dry run over LoRA adapters has no warning of their base."""
    warnings = plan_search(search_config("ps", **adapters)).warnings
    assert not [line for line in warnings if "the base" in line]


def test_a_model_without_a_head(tiny, search_config, tmp_path):
    """A model saved without its head has nothing that a task of words could read."""
    folder = shutil.copytree(tiny, tmp_path / "tiny")
    edit_json(folder / "b" / "config.json", architectures=["LlamaModel"])
    with refused(EvoMergeError, r"b: LlamaModel \(model type 'llama'\) is no model that the task"):
        evaluate_model(str(folder / "b"), search_config("ps"), split="search")

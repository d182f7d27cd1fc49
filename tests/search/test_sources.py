"""Which sources a search takes, and what it says of doubtful ones: whatever a merge takes, and in
the same words."""

import json
import logging
import shutil

import pytest
import torch
from classes import edit_json
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from hf_evomerge.building.build import check_recipe
from hf_evomerge.cli import app
from hf_evomerge.demo.quickstart import SPECIALISTS
from hf_evomerge.errors import EvoMergeError, SearchError
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.file.scaffold import draft_search
from hf_evomerge.search.plan import plan_search
from hf_evomerge.search.run import run_search
from hf_evomerge.search.score_model import evaluate_model

OWN = """
from transformers import LlamaConfig, LlamaForCausalLM

open({log!r}, "a").write(".")


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def _hf(*words):
    """A command's status, and its last line."""
    result = CliRunner().invoke(app, [str(word) for word in words])
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
    search_config("ps", brings_code).save(tmp_path / "search.yaml")
    out = tmp_path / "out"
    trust = "--trust-remote-code"
    for words in (
        ("search", tmp_path / "search.yaml", "-o", out),
        ("search", tmp_path / "search.yaml", "-o", out, "--dry-run"),
    ):
        status, line = _hf(*words)
        assert status == 1
        assert line.startswith("error: ")
        assert line.endswith("read it, and pass --trust-remote-code")
    assert not (tmp_path / "ran").exists()
    assert _hf("search", tmp_path / "search.yaml", "-o", out, "--dry-run", trust)[0] == 0
    status, line = _hf("search", tmp_path / "search.yaml", "-o", out, trust, "--workers", 0)
    assert status == 0
    assert "look at what it answers" in line  # these models know nothing
    model = out / "model"
    assert (model / "own.py").exists()
    assert "--trust-remote-code" in _hf("search", out)[1]
    assert _hf("search", out, trust)[0] == 0
    assert "--trust-remote-code" in _hf("eval", model, "--search", tmp_path / "search.yaml")[1]
    status, line = _hf("eval", model, "--search", tmp_path / "search.yaml", trust)
    assert status == 0
    assert "fitness" in line
    assert "--trust-remote-code" in _hf("inspect", model)[1]
    assert _hf("inspect", model, trust)[0] == 0
    diff = ("diff", model, brings_code / "a", "--base", brings_code / "base")
    assert "--trust-remote-code" in _hf(*diff)[1]
    assert _hf(*diff, trust)[0] == 0


def test_no_file_can_consent(search_settings):
    """Consent to foreign code is no key of a search file."""
    with pytest.raises(SearchError, match="trust_remote_code: no such key"):
        validate(SearchConfig, search_settings(trust_remote_code=True), SearchError)


@pytest.fixture
def more_words(tiny, tmp_path):
    """The tiny family, ``b`` with two words more than the others."""
    folder = shutil.copytree(tiny, tmp_path / "more")
    model = AutoModelForCausalLM.from_pretrained(folder / "b")
    model.resize_token_embeddings(28, mean_resizing=False)
    model.save_pretrained(folder / "b")
    file = folder / "b" / "tokenizer.json"
    data = json.loads(file.read_text())
    data["model"]["vocab"] |= {"more1": 26, "more2": 27}
    file.write_text(json.dumps(data))
    return folder


def test_a_search_over_vocabularies(more_words, tmp_path, search_config):
    """What a search advises it takes: the winner's recipe says what becomes of the vocabularies,
    and its model has them."""
    search_config("ps", more_words).save(tmp_path / "search.yaml")
    status, line = _hf("search", tmp_path / "search.yaml", "-o", tmp_path / "out", "--dry-run")
    assert (status, "vocabulary: union" in line) == (1, True)
    names = (str(more_words / name) for name in ("a", "b"))
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        "".join(f'{{"prompt": "w1 w{number}", "answer": 3}}\n' for number in range(9)),
        encoding="utf-8",
    )
    drafted = draft_search([*names], problems, base=str(more_words / "base")).text
    assert "\noutput: {vocabulary: union} #" in drafted
    merge = {"groups": "tensor", "starts": ["average"]}
    steps = [{"by": "gradient", "evaluations": 6}]
    config = search_config(
        "ps", more_words, merge=merge, optimize=steps, output={"vocabulary": "union"}
    )
    result = run_search(config, tmp_path / "out")
    assert result.winner.vocabulary == "union"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.get_input_embeddings().num_embeddings == 28


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {
                "merge": {"sources": [0]},
                "output": {"vocabulary": "union", "tokens": {"default": 1}},
            },
            "output.tokens.default: 1 is no source that",
        ),
        ({"output": {"tokens": {}}}, "output.tokens: matched only with vocabulary: union"),
        ({"output": {"tokenizer": 4}}, "output.tokenizer: 4 is not a source"),
        ({"output": {"tokenizer": "base"}, "base": None}, "output.tokenizer: there is no base"),
        (
            {"space": "dfs", "output": {"vocabulary": "union"}},
            "output.vocabulary: there is no merge; a path has that of",
        ),
    ],
)
def test_vocabularies_that_cannot_be(more, message, search_config):
    """What a recipe refuses of vocabularies a search file refuses, in the same words."""
    with pytest.raises(SearchError) as caught:
        search_config(**{"space": "ps", **more})
    assert str(caught.value).startswith(message)


def _doubtful(folder):
    """Another rope, another norm, a token of its own, and weights that are no fine-tune of the
    base's."""
    file = folder / "b" / "config.json"
    edit_json(file, rms_norm_eps=1e-3, rope_parameters={"rope_type": "default", "rope_theta": 50.0})
    file = folder / "b" / "tokenizer.json"
    data = json.loads(file.read_text())
    words = data["model"]["vocab"]
    words["other"] = words.pop("w1")
    file.write_text(json.dumps(data))
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
    assert [line.partition(" ")[0] for line in found] == [
        "rope_parameters",
        "rms_norm_eps",
        "tokenizers",
    ]
    warnings = plan_search(config).warnings
    assert set(found) <= set(warnings)
    assert "hardly have a common ancestor" in warnings[0]
    with caplog.at_level(logging.WARNING, "hf_evomerge"):
        run_search(config, tmp_path / "out", build=False)
        said = [record.getMessage() for record in caplog.records]
        caplog.clear()
        run_search(config, tmp_path / "out", build=False)
    told = [line for line in said if line in warnings and "no model answers" not in line]
    assert told == [warnings[0], *found]
    assert not any(record.getMessage() in warnings for record in caplog.records)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("base", []),
        ("maths", ["sources: maths and the base are the same model, every weight alike"]),
        ("third", ["japanese and maths differ from the base in the same direction"]),
    ],
)
def test_another_base_than_theirs_is_named(base, said, search_config, tmp_path):
    """A dry run warns of a base that is a source, or another fine-tune; not of the demo's."""
    folder = shutil.copytree(SPECIALISTS, tmp_path / "models")
    root, japanese = (
        load_file(folder / name / "model.safetensors") for name in ("base", "japanese")
    )
    third = {
        name: tensor + torch.randn_like(tensor) * (japanese[name] - tensor).std()
        for name, tensor in root.items()
    }
    shutil.copytree(folder / "base", folder / "third")
    save_file(third, folder / "third" / "model.safetensors", metadata={"format": "pt"})
    config = search_config(
        "ps",
        sources=[{"model": str(folder / name)} for name in ("japanese", "maths")],
        base={"model": str(folder / base)},
    )
    warnings = plan_search(config).warnings
    about_base = [line for line in warnings if "base" in line]
    assert len(about_base) == len(said)
    assert all(map(str.startswith, about_base, said))


def test_adapters_of_one_base_raise_no_doubt_of_it(search_config, adapters):
    """A dry run over LoRA adapters has no warning of their base."""
    warnings = plan_search(search_config("ps", **adapters)).warnings
    assert not [line for line in warnings if "base" in line]


def test_a_person_chooses_among_pictures_alone(search_config):
    """The dry run of a choice between language models says what the search would."""
    with pytest.raises(EvoMergeError, match="is no model that the task choice scores"):
        plan_search(search_config("ps", fitness={"task": "choice"}))


def test_a_model_without_a_head(tiny, search_config, tmp_path):
    """A model saved without its head has nothing that a task of words could read."""
    folder = shutil.copytree(tiny, tmp_path / "tiny")
    edit_json(folder / "b" / "config.json", architectures=["LlamaModel"])
    with pytest.raises(
        EvoMergeError, match=r"b: LlamaModel \(model type 'llama'\) is no model that the task"
    ):
        evaluate_model(str(folder / "b"), search_config("ps"), split="search")

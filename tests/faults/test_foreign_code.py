"""Python code that comes with somebody else's model is not run unless the user has said so."""

import ast
import shutil
from pathlib import Path

import pytest
import warm
from classes import edit_json
from refused import refused

from hf_evomerge.checkpoints.open import open_source

ROOT = Path(__file__).parents[2]
LOADERS = {"from_pretrained", "from_config"}
WRITERS = {"generate", "_model_generate"}


def _files():
    folders = ("hf_evomerge", "space_app", "benchmarks")
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def _silent_loads(text):
    """Lines where transformers' Auto classes load, or models generate, without a word on code;
    `generate` may have none."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            verb = node.func.attr
            said = [
                ast.unparse(keyword.value)
                for keyword in node.keywords
                if keyword.arg == "trust_remote_code"
            ]
            loads = verb in LOADERS and owner.rpartition(".")[2].startswith("Auto")
            if (loads and not said) or (verb in WRITERS and said != ["False"]):
                yield node.lineno


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_every_load_says_whether_code_may_run(file):
    """Each call of an Auto class or of `generate` says trust_remote_code: transformers asks on
    standard input otherwise."""
    assert list(_silent_loads(file.read_text(encoding="utf-8"))) == []


def test_the_reader_of_calls_finds_a_silent_load():
    """The reader of the test above sees calls in functions and with a module's name in front, and
    options by name only."""
    text = (
        "def f(o):\n  transformers.AutoConfig.from_pretrained('x')\n  AutoModel.from_config(c, "
        "**o)\n"
    )
    assert list(_silent_loads(text)) == [2, 3]
    assert list(_silent_loads("AutoTokenizer.from_pretrained('x', trust_remote_code=False)")) == []
    text = (
        "m.generate(x)\nm.generate(x, trust_remote_code=True)\nm.generate(trust_remote_code=False)"
    )
    assert list(_silent_loads(text)) == [1, 2]


def test_a_search_asks_nothing_and_runs_nothing(tiny, tmp_path, search_config):
    """A source whose tokenizer brings code ends the search in one line, even where standard input
    says yes to anything."""
    folder = shutil.copytree(tiny / "a", tmp_path / "a")
    edit_json(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["own.Own", None]},
        tokenizer_class="Own",
    )
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast\n"
        "class Own(PreTrainedTokenizerFast): pass\n"
    )
    config = search_config(sources=[{"model": str(folder)}, {"model": str(tiny / "b")}])
    config.save(tmp_path / "search.yaml")
    says_yes = "import io, sys; sys.stdin = io.StringIO('y\\n' * 20); "
    ended = warm.run(
        says_yes + warm.COMMAND, "search", tmp_path / "search.yaml", "-o", tmp_path / "out"
    )
    assert not (tmp_path / "ran").exists()
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert (ended.returncode, len(errors)) == (1, 1), ended.stderr
    assert "its tokenizer cannot be read" in errors[0]
    assert "custom code" in errors[0]


@pytest.mark.parametrize("where", ["whole", "inside"])
def test_kernels_that_a_config_names_are_refused(tiny, tmp_path, where):
    """A config that names a repository of kernels, at any depth, is refused before transformers
    could fetch and run them."""
    folder = shutil.copytree(tiny / "a", tmp_path / "a")
    named = {"attn_implementation": "somebody/kernel"}
    edit_json(folder / "config.json", **(named if where == "whole" else {"text_config": named}))
    with refused(r"attn_implementation is 'somebody/kernel', code on the Hub"):
        open_source(folder).config  # noqa: B018

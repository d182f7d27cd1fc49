"""The examples in docstrings, README and docs run, on tiny models, as a reader would run them: in
one folder, in order."""

import doctest
import re
import shlex
import shutil
from copy import deepcopy
from importlib import import_module
from pathlib import Path

import pytest
import typer
from recipes import path_of
from searches import copy_of
from typer.testing import CliRunner

import hf_evomerge
from hf_evomerge import cli

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_evomerge"
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "skills/hf-evomerge/SKILL.md",
    *(
        str(page.relative_to(ROOT))
        for part in ("docs", "benchmarks/pages")
        for page in sorted((ROOT / part).rglob("*.md"))
    ),
]
SCRIPTS = ("docs/how-to.md", "docs/study.md")  # whose blocks are programs


def _text(file):
    return (ROOT / file).read_text(encoding="utf-8")


WITH_EXAMPLES = [file for file in sorted(PACKAGE.rglob("*.py")) if ">>> " in _text(file)]
# What needs something that is not here; each is tested on its own.
NOT_RUN = {
    "BitsAndBytesConfig": "tests/modeling/test_quantisation.py",
    "merge_and_unload": "tests/modeling/test_modeling.py",
    "sentence_transformers": "tests/fitness/test_embedding.py",
    "gradio_client": "tests/space/test_space_api.py",
    "SakanaAI/": "tests/test_released_models.py",
    "mhdang/": "tests/building/test_pipeline.py",
    "evollm-10b": "tests/building/test_evomistral.py",
}
OFFLINE = ("convert", "diff", "eval", "fold", "inspect", "merge", "search", "show")
MODELS = {  # what pages call the models of the tiny family
    "base": "base your-name/base runs/pretrain/checkpoint-500",
    "a": "japanese fine-tune-a your-name/fine-tune-a runs/pretrain/checkpoint-1000",
    "b": "maths fine-tune-b your-name/fine-tune-b runs/pretrain/checkpoint-1500",
}
MERGEKIT = """
merge_method: task_arithmetic
base_model: base
models:
  - {model: japanese, parameters: {weight: 0.5}}
  - {model: maths, parameters: {weight: 0.5}}
dtype: float32
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tiny, hybrid_search):
    """The folder that the examples are run in: a search, its file, a recipe, a mergekit file,
    models and problems."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("desk")
    copy_of(hybrid_search, folder / "my-search")
    shutil.copy(hybrid_search / "search.yaml", folder)
    problems = (file.read_text(encoding="utf-8") for file in sorted(tiny.glob("*.jsonl")))
    (folder / "problems.jsonl").write_text("".join(problems), encoding="utf-8")
    (folder / "mgsm_ja.tsv").write_text("問題\t1,000\n", encoding="utf-8")
    for original, names in MODELS.items():
        for name in names.split():
            shutil.copytree(tiny / original, folder / name)
    (folder / "mergekit.yml").write_text(MERGEKIT, encoding="utf-8")
    hf_evomerge.from_mergekit(MERGEKIT).recipe.save(folder / "recipe.yaml")
    sizes = {"vocab_size": 26, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    for name in ("deep-japanese", "deep-maths"):
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder / name)
    recipe = path_of(
        folder / "deep-japanese", folder / "deep-maths", hops=["0:0-1", "1:1", "0:2", "1:2"]
    )
    merged = hf_evomerge.build_model(recipe, folder / "your-name" / "merged")
    for file in tiny.glob("a/tokenizer*"):
        shutil.copy(file, merged)
    return folder


@pytest.fixture
def here(desk, tmp_path, monkeypatch):
    """A copy of the desk, which is the current folder."""
    monkeypatch.chdir(shutil.copytree(desk, tmp_path / "desk"))
    return tmp_path / "desk"


@pytest.fixture(scope="module")
def loaded(desk):
    """Two models of 32 layers, a merged one, and a tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = {"japanese": "deep-japanese", "maths": "deep-maths", "model": "your-name/merged"}
    models = {
        name: AutoModelForCausalLM.from_pretrained(desk / folder)
        for name, folder in folders.items()
    }
    return {**models, "tokenizer": AutoTokenizer.from_pretrained(desk / "japanese")}


@pytest.fixture
def names(here, loaded, monkeypatch, request):
    """What an example may use without making it: the public names, and of what is loaded copies of
    what it names."""
    from transformers import AutoModelForCausalLM

    for where in ("hf_evomerge.fitness.registry._TASKS", "hf_evomerge.merging.registry.METHODS"):
        module, _, registry = where.rpartition(".")
        monkeypatch.setattr(where, {**getattr(import_module(module), registry)})
    public = {name: getattr(hf_evomerge, name) for name in hf_evomerge.__all__}
    (where,) = request.node.callspec.params.values()  # a page or a module
    text = _text(where)
    used = {
        name: deepcopy(value) for name, value in loaded.items() if re.search(rf"\b{name}\b", text)
    }
    return {**public, **used, "AutoModelForCausalLM": AutoModelForCausalLM, "Path": Path}


@pytest.mark.parametrize(
    "file", WITH_EXAMPLES, ids=lambda file: file.relative_to(PACKAGE).as_posix()
)
def test_docstrings(file, names):
    """Every example in a docstring gives what it shows; only what talks to the Hub is left out."""
    module = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(module, extraglobs=names):
        for example in test.examples:
            if doctest.SKIP in example.options:
                told = f"needs no Hub and no converter, so let it run: {example.source}"
                assert re.search("push|reproduce|SakanaAI", example.source), told
        runner.run(test)
    assert runner.failures == 0


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in _text(page)])
def test_python_blocks(page, names):
    """The Python blocks of a page run, one after the other."""
    for block in re.findall(r"```python\n(.*?)```", _text(page), re.DOTALL):
        program = compile(block, page, "exec")
        if not any(word in block for word in NOT_RUN):
            exec(program, names | {"__name__": "__main__"} if page in SCRIPTS else names)


def _commands():
    """Every command line that a page, an example file or a command's own help shows, as words."""
    lines = []
    for page in PAGES:
        lines += re.findall(r"^ *(hf-evomerge .*)$", _text(page), re.MULTILINE)
    helps = [command.callback.__doc__ or "" for command in cli.app.registered_commands]
    for text in (*map(_text, PAGES), *helps):
        lines += re.findall(r"`(hf-evomerge [^`]*)`", text)
    for file in (ROOT / "examples").glob("*.yaml"):
        lines += re.findall(r"^#\s+(hf-evomerge .*)$", _text(file), re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in dict.fromkeys(lines)]


def test_commands_are_understood():
    """Every command line that is shown names a command, and arguments and options that it takes."""
    program = typer.main.get_command(cli.app)
    commands = _commands()
    assert len(commands) > 30
    for name, *words in commands:
        command = program.commands[name]
        if words and "--methods" not in words:  # a command that is only named has no arguments
            command.make_context(name, words)


@pytest.mark.slow
def test_commands_run(here):
    """Command lines that need neither a network nor a file of the reader's own do what they say."""
    ran = set()
    for name, *words in _commands():
        elsewhere = {"--push-to", "--gguf", "my-front"}.intersection(words)
        if name not in OFFLINE or not words or elsewhere or any(map(str.isupper, words)):
            continue
        made = words[words.index("--out") + 1] if "--out" in words else ""
        files = [word for word in words if "/" in word or word.endswith((".yaml", ".yml"))]
        if not all(Path(word).exists() for word in files if word != made):
            continue
        if name in ("merge", "fold"):  # the examples make the same folder more than once
            shutil.rmtree(made, ignore_errors=True)
        elif name == "convert" and made:
            Path(made).unlink(missing_ok=True)
        result = CliRunner().invoke(cli.app, [name, *words])
        assert result.exit_code == 0, (name, words, result.output)
        ran.add(name)
    assert ran == {*OFFLINE}

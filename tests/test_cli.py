"""The command line: what it prints, what it leaves, and that a user's mistake is one line and
status 1."""

import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from recipes import merge_of, path_of
from typer.testing import CliRunner

from hf_evomerge import cli
from hf_evomerge.building.build import build_model
from hf_evomerge.checkpoints.hashes import file_sha256
from hf_evomerge.checkpoints.inspect import inspect_model
from hf_evomerge.lines import visible
from hf_evomerge.merging.table import methods_table
from hf_evomerge.recipes.recipe import Recipe

COMMANDS = [command.name or command.callback.__name__ for command in cli.app.registered_commands]  # type: ignore[union-attr]

HELP = """
import json, sys
from typer.testing import CliRunner
from hf_evomerge.cli import app
runner = CliRunner()
pages = {name: runner.invoke(app, [*([name] if name else []), "--help"], terminal_width=200).output for name in sys.argv[1:]}
heavy = sorted({"torch", "transformers", "numpy", "matplotlib", "cma"} & set(sys.modules))
print(json.dumps([pages, heavy]))
"""  # noqa: E501

# What a command does without, in the order in which one process can show it: the last import
# transformers.
WITHOUT = {
    "merge --methods": {"torch", "transformers", "matplotlib"},
    "convert": {"torch", "transformers", "matplotlib"},
    "show": {"torch", "transformers", "matplotlib"},
    "inspect": {"torch", "sympy", "accelerate"},
    "inspect the merge": {"torch", "sympy", "accelerate"},
}
IN_TURN = """
import json, sys
from typer.testing import CliRunner
from hf_evomerge.cli import app, common
common.ends_with_command = True
said = []
for words in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    said.append([result.stdout, [name for name, module in sys.modules.items() if module is not None and "." not in name]])
print(json.dumps(said))
"""  # noqa: E501


def _invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def _error(*arguments):
    """Run a command that has to fail as a user's mistake does, and return its one line."""
    result = _invoke(*arguments)
    assert result.exit_code == 1, (result.output, result.exception)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert result.stdout == ""
    return lines[0]


@pytest.fixture
def search_file(search_settings, tmp_path):
    """A search file of the tiny family."""
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(search_settings()), encoding="utf-8")
    return file


@pytest.fixture
def recipe_file(tiny, tmp_path):
    """A recipe with a path through the tiny family."""
    file = tmp_path / "recipe.yaml"
    path_of(tiny / "a", tiny / "b", hops=["0:0", "1:1"], flow={"scales": [1, 0.5]}).save(file)
    return file


def test_help_has_examples_and_is_light():
    """Every command's help shows an example, the top page names every command, and none of it
    imports anything heavy."""
    done = subprocess.run(
        [sys.executable, "-c", HELP, "", *COMMANDS], capture_output=True, text=True, check=True
    )
    pages, heavy = json.loads(done.stdout)
    assert heavy == []
    assert len(COMMANDS) <= 15
    assert re.findall(r"─ (\w+) ─", pages[""]) == ["Options", "Start", "Search", "Models", "Share"]
    for name in COMMANDS:
        assert re.search(rf"│ {name} ", pages[""])
        assert "<bool>" not in pages[name]
        assert pages[name].count(f"hf-evomerge {name}") >= 2, f"{name}: usage, but no example"
        assert "docs/" not in pages[name], (
            f"{name}: the docs are not where the package is installed"
        )


def test_commands_import_what_they_need(hybrid_search, tiny):
    """Commands that look at files import no torch, most not even transformers, and say what they
    say beside torch."""
    arguments = {
        "convert": [hybrid_search / "recipe.yaml", "--to", "recipe"],
        "merge --methods": ["--methods"],
    }
    arguments |= {"show": [hybrid_search], "inspect": [tiny / "a", "--json"]}
    arguments["inspect the merge"] = [hybrid_search / "model", "--json"]
    words = [[command.split()[0], *map(str, arguments[command])] for command in WITHOUT]
    program = [sys.executable, "-c", IN_TURN, json.dumps(words)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for (command, without), (stdout, modules) in zip(
        WITHOUT.items(), json.loads(done.stdout), strict=True
    ):
        assert not without & set(modules), command
        if command.startswith("inspect"):
            assert json.loads(stdout) == json.loads(
                inspect_model(json.loads(stdout)["model"]).to_json()
            )


def test_the_program_has_a_version_and_runs_as_a_module():
    """``python -m hf_evomerge --version`` prints the package's version under the program's name."""
    done = subprocess.run(
        [sys.executable, "-m", "hf_evomerge", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"hf-evomerge {version('hf-evomerge')}\n"
    usage = subprocess.run(
        [sys.executable, "-m", "hf_evomerge", "merge"], capture_output=True, text=True, check=False
    )
    assert usage.returncode == 2
    assert "Usage: hf-evomerge merge" in usage.stderr


def test_search_show_and_eval(search_file, tmp_path):
    """A search prints its table and where things are; the study can be shown, and the model
    evaluated."""
    out = tmp_path / "out"
    result = _invoke("search", search_file, "--out", out, "--workers", 0)
    assert result.exit_code == 0, result.output
    for part in (
        "uniform average",
        "evolved PS *",
        f"recipe: {out / 'recipe.yaml'}",
        f"model:  {out / 'model'}",
    ):
        assert part in result.stdout
    assert "parameter space" in result.stderr
    again = _invoke("search", out)
    assert again.exit_code == 0
    assert again.stdout == result.stdout
    assert result.stdout.split("recipe: ")[0] in _invoke("show", out).stdout
    shown = _invoke("show", out, "--trials", "--best", 2).stdout
    assert "ps search over" in shown
    assert "ps (parameter space): 8 trials, 0 failed" in shown
    assert shown.count("task_arithmetic") == 2
    facts = json.loads(_invoke("show", out, "--best", 2, "--json").stdout)
    assert facts.keys() == {"space", "sources", "unit", "stages", "results"}
    (stage,) = facts["stages"]
    assert (stage["stage"], stage["trials"], stage["failed"], stage["evaluations"]) == (
        "ps",
        8,
        0,
        8,
    )
    assert stage["best"][0]["fitness"] >= stage["best"][1]["fitness"]
    assert facts["results"] == json.loads((out / "results.json").read_text())
    assert _invoke("inspect", out).stdout == _invoke("inspect", out / "model").stdout
    scored = _invoke("eval", out, "--split", "validation", "--show", 2)
    assert scored.exit_code == 0, scored.output
    assert "on 4 examples" in scored.stdout.splitlines()[0]
    assert scored.stdout.count("answered:") == 2
    also = _invoke("eval", out / "model", "--search", search_file, "--split", "validation")
    assert also.stdout.splitlines() == scored.stdout.splitlines()[:1]


def test_objects_for_programs(search_file, hybrid_search, tiny, tmp_path, monkeypatch):
    """With --json each of these commands prints one object and nothing else on standard output."""

    def told(*words):
        done = _invoke(*words, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    out = tmp_path / "out"
    plan = told("search", search_file, "--out", out, "--dry-run", "--workers", 3)
    assert (plan["workers"], plan["examples"]["search"]) == (3, 5)
    assert math.isclose(
        plan["minutes"], sum(each["minutes"] for each in plan["phases"]), abs_tol=0.01
    )
    found = told("search", search_file, "--out", out, "--workers", 0)
    assert found.pop("next")[0] == f"hf-evomerge eval {out} --show 3"
    assert found == told("show", out)
    assert found["results"] == json.loads((out / "results.json").read_text())
    scored = told("eval", out, "--split", "validation", "--show", 2)
    assert (scored["examples"], len(scored["answers"])) == (4, 2)
    assert scored["answers"][0].keys() == {"prompt", "expected", "answered", "right"}
    plain = tmp_path / "plain"
    assert told("fold", hybrid_search, "--out", plain) == {"folder": str(plain)}
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny / "search.jsonl", "problems.jsonl")
    with Path("problems.jsonl").open("a") as problems:
        problems.write((tiny / "test.jsonl").read_text())
    begun = told("init", tiny / "a", tiny / "b", "--data", "problems.jsonl", "--out", "b.yaml")
    assert begun["file"] == "b.yaml"
    assert begun["next"][0] == "hf-evomerge search b.yaml --out my-search --dry-run"
    assert any("problems in problems.jsonl" in line for line in begun["found"])


def test_no_model_is_announced_where_none_is_built(search_file, tmp_path):
    """With --no-model the recipe is left, and no model is made or spoken of."""
    result = _invoke("search", search_file, "--out", tmp_path / "out", "--no-model", "--workers", 0)
    assert result.exit_code == 0
    assert "model:" not in result.stdout
    assert not (tmp_path / "out" / "model").exists()
    for words in (["inspect"], ["eval"], ["fold", "--out", tmp_path / "plain"]):
        line = _error(words[0], tmp_path / "out", *words[1:])
        assert line.endswith(
            f"has not built its winner yet; go on with `hf-evomerge search {tmp_path / 'out'}`"
        )


def test_dry_runs_write_nothing(search_file, recipe_file, tmp_path):
    """A dry run of a search or a merge says what would be done and writes nothing at all."""
    before = sorted(tmp_path.rglob("*"))
    search = _invoke("search", search_file, "--out", tmp_path / "out", "--dry-run")
    assert search.exit_code == 0, search.output
    assert (
        "ps: task_arithmetic, 2 numbers to evolve, 8 evaluations, 2 generations of 4 on 5 of "
        "5 examples"
    ) in search.stdout
    assert "examples: 5 search, 4 validation, 6 test" in search.stdout
    assert search.stdout.startswith("in all, with workers=")  # as many as this machine takes
    merge = _invoke("merge", recipe_file, "--out", tmp_path / "out", "--dry-run")
    assert merge.stdout.startswith("fine: a path of 2 hops")
    checked = json.loads(
        _invoke("merge", recipe_file, "--out", tmp_path / "out", "--dry-run", "--json").stdout
    )
    assert (checked["folder"], checked["built"]) == (str(tmp_path / "out"), False)
    assert checked.keys() == {"folder", "built", "recipe", "summary", "warnings", "tensors"}
    assert sorted(tmp_path.rglob("*")) == before


def test_merge(recipe_file, tmp_path):
    """A merge is built from a recipe file, refused where the folder exists, and replaced where that
    is asked for."""
    out = tmp_path / "merged"
    assert _invoke("merge", recipe_file, "--out", out).stdout == f"built {out}\n"
    shown = _invoke("inspect", out).stdout
    assert "EvoMergedForCausalLM" in shown
    assert "hop   2  1:1                      scale 0.5000" in shown
    assert "exists already; choose another folder, or pass --overwrite" in _error(
        "merge", recipe_file, "--out", out
    )
    built = json.loads(_invoke("merge", recipe_file, "--out", out, "--overwrite", "--json").stdout)
    assert (built["folder"], built["built"], built["recipe"]) == (
        str(out),
        True,
        Recipe.load(recipe_file).key,
    )
    assert built["sha256"]["model.safetensors"] == file_sha256(out / "model.safetensors")


BAD_SEARCHES = {
    "unknown key": ({"spaec": "ps"}, "spaec"),
    "unknown method": ({"merge": {"method": "magic"}}, "'magic' is not known"),
    "missing source": (
        {"sources": [{"model": "./nowhere"}, {"model": "./nowhere"}]},
        "./nowhere: no such folder",
    ),
    "missing data": ({"data": {"search": {"jsonl": "nowhere.jsonl"}}}, "nowhere.jsonl"),
}


@pytest.mark.parametrize("mistake", BAD_SEARCHES)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["search", "dry run"])
def test_a_wrong_search_file_is_one_line(mistake, dry, search_settings, tmp_path):
    """A mistake in a search file is one line that names it, with status 1, and nothing is
    written."""
    changes, message = BAD_SEARCHES[mistake]
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump({**search_settings(), **changes}), encoding="utf-8")
    assert message in _error("search", file, "--out", tmp_path / "out", *dry)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"space: [ps", "not valid YAML"),
        (b"- a\n- b\n", "expected a mapping"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"", "the file is empty"),
        (b'{"prompt": "a"}\n{"prompt": "b"}', "JSON lines hold data, which a search file names"),
    ],
    ids=["missing", "bad YAML", "a list", "binary", "empty", "JSON lines"],
)
@pytest.mark.parametrize(
    "command",
    [["search"], ["merge"], ["eval", "model", "--search"]],
    ids=lambda command: command[0],
)
def test_an_unreadable_file_is_one_line(command, content, message, tmp_path):
    """A file that is missing, no YAML, or something else altogether is one line that names the
    file."""
    file = tmp_path / "given.yaml"
    if content is not None:
        file.write_bytes(content)
    line = _error(*command, file, *([] if command[0] == "eval" else ["--out", tmp_path / "out"]))
    assert message in line
    assert str(file) in line
    assert not (tmp_path / "out").exists()


def test_other_mistakes_are_one_line(search_file, recipe_file, tiny, tmp_path):
    """A wrong folder, split, model or output is one line as well."""
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    assert "no study.db here" in _error("search", tmp_path / "empty")
    assert "no study.db here" in _error("show", tmp_path / "odd")
    assert "did you mean test?" in _error(
        "eval", tiny / "a", "--search", search_file, "--split", "tes"
    )
    assert "no such folder" in _error("eval", "./nowhere", "--search", search_file)
    assert "no task is known for this model; add --search search.yaml" in _error("eval", tiny / "a")
    assert str(tmp_path / "file") in _error("search", search_file, "--out", tmp_path / "file")
    assert str(tmp_path / "file") in _error(
        "search", search_file, "--out", tmp_path / "file" / "deeper"
    )
    assert str(tmp_path / "file") in _error(
        "merge", recipe_file, "--out", tmp_path / "file" / "deeper"
    )
    (tmp_path / "empty" / "study.db").write_text("not a data base at all")
    assert "not a study" in _error("show", tmp_path / "empty")
    assert "not a study" in _error("search", search_file, "--out", tmp_path / "empty")


def test_a_dry_run_looks_at_the_folder(search_settings, search_file, recipe_file, tmp_path):
    """A folder that the search could not use is refused by the dry run as by the search; one that
    it can go on in is fine."""
    (tmp_path / "file").write_text("no folder")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert "is a file, not a folder; choose another folder" in _error(
            "search", search_file, "--out", out, "--dry-run"
        )
        assert str(tmp_path / "file") in _error("merge", recipe_file, "--out", out, "--dry-run")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "results.json").write_text("{}")
    assert "holds a results.json but no study" in _error(
        "search", search_file, "--out", tmp_path / "used", "--dry-run"
    )
    assert (
        _invoke(
            "search", search_file, "--out", tmp_path / "out", "--no-model", "--workers", 0
        ).exit_code
        == 0
    )
    assert _invoke("search", search_file, "--out", tmp_path / "out", "--dry-run").exit_code == 0
    search_file.write_text(yaml.safe_dump(search_settings(compute={"seed": 7})), encoding="utf-8")
    for dry in ([], ["--dry-run"]):
        assert "seed was 0 and is 7" in _error(
            "search", search_file, "--out", tmp_path / "out", *dry
        )


def test_a_folder_that_may_not_be_written_to_is_refused(
    search_file, recipe_file, tmp_path, monkeypatch
):
    """A folder that belongs to others is an error before any work."""

    def refused(prefix, dir):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refused)
    message = (
        f"{tmp_path / 'a' / 'b'}: {tmp_path} may not be written to (Permission denied); choose "
        "another folder, or see whose it is"
    )
    for dry in ([], ["--dry-run"]):
        assert message in _error("search", search_file, "--out", tmp_path / "a" / "b", *dry)
        assert message in _error("merge", recipe_file, "--out", tmp_path / "a" / "b", *dry)


def test_convert_replaces_no_file_unasked(recipe_file, tmp_path):
    """A file that exists is left as it is; with --overwrite it is replaced."""
    there = tmp_path / "there.yaml"
    there.write_text("mine")
    command = ("convert", recipe_file, "--to", "recipe", "--out", there)
    assert (
        _error(*command)
        == f"error: {there}: exists already; choose another name, or pass --overwrite"
    )
    assert there.read_text() == "mine"
    assert _invoke(*command, "--overwrite").exit_code == 0
    assert Recipe.load(there) == Recipe.load(recipe_file)


def test_a_file_for_another_command_says_which(search_file, recipe_file, tmp_path):
    """A recipe given to `search`, and a search file given to `merge`, are told apart from
    mistakes."""
    assert _error("search", recipe_file, "--out", tmp_path / "out") == (
        f"error: {recipe_file}: this is a recipe, not a search file; build it with "
        "`hf-evomerge merge FILE --out FOLDER`"
    )
    assert _error("merge", search_file, "--out", tmp_path / "out") == (
        f"error: {search_file}: this is a search file, not a recipe; run it with "
        "`hf-evomerge search FILE --out FOLDER`"
    )


def test_what_the_system_refuses_is_said_in_words(recipe_file, tmp_path):
    """An error of the system comes without its number, and with what to do."""
    (tmp_path / "file").write_text("no folder")
    text = _error("convert", recipe_file, "--to", "recipe", "--out", tmp_path / "file" / "x")
    assert text == (
        f"error: Not a directory: '{tmp_path / 'file' / 'x'}'; choose another place, or see "
        "who may write there"
    )


def test_models_that_are_none(recipe_file, tiny, tmp_path):
    """A file, a name with spaces and a merged model with a path are refused as sources, with what
    to give."""
    weights = tiny / "a" / "model.safetensors"
    assert _error("inspect", weights) == (
        f"error: {weights}: a file; give the folder that holds the config and the weights"
    )
    assert "some one/model: no such folder" in _error("inspect", "some one/model")
    built = build_model(path_of(tiny / "a", hops="0:0-1"), tmp_path / "built")
    for recipe in (merge_of(built), path_of(built, hops="0:0")):
        recipe.save(tmp_path / "again.yaml")
        assert _error("merge", tmp_path / "again.yaml", "--out", tmp_path / "out") == (
            f"error: {built}: a merged model with a path of its own; name the models that it "
            "was made from, or a copy that "
            "`fold` has written"
        )


def test_an_interrupt_keeps_what_is_done(search_file, tmp_path, monkeypatch):
    """Ctrl-C ends with status 130 and one line with the command that goes on, and the search can be
    resumed."""
    from hf_evomerge.search.study.study import Study

    def interrupted(self, trial):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Study, "add_trial", interrupted)
        patched.setattr(sys, "argv", ["hf-evomerge", "search", "a b.yaml", "--out", "x"])
        result = _invoke("search", search_file, "--out", tmp_path / "out", "--workers", 0)
    assert result.exit_code == 130
    assert (
        result.stderr.splitlines()[-1]
        == "interrupted; go on with `hf-evomerge search 'a b.yaml' --out x`"
    )
    assert "Traceback" not in result.stderr
    assert _invoke("search", tmp_path / "out", "--no-model", "--workers", 0).exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ["search", "nowhere", "--dry-run"],
        ["eval", "./nowhere"],
        ["push", "nowhere", "me/merge", "--dry-run"],
    ],
)
def test_a_terminal_is_told_at_once_what_is_read(words, capsys, monkeypatch):
    """Commands that read models say so in a terminal, before anything else."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit):
        cli.app(words)
    told, error, *_ = capsys.readouterr().err.splitlines()
    assert f"reading {words[1]}" in told
    assert "error: " in error


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_reader_that_has_read_enough(more, hybrid_search):
    """Where nobody reads what a command prints, as after `| head`, it ends without a word."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "hf_evomerge", "show", str(hybrid_search), *more]
    ended = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_examples_are_copied(tmp_path, monkeypatch):
    """An example file is copied under its own name or another; a wrong name is told all of them."""
    files = {file.stem: file for file in (Path(__file__).parents[1] / "examples").glob("*.*")}
    monkeypatch.chdir(tmp_path)
    assert _invoke("init", "--example", "hf_job").exit_code == 0
    assert Path("hf_job.py").read_bytes() == files["hf_job"].read_bytes()
    assert _invoke("init", "--example", "small-ps", "--out", "a/search.yaml").exit_code == 0
    assert Path("a/search.yaml").read_bytes() == files["small-ps"].read_bytes()
    assert "exists already" in _error("init", "--example", "evollm-jp-ps", "--out", "a/search.yaml")
    assert (
        _error("init", "--example", "small")
        == f"error: --example small: there are {', '.join(sorted(files))}"
    )
    for given in (
        ("--example", "small-ps", "a"),
        ("--demo", "a"),
        ("--demo", "--base", "a"),
        ("--demo", "--example", "x"),
    ):
        assert "leave out models" in _error("init", *given)
    assert "--data FILE is missing: problems" in _error("init", "a", "b")
    assert "two models or more and --data FILE, or --demo, or" in _error("init")
    Path("problems.jsonl").write_text("mine", encoding="utf-8")
    assert "problems.jsonl: exists already" in _error("init", "--demo")
    assert (Path("problems.jsonl").read_text(encoding="utf-8"), Path("search.yaml").exists()) == (
        "mine",
        False,
    )


@pytest.mark.parametrize(("pip", "install"), [(object(), "-m pip install"), (None, "uv pip")])
def test_an_extension_of_hf_calls_itself_so(pip, install, tmp_path, monkeypatch):
    """In the environment of `hf extensions install`, next steps, hints and help name commands that
    reach it; elsewhere they are as they stand. The demo's models are beside its file."""
    monkeypatch.chdir(tmp_path)
    needs = "needs gradio: pip install 'hf-evomerge[space]'"
    assert visible(f"run `hf-evomerge show x`; {needs}") == f"run `hf-evomerge show x`; {needs}"
    monkeypatch.setattr(sys, "prefix", "/home/me/.local/share/hf/extensions/hf-evomerge/venv")
    monkeypatch.setattr("hf_evomerge.lines.find_spec", lambda name: pip)
    said = visible(f"`hf-evomerge show x`; {needs}; /x/hf-evomerge y; hf-evomerge 0.1.0")
    assert said.startswith("`hf evomerge show x`; needs gradio: ")
    assert said.endswith("; /x/hf-evomerge y; hf-evomerge 0.1.0")
    assert install in said
    assert sys.executable in said
    done = _invoke("init", "--demo", "--no-measure")
    assert "\nhf evomerge search search.yaml --out my-search --dry-run\n" in done.stdout
    assert "hf-evomerge" not in done.stdout
    assert Path("models/base/config.json").is_file()
    assert "model: models/japanese" in Path("search.yaml").read_text()
    told = _invoke("show", "--help").stdout
    assert "hf evomerge show my-search --trials" in told
    assert "`hf-evomerge" not in told


def test_methods():
    """`merge --methods` prints the table of merge methods."""
    assert _invoke("merge", "--methods").stdout.strip() == methods_table().strip()


def test_a_search_of_choices_opens_a_page(search_settings, search_file, tmp_path, monkeypatch):
    """Where a person is the fitness, `search` serves the page that chooses, and evaluates
    nothing."""
    search_file.write_text(
        yaml.safe_dump(search_settings(fitness={"task": "choice"})), encoding="utf-8"
    )
    opened = []
    page = SimpleNamespace(css="", launch=lambda **how: opened.append(how["allowed_paths"]))
    monkeypatch.setattr(
        "hf_evomerge.search.ask_tell.choosing.Chooser", lambda config, out: config.fitness.task
    )
    monkeypatch.setattr(
        "hf_evomerge.search.ask_tell.choice_page.choice_page",
        lambda chooser: opened.append(chooser) or page,
    )
    assert _invoke("search", search_file, "--out", tmp_path / "out").exit_code == 0
    assert opened == ["choice", [str(tmp_path / "out")]]


def test_folders_that_are_written_by_default(search_file, recipe_file, tmp_path, monkeypatch):
    """A study is named after its file, and `merge` builds its winner there; a recipe becomes
    `merged`."""
    monkeypatch.chdir(tmp_path)
    assert "has not ended; go on with `hf-evomerge search" in _no_winner(search_file, tmp_path)
    assert _invoke("search", search_file, "--no-model", "--workers", 0).exit_code == 0
    assert "leave out --out" in _error("search", "search", "--out", "other")
    assert _invoke("merge", "search").stdout == "built search/model\n"
    assert Path("search/model/recipe.yaml").read_bytes() == Path("search/recipe.yaml").read_bytes()
    assert "one objective, and no front" in _error("merge", "search", "--pick", 0)
    assert _invoke("merge", recipe_file).stdout == "built merged\n"
    assert "is no study" in _error("merge", recipe_file, "--pick", 0)


def _no_winner(search_file, folder):
    """What `merge` says of a study that has just begun."""
    from hf_evomerge.search.file.config import SearchConfig
    from hf_evomerge.search.study.study import Study

    Study.create(folder / "begun", SearchConfig.load(search_file).model_dump(mode="json")).close()
    return _error("merge", folder / "begun")


def test_a_folder_is_shown_here(tmp_path, monkeypatch):
    """The folder of a search is shown on this machine; what is no folder is the name of a Space,
    which needs its model."""
    shown = []
    monkeypatch.setattr(
        "hf_evomerge.hub.space.run_space", lambda model, **how: shown.append((model, how))
    )
    for words in (["space", tmp_path], ["space", "--local", "me/merge"]):
        assert _invoke(*words).exit_code == 0
    assert _invoke("space", tmp_path, "--port", 8000, "--host", "0.0.0.0").exit_code == 0
    assert [model for model, _ in shown] == [str(tmp_path), "me/merge", str(tmp_path)]
    assert (shown[2][1]["port"], shown[2][1]["host"], shown[2][1]["share"]) == (
        8000,
        "0.0.0.0",
        False,
    )
    assert "are for a page on this machine" in _error("space", "me/merge", "--share")
    assert (
        "me/merge: there is no such folder here; for a Space on the Hub give the Space's "
        "name and --model"
    ) in _error("space", "me/merge")
    assert "leave out the Space's name" in _error("space", tmp_path, "--local", "me/merge")


def test_a_config_commands_no_terminal(tiny, tmp_path):
    """Control characters, and marks that turn a line around, of a stranger's config are shown as
    question marks by inspect and diff."""
    folder = shutil.copytree(tiny / "a", tmp_path / "a\x1b[5m")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Llama\x1b[5m\x07\u202eForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    for words in (["inspect", str(folder)], ["diff", str(folder), str(tiny / "b")]):
        told = CliRunner().invoke(cli.app, words).output
        assert "?" in told
        assert not set("\x1b\x07\u202e") & set(told)

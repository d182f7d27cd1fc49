"""The command line: what it prints, what it leaves, and that a user's mistake is one line and
status 1."""

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from classes import edit_json
from recipes import merge_of, path_of
from typer.testing import CliRunner

from hf_evomerge import cli
from hf_evomerge.building.build import build_model
from hf_evomerge.checkpoints.hashes import file_sha256
from hf_evomerge.checkpoints.inspect import inspect_model
from hf_evomerge.lines import visible
from hf_evomerge.merging.table import methods_table
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.study.study import Study

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
    "convert {found}/recipe.yaml --to recipe": {"torch", "transformers", "matplotlib"},
    "show {found}": {"torch", "transformers", "matplotlib"},
    "inspect {tiny}/a --json": {"torch", "sympy", "accelerate"},
    "inspect {found}/model --json": {"torch", "sympy", "accelerate"},
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


def _invoke(line):
    """Run a command line as one types it."""
    return CliRunner().invoke(cli.app, shlex.split(line))


def _said(line):
    """Run a command that has to succeed, and return what it printed."""
    result = _invoke(line)
    assert result.exit_code == 0, result.output
    return result.stdout


def _object(line):
    """Run a command with --json, and return the one object that it prints."""
    return json.loads(_said(f"{line} --json"))


def _error(line):
    """Run a command that has to fail as a user's mistake does, and return its one line."""
    result = _invoke(line)
    assert (result.exit_code, result.stdout) == (1, ""), (result.output, result.exception)
    (said,) = result.stderr.splitlines()
    assert said.startswith("error: ")
    return said


def _python(*arguments, check=True):
    """Run Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=check
    )


@pytest.fixture
def write_search(search_settings, tmp_path):
    """Writes a search file of the tiny family; keywords replace whole sections."""

    def write(**more):
        file = tmp_path / "search.yaml"
        file.write_text(yaml.safe_dump(search_settings(**more)), encoding="utf-8")
        return file

    return write


@pytest.fixture
def search_file(write_search):
    """A search file of the tiny family."""
    return write_search()


@pytest.fixture
def recipe_file(tiny, tmp_path):
    """A recipe with a path through the tiny family."""
    file = tmp_path / "recipe.yaml"
    path_of(tiny / "a", tiny / "b", hops=["0:0", "1:1"], flow={"scales": [1, 0.5]}).save(file)
    return file


def test_help_has_examples_and_is_light():
    """Every command's help shows an example, the top page names every command, and none of it
    imports anything heavy."""
    pages, heavy = json.loads(_python("-c", HELP, "", *COMMANDS).stdout)
    assert heavy == []
    assert len(COMMANDS) <= 15
    assert re.findall(r"─ (\w+) ─", pages[""]) == ["Options", "Start", "Search", "Models", "Share"]
    for name in COMMANDS:
        assert re.search(rf"│ {name} ", pages[""])
        assert "<bool>" not in pages[name]
        assert pages[name].count(f"hf-evomerge {name}") >= 2, f"{name}: usage, but no example"
        assert "docs/" not in pages[name], f"{name}: an installed package has no docs"


def test_commands_import_what_they_need(hybrid_search, tiny):
    """Commands that look at files import no torch, most not even transformers, and say what they
    say beside torch."""
    words = [line.format(tiny=tiny, found=hybrid_search).split() for line in WITHOUT]
    done = _python("-c", IN_TURN, json.dumps(words), check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for (line, without), (stdout, modules) in zip(WITHOUT.items(), told, strict=True):
        assert not without & set(modules), line
        if line.startswith("inspect"):
            report = json.loads(stdout)
            assert report == json.loads(inspect_model(report["model"]).to_json())


def test_the_program_has_a_version_and_runs_as_a_module():
    """``python -m hf_evomerge --version`` prints the package's version under the program's name."""
    done = _python("-m", "hf_evomerge", "--version")
    assert done.stdout == f"hf-evomerge {version('hf-evomerge')}\n"
    usage = _python("-m", "hf_evomerge", "merge", check=False)
    assert usage.returncode == 2
    assert "Usage: hf-evomerge merge" in usage.stderr


def test_search_show_and_eval(search_file, tmp_path):
    """A search prints its table and where things are; the study can be shown, and the model
    evaluated."""
    out = tmp_path / "out"
    result = _invoke(f"search {search_file} --out {out} --workers 0")
    assert result.exit_code == 0, result.output
    for part in ("uniform average", "evolved PS *", f"recipe: {out}/recipe.yaml", f"model:  {out}"):
        assert part in result.stdout
    assert "parameter space" in result.stderr
    assert _said(f"search {out}") == result.stdout
    assert result.stdout.split("recipe: ")[0] in _said(f"show {out}")
    shown = _said(f"show {out} --trials --best 2")
    assert "ps search over" in shown
    assert "ps (parameter space): 8 trials, 0 failed" in shown
    assert shown.count("task_arithmetic") == 2
    facts = _object(f"show {out} --best 2")
    assert facts.keys() == {"space", "sources", "unit", "stages", "results"}
    (stage,) = facts["stages"]
    counts = {"stage": "ps", "trials": 8, "failed": 0, "evaluations": 8}
    assert counts.items() <= stage.items()
    assert stage["best"][0]["fitness"] >= stage["best"][1]["fitness"]
    assert facts["results"] == json.loads((out / "results.json").read_text())
    assert _said(f"inspect {out}") == _said(f"inspect {out}/model")
    scored = _said(f"eval {out} --split validation --show 2")
    assert "on 4 examples" in scored.splitlines()[0]
    assert scored.count("answered:") == 2
    also = _said(f"eval {out}/model --search {search_file} --split validation")
    assert also.splitlines() == scored.splitlines()[:1]


def test_objects_for_programs(search_file, hybrid_search, tiny, tmp_path, monkeypatch):
    """With --json each of these commands prints one object and nothing else on standard output."""
    out = tmp_path / "out"
    plan = _object(f"search {search_file} --out {out} --dry-run --workers 3")
    assert (plan["workers"], plan["examples"]["search"]) == (3, 5)
    minutes = sum(each["minutes"] for each in plan["phases"])
    assert plan["minutes"] == pytest.approx(minutes, abs=0.01)
    found = _object(f"search {search_file} --out {out} --workers 0")
    assert found.pop("next")[0] == f"hf-evomerge eval {out} --show 3"
    assert found == _object(f"show {out}")
    scored = _object(f"eval {out} --split validation --show 2")
    assert (scored["examples"], len(scored["answers"])) == (4, 2)
    assert scored["answers"][0].keys() == {"prompt", "expected", "answered", "right"}
    plain = tmp_path / "plain"
    assert _object(f"fold {hybrid_search} --out {plain}") == {"folder": str(plain)}
    monkeypatch.chdir(tmp_path)
    texts = [(tiny / f"{split}.jsonl").read_text() for split in ("search", "test")]
    Path("problems.jsonl").write_text("".join(texts))
    begun = _object(f"init {tiny}/a {tiny}/b --data problems.jsonl --out b.yaml")
    assert begun["file"] == "b.yaml"
    assert begun["next"][0] == "hf-evomerge search b.yaml --out my-b --dry-run"
    assert any("problems in problems.jsonl" in line for line in begun["found"])


def test_no_model_is_announced_where_none_is_built(search_file, tmp_path):
    """With --no-model the recipe is left, and no model is made or spoken of."""
    out = tmp_path / "out"
    assert "model:" not in _said(f"search {search_file} --out {out} --no-model --workers 0")
    assert not (out / "model").exists()
    for line in (f"inspect {out}", f"eval {out}", f"fold {out} --out {tmp_path}/plain"):
        assert _error(line).endswith(
            f"has not built its winner yet; go on with `hf-evomerge search {out}`"
        )


def test_dry_runs_write_nothing(search_file, recipe_file, tmp_path):
    """A dry run of a search or a merge says what would be done and writes nothing at all."""
    out = tmp_path / "out"
    before = sorted(tmp_path.rglob("*"))
    search = _said(f"search {search_file} --out {out} --dry-run")
    assert "ps: task_arithmetic, 2 numbers to evolve, 8 evaluations, 2 generations of 4" in search
    assert "examples: 5 search, 4 validation, 6 test" in search
    assert search.startswith("in all, with workers=")  # as many as this machine takes
    merge = f"merge {recipe_file} --out {out} --dry-run"
    assert _said(merge).startswith("fine: a path of 2 hops")
    checked = _object(merge)
    assert (checked["folder"], checked["built"]) == (str(out), False)
    assert checked.keys() == {"folder", "built", "recipe", "summary", "warnings", "tensors"}
    assert sorted(tmp_path.rglob("*")) == before


def test_merge(recipe_file, tmp_path):
    """A merge is built from a recipe file, refused where the folder exists, and replaced where that
    is asked for."""
    out = tmp_path / "merged"
    line = f"merge {recipe_file} --out {out}"
    assert _said(line) == f"built {out}\n"
    shown = _said(f"inspect {out}")
    assert "EvoMergedForCausalLM" in shown
    assert "hop   2  1:1                      scale 0.5000" in shown
    assert "exists already; choose another folder, or pass --overwrite" in _error(line)
    built = _object(f"{line} --overwrite")
    wanted = {"folder": str(out), "built": True, "recipe": Recipe.load(recipe_file).key}
    assert wanted.items() <= built.items()
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
@pytest.mark.parametrize("dry", ["", " --dry-run"], ids=["search", "dry run"])
def test_a_wrong_search_file_is_one_line(mistake, dry, write_search, tmp_path):
    """A mistake in a search file is one line that names it, with status 1, and nothing is
    written."""
    changes, message = BAD_SEARCHES[mistake]
    file = write_search(**changes)
    assert message in _error(f"search {file} --out {tmp_path}/out{dry}")
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
    "line", ["search {} --out out", "merge {} --out out", "eval model --search {}"]
)
def test_an_unreadable_file_is_one_line(line, content, message, tmp_path, monkeypatch):
    """A file that is missing, no YAML, or something else altogether is one line that names the
    file."""
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("given.yaml").write_bytes(content)
    said = _error(line.format("given.yaml"))
    assert message in said
    assert "given.yaml" in said
    assert not Path("out").exists()


def test_other_mistakes_are_one_line(search_file, recipe_file, tiny, tmp_path, monkeypatch):
    """A wrong folder, split, model or output is one line as well."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("empty").mkdir()
    Path("other").mkdir()
    Path("other/study.db").write_text("not a data base at all")
    for line, message in {
        "search empty": "no study.db here",
        "show empty": "no study.db here",
        "show other": "not a study",
        "search search.yaml --out other": "not a study",
        f"eval {tiny}/a --search search.yaml --split tes": "did you mean test?",
        "eval ./nowhere --search search.yaml": "no such folder",
        f"eval {tiny}/a": "no task is known for this model; add --search search.yaml",
        "search search.yaml --out file": "file",
        "search search.yaml --out file/deeper": "file",
        "merge recipe.yaml --out file/deeper": "file",
    }.items():
        assert message in _error(line)


def test_a_dry_run_looks_at_the_folder(write_search, recipe_file, tmp_path, monkeypatch):
    """A folder that the search could not use is refused by the dry run as by the search; one that
    it can go on in is fine."""
    monkeypatch.chdir(tmp_path)
    write_search()
    Path("file").touch()
    for out in ("file", "file/deeper"):
        told = _error(f"search search.yaml --out {out} --dry-run")
        assert "is a file, not a folder; choose another folder" in told
        assert "file" in _error(f"merge recipe.yaml --out {out} --dry-run")
    Path("used").mkdir()
    Path("used/results.json").write_text("{}")
    told = _error("search search.yaml --out used --dry-run")
    assert "holds a results.json but no study" in told
    _said("search search.yaml --out out --no-model --workers 0")
    _said("search search.yaml --out out --dry-run")
    write_search(compute={"seed": 7})
    for dry in ("", " --dry-run"):
        assert "seed was 0 and is 7" in _error(f"search search.yaml --out out{dry}")


@pytest.mark.parametrize("dry", ["", " --dry-run"])
def test_a_folder_that_may_not_be_written_to_is_refused(
    dry, search_file, recipe_file, tmp_path, monkeypatch
):
    """A folder that belongs to others is an error before any work."""

    def refused(prefix, dir):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refused)
    out = tmp_path / "a" / "b"
    for command in (f"search {search_file}", f"merge {recipe_file}"):
        said = _error(f"{command} --out {out}{dry}")
        assert f"{out}: {tmp_path} may not be written to (Permission denied); choose ano" in said


def test_convert_replaces_no_file_unasked(recipe_file, tmp_path):
    """A file that exists is left as it is; with --overwrite it is replaced."""
    there = tmp_path / "there.yaml"
    there.write_text("mine")
    line = f"convert {recipe_file} --to recipe --out {there}"
    assert f"{there}: exists already; choose another name, or pass --overwrite" in _error(line)
    assert there.read_text() == "mine"
    _said(f"{line} --overwrite")
    assert Recipe.load(there) == Recipe.load(recipe_file)


def test_a_file_for_another_command_says_which(search_file, recipe_file):
    """A recipe given to `search`, and a search file given to `merge`, are told apart from
    mistakes."""
    for line, told in (
        (f"search {recipe_file}", "a recipe, not a search file; build it with `hf-evomerge merge "),
        (f"merge {search_file}", "a search file, not a recipe; run it with `hf-evomerge search "),
    ):
        assert f": this is {told}FILE --out FOLDER`" in _error(f"{line} --out out")


def test_what_the_system_refuses_is_said_in_words(recipe_file, tmp_path):
    """An error of the system comes without its number, and with what to do."""
    out = f"{recipe_file}/x"
    assert _error(f"convert {recipe_file} --to recipe --out {out}") == (
        f"error: Not a directory: '{out}'; choose another place, or see who may write there"
    )


def test_models_that_are_none(tiny, tmp_path):
    """A file, a name with spaces and a merged model with a path are refused as sources, with what
    to give."""
    weights = tiny / "a" / "model.safetensors"
    told = _error(f"inspect {weights}")
    assert f"{weights}: a file; give the folder that holds the config and the weights" in told
    assert "some one/model: no such folder" in _error("inspect 'some one/model'")
    built = build_model(path_of(tiny / "a", hops="0:0-1"), tmp_path / "built")
    for recipe in (merge_of(built), path_of(built, hops="0:0")):
        recipe.save(tmp_path / "again.yaml")
        told = _error(f"merge {tmp_path}/again.yaml --out {tmp_path}/out")
        assert told.startswith(f"error: {built}: a merged model with a path of its own; name the m")


def test_an_interrupt_keeps_what_is_done(search_file, tmp_path, monkeypatch):
    """Ctrl-C ends with status 130 and one line with the command that goes on, and the search can be
    resumed."""

    def interrupted(self, trial):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Study, "add_trial", interrupted)
        patched.setattr(sys, "argv", ["hf-evomerge", "search", "a b.yaml", "--out", "x"])
        result = _invoke(f"search {search_file} --out {tmp_path}/out --workers 0")
    assert result.exit_code == 130
    told = "interrupted; go on with `hf-evomerge search 'a b.yaml' --out x`"
    assert result.stderr.splitlines()[-1] == told
    assert "Traceback" not in result.stderr
    _said(f"search {tmp_path}/out --no-model --workers 0")


@pytest.mark.parametrize(
    "line", ["search nowhere --dry-run", "eval ./nowhere", "push nowhere me/merge --dry-run"]
)
def test_a_terminal_is_told_at_once_what_is_read(line, capsys, monkeypatch):
    """Commands that read models say so in a terminal, before anything else."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    words = line.split()
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
    for line, name in {
        "hf_job": "hf_job.py",
        "small-ps --out a/search.yaml": "a/search.yaml",
    }.items():
        _said(f"init --example {line}")
        assert Path(name).read_bytes() == files[line.split()[0]].read_bytes()
    Path("problems.jsonl").write_text("mine", encoding="utf-8")
    for line, told in {
        "--example evollm-jp-ps --out a/search.yaml": "exists already",
        "--example small": f"--example small: there are {', '.join(sorted(files))}",
        "--example small-ps a": "leave out models",
        "--demo a": "leave out models",
        "--demo --base a": "leave out models",
        "--demo --example x": "leave out models",
        "a b": "--data FILE is missing: problems",
        "": "two models or more and --data FILE, or --demo, or",
        "--demo": "problems.jsonl: exists already",
    }.items():
        assert told in _error(f"init {line}")
    assert Path("problems.jsonl").read_text(encoding="utf-8") == "mine"
    assert not Path("search.yaml").exists()


@pytest.mark.parametrize(("pip", "install"), [(object(), "-m pip install"), (None, "uv pip")])
def test_an_extension_of_hf_calls_itself_so(pip, install, tmp_path, monkeypatch):
    """In the environment of `hf extensions install`, next steps, hints and help name commands that
    reach it; elsewhere they are as they stand. The demo's models are beside its file."""
    monkeypatch.chdir(tmp_path)
    text = (
        "`hf-evomerge show x`; needs gradio: pip install 'hf-evomerge[space]'; "
        "/x/hf-evomerge y; hf-evomerge 0.1.0"
    )
    assert visible(text) == text
    monkeypatch.setattr(sys, "prefix", "/home/me/.local/share/hf/extensions/hf-evomerge/venv")
    monkeypatch.setattr("hf_evomerge.lines.find_spec", lambda name: pip)
    said = visible(text)
    assert said.startswith("`hf evomerge show x`; needs gradio: ")
    assert said.endswith("; /x/hf-evomerge y; hf-evomerge 0.1.0")
    assert install in said
    assert sys.executable in said
    done = _said("init --demo --no-measure")
    assert "\nhf evomerge search search.yaml --out my-search --dry-run\n" in done
    assert "hf-evomerge" not in done
    assert Path("models/base/config.json").is_file()
    assert "model: models/japanese" in Path("search.yaml").read_text()
    told = _said("show --help")
    assert "hf evomerge show my-search --trials" in told
    assert "`hf-evomerge" not in told


def test_methods():
    """`merge --methods` prints the table of merge methods."""
    assert _said("merge --methods").strip() == methods_table().strip()


def test_folders_that_are_written_by_default(search_file, recipe_file, tmp_path, monkeypatch):
    """A study is named after its file, and `merge` builds its winner there; a recipe becomes
    `merged`."""
    monkeypatch.chdir(tmp_path)
    Study.create("begun", SearchConfig.load(search_file).model_dump(mode="json")).close()
    assert "has not ended; go on with `hf-evomerge search" in _error("merge begun")
    _said("search search.yaml --no-model --workers 0")
    assert "leave out --out" in _error("search search --out other")
    assert _said("merge search") == "built search/model\n"
    assert Path("search/model/recipe.yaml").read_bytes() == Path("search/recipe.yaml").read_bytes()
    assert "one objective, and no front" in _error("merge search --pick 0")
    assert _said("merge recipe.yaml") == "built merged\n"
    assert "is no study" in _error("merge recipe.yaml --pick 0")


def test_a_folder_is_shown_here(tmp_path, monkeypatch):
    """The folder of a search is shown on this machine; what is no folder is the name of a Space,
    which needs its model."""
    shown = []
    monkeypatch.setattr(
        "hf_evomerge.hub.space.run_space", lambda model, **how: shown.append((model, how))
    )
    for line in (str(tmp_path), "--local me/merge", f"{tmp_path} --port 8000 --host 0.0.0.0"):
        _said(f"space {line}")
    assert [model for model, _ in shown] == [str(tmp_path), "me/merge", str(tmp_path)]
    asked = {"port": 8000, "host": "0.0.0.0", "share": False}
    assert asked.items() <= shown[2][1].items()
    for line, told in {
        "me/merge --share": "are for a page on this machine",
        "me/merge": "me/merge: there is no such folder here; for a Space on the Hub give the Space",
        f"{tmp_path} --local me/merge": "leave out the Space's name",
    }.items():
        assert told in _error(f"space {line}")


def test_a_config_commands_no_terminal(tiny, tmp_path):
    """Control characters, and marks that turn a line around, of a stranger's config are shown as
    question marks by inspect and diff."""
    folder = shutil.copytree(tiny / "a", tmp_path / "a\x1b[5m")
    edit_json(folder / "config.json", architectures=["Llama\x1b[5m\x07\u202eForCausalLM"])
    for line in (f"inspect {folder}", f"diff {folder} {tiny}/b"):
        told = _said(line)
        assert "?" in told
        assert not set("\x1b\x07\u202e") & set(told)

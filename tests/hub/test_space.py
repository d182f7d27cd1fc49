"""The Space of a model: what is uploaded, what is kept, and that it shows the model it was made
for."""

import json
import socket
from pathlib import Path

import pytest
import yaml
from hub_fixtures import upload_models
from huggingface_hub import CommitOperationAdd, SpaceCard
from refusals import refused

import hf_evomerge
from hf_evomerge.errors import FitnessError, HubError
from hf_evomerge.hub.bundled import bundled
from hf_evomerge.hub.space import SPACE_FOLDER, push_space, run_space
from hf_evomerge.record import Record


@pytest.fixture
def app(monkeypatch, tmp_path):
    """An app in place of the Space's, which writes what it sees to `SEEN`."""
    monkeypatch.setattr("hf_evomerge.hub.space.bundled", lambda name: tmp_path)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    return tmp_path / "app.py"


@pytest.fixture
def model(lfs_api):
    """A repository that a Space can show."""
    lfs_api.create_repo("local/merge")
    files = [CommitOperationAdd(name, b"{}") for name in ("config.json", "images/weights.png")]
    lfs_api.create_commit("local/merge", files, commit_message="x")
    return "local/merge"


def _names(folder, but):
    """The files in a folder but those of some folders."""
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    return {str(file) for file in files if not {but} & {*file.parts} and file.name[0] != "."}


def test_the_app_goes_up_as_it_stands(model, lfs_api, tmp_path):
    """Every file of the app is in the Space unchanged, the package beside it; the model is named
    there and in the header."""
    name = "local/merge-space"
    commit = push_space(name, model, revision="main", api=lfs_api)
    assert commit.url.endswith(f"/spaces/{name}")
    assert len(lfs_api.list_repo_commits(name, repo_type="space")) == 2  # it was made, and filled
    space = tmp_path / "space"
    lfs_api.snapshot_download(name, repo_type="space", local_dir=space)
    app = bundled(SPACE_FOLDER)
    expected = _names(app, "__pycache__")
    there = _names(space, ".cache")
    package = {name for name in there if name.startswith("hf_evomerge/")}
    assert there == expected | package | {"space.json"}
    assert {"hf_evomerge/__init__.py", "hf_evomerge/recipes/layer_path.py"} <= package
    root = Path(hf_evomerge.__file__).parents[1]
    made = {"README.md", "requirements.txt", "space.json"}  # for the model
    for file in there - made:
        own = root if file in package else app
        assert (space / file).read_bytes() == (own / file).read_bytes()
    assert json.loads((space / "space.json").read_text()) == {"model": model, "revision": "main"}
    card = SpaceCard.load(space / "README.md")
    card.validate(repo_type="space")
    expected = {
        "sdk": "gradio",
        "app_file": "app.py",
        "models": [model],
        "title": "merge space",
        "short_description": "Try an evolved merge and replay its evolution",
        "thumbnail": "https://huggingface.co/local/merge/resolve/main/images/weights.png",
    }
    assert {key: card.data[key] for key in expected} == expected


def test_an_update_keeps_what_is_not_ours(model, lfs_api):
    """Pushed again, nothing changes; code of an earlier version goes, the owner's files and secrets
    stay."""
    first = push_space("local/s", model, api=lfs_api)
    again = push_space("local/s", model, api=lfs_api)
    assert (again.changed, again.sha) == (False, first.sha)
    old = {"old_module.py", "hf_evomerge/old_room/module.py"}
    files = [CommitOperationAdd(name, b"x") for name in (*old, "picture.png")]
    lfs_api.create_commit("local/s", files, commit_message="x", repo_type="space")
    push_space("local/s", model, api=lfs_api)
    there = set(lfs_api.list_repo_files("local/s", repo_type="space"))
    assert "picture.png" in there
    assert not old & there


def test_a_space_needs_its_model(lfs_api):
    """Where the model is not on the Hub, no Space is made."""
    with refused(HubError, "local/nothing: the Space would show a model that cannot"):
        push_space("local/s", "local/nothing", api=lfs_api)
    assert not lfs_api.repo_exists("local/s", repo_type="space")


def test_the_app_runs_here_without_the_hub(app, monkeypatch, tmp_path):
    """`run_space` starts the same app, told by the environment which model to show; a port that
    another program has is refused."""
    told = ("EVOMERGE_MODEL", "GRADIO_SERVER_PORT", "GRADIO_SERVER_NAME", "GRADIO_SHARE")
    app.write_text(
        f"import os; open(os.environ['SEEN'], 'w').write(' '.join(map(os.environ.get, {told})))"
    )
    monkeypatch.setenv("EVOMERGE_MODEL", "before")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with refused(HubError, f"port {port}: Address already in use; give another"):
            run_space("my-search/model", port=port)
    run_space("my-search/model", port=port, host="0.0.0.0", share=True)
    assert (tmp_path / "seen").read_text() == f"my-search/model {port} 0.0.0.0 True"
    app.write_text("raise SystemExit(3)")
    with refused(HubError, "my-search/model: the app ended with status 3"):
        run_space("my-search/model")
    for name in ("NOTHERE", "./not/there", str(tmp_path / "nothing")):
        with refused(HubError, "there is no such folder"):
            run_space(name)
    with refused(HubError, "holds no model and no study"):
        run_space(str(tmp_path))


def test_a_search_whose_data_moved_is_shown_without_problems(
    hybrid_search, app, monkeypatch, capsys
):
    """Where the examples of a search cannot be read any more, the page has everything but them, and
    that is said."""

    def moved(*_, **__):
        raise FitnessError("data/test.jsonl: cannot be read")

    app.write_text(
        "import os, shutil; shutil.copy(os.environ['EVOMERGE_MODEL'] + '/study.json', "
        "os.environ['SEEN'])"
    )
    monkeypatch.setattr("hf_evomerge.fitness.data.loading.load_examples", moved)
    run_space(str(hybrid_search))
    study = Record.load(app.with_name("seen"))
    assert (study.examples, len(study.stages)) == ([], 2)
    assert "no problems to try: data/test.jsonl" in capsys.readouterr().err
    # what has nothing to do with the examples is said once
    monkeypatch.setattr("hf_evomerge.hub.record.about_of", moved)
    with pytest.raises(FitnessError):
        run_space(str(hybrid_search))
    assert not capsys.readouterr().err


def test_a_search_is_shown_with_its_record(hybrid_search, app):
    """The folder of a search is shown as it would be published, its sources where they are; nothing
    is left behind."""
    app.write_text("""
import json, os, pathlib
folder = pathlib.Path(os.environ["EVOMERGE_MODEL"])
settings = json.loads((folder / "study.json").read_text())["settings"]
seen = [str(folder), os.listdir(folder), settings["sources"][0]["model"]]
pathlib.Path(os.environ["SEEN"]).write_text(json.dumps(seen))
""")
    run_space(str(hybrid_search))
    folder, names, source = json.loads(app.with_name("seen").read_text())
    expected = {"config.json", "model.safetensors", "recipe.yaml", "study.json", "trials.parquet"}
    assert expected | {"images"} <= set(names)
    assert Path(source).is_dir()
    assert not Path(folder).exists()
    assert (hybrid_search / "model" / "model.safetensors").is_file()


def test_a_search_pushes_its_winner_and_makes_the_space(
    search_settings, command, lfs_api, tmp_path
):
    """`search --push-to user/name --space` ends with the model and its Space on the Hub."""
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search_settings()))
    words = ("--out", tmp_path / "out", "--workers", 0, "--push-to", "local/won", "--space")
    said = command("search", tmp_path / "search.yaml", *words)
    assert said.returncode == 0, said
    assert "published " in said.stdout
    assert "Space: " in said.stdout
    assert {"model.safetensors", "study.json", "README.md"} <= set(
        lfs_api.list_repo_files("local/won")
    )
    assert "app.py" in lfs_api.list_repo_files("local/won", repo_type="space")


def test_a_search_that_could_not_push_does_not_begin(
    search_settings, tiny, command, lfs_api, tmp_path, monkeypatch
):
    """Contradicting licenses, and a login that is not there, stop the search before its first
    trial."""
    names = upload_models(lfs_api, tiny / "a", tiny / "b", licenses=["cc-by-sa-4.0", "gemma"])
    sources = [{"model": name} for name in names.values()]
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(search_settings(sources=sources)))
    words = ("search", file, "--out", tmp_path / "out", "--push-to", "local/won")
    message = "local/a is under cc-by-sa-4.0, which derived works must keep, and local/b under"
    assert message in command(*words).stderr
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "hf auth login" in command(*words).stderr
    assert not (tmp_path / "out").exists()

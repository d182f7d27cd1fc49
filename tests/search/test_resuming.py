"""A search that was killed, moved, or is begun again: it goes on to the same trials, or is refused
with what differs."""

import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
from refusals import refused
from safetensors.torch import load_file, save_file
from searches import count_trials, digests, facts
from slowly import slow_beyond
from warm import COMMAND, Program
from watch import Watch, are_gone, descendants, killed

from hf_evomerge import Recipe, Scores, SearchConfig, build_model, resume_search, run_search
from hf_evomerge.errors import SearchError
from hf_evomerge.search.folder import check_out, edited
from hf_evomerge.search.study.study import Study


def _stop_in_mid_generation(search, folder, population):
    """Stop the search where its last generation is unfinished."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert search.poll() is None, "the search ended before it could be stopped"
        if count_trials(folder) > population:
            search.send_signal(signal.SIGSTOP)
            if count_trials(folder) % population:
                return
            search.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    raise AssertionError("no trials")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_killed_and_resumed(search_config, tmp_path):
    """A search killed in mid-generation leaves no worker, and resumed it ends with the trials of
    one that never stopped."""
    config = search_config(
        "hybrid",
        merge="{method: dare_linear}",
        path="{kind: gates, repetitions: 2}",
        optimize="[{evaluations: 20, population: 5, batch: 4, space: ps}, "
        "{evaluations: 5, population: 5, batch: 4, space: dfs, sigma: 0.5}]",
    )
    out, whole = tmp_path / "killed", tmp_path / "whole"
    config.save(tmp_path / "given.yaml")
    search = Program(
        COMMAND, *shlex.split("search given.yaml --out killed --workers 2"), cwd=tmp_path
    )
    try:
        _stop_in_mid_generation(search, out, 5)
        workers = descendants(search.pid)
    finally:
        search.kill()
        search.wait()
    assert len(workers) >= 2
    assert are_gone(*workers)
    done = count_trials(out)
    assert 5 < done < 20
    assert not (out / "recipe.yaml").exists()

    reports = []
    resume_search(out, callbacks=[Watch(reports.append)])
    run_search(config, whole)
    left = sum(trial.cost for trial in Study.open(whole).trials("ps")[done:])
    assert max(report.fresh for report in reports if report.phase == "ps") == pytest.approx(left)
    assert facts(out) == facts(whole)
    assert digests(out / "model") == digests(whole / "model")
    for name in ("recipe.yaml", "search.yaml"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.fixture
def begun(search_config, tmp_path):
    """A folder with a study that holds no trials."""
    Study.create(tmp_path / "begun", search_config().model_dump(mode="json")).close()
    return tmp_path / "begun"


def test_other_settings_are_refused(begun, search_config):
    """A folder with scores of other settings is refused, with each key that differs and both of its
    values."""
    with Study.open(begun) as study:
        study.add_evaluation("base", "search", Scores([0.0] * 5))
    steps = "[{evaluations: 7, population: 4}]"
    with pytest.raises(SearchError) as caught:
        run_search(search_config(optimize=steps, compute="{seed: 3}"), begun)
    text = str(caught.value)
    for part in (
        str(begun),
        "seed was 0 and is 3",
        "optimize.0.evaluations was 8 and is 7",
        "choose another folder",
    ):
        assert part in text
    assert "population" not in text


def test_a_study_without_scores_takes_other_settings(search_config, tmp_path):
    """A limit under which nothing can be scored is taken out of the file, and the search is that of
    the new file."""
    file = tmp_path / "given.yaml"
    out = tmp_path / "out"
    search_config(compute="{limits: {seconds: 0.001}}").save(file)
    with refused(SearchError, "cannot be evaluated"):
        run_search(SearchConfig.load(file), out, build=False)
    config = search_config(compute="{seed: 3}")
    config.save(file)
    check_out(config, out)
    result = run_search(config, out, build=False)
    assert (out / "search.yaml").read_bytes() == file.read_bytes()
    run_search(config, tmp_path / "fresh", build=False)
    assert facts(out) == facts(tmp_path / "fresh")
    assert resume_search(out, build=False).to_json() == result.to_json()
    with refused(SearchError, "holds the study of another search: compute"):
        run_search(search_config(), out)


def test_a_study_that_runs_takes_no_other_settings(begun, search_config):
    """While a process evaluates the first models of a study, another cannot give it other
    settings."""
    with (
        Study.open(begun) as study,
        study.exclusive(),
        refused(SearchError, "another process is running"),
    ):
        run_search(search_config(compute="{seed: 3}"), begun)
    with Study.open(begun) as study:
        assert study.meta("settings")["compute"]["seed"] == 0


def test_a_source_may_be_mended_before_it_is_scored(adapters, search_config, tmp_path):
    """An adapter of which not one model could be scored is another file afterwards, and the search
    goes on with that."""
    first, second = adapters["sources"]
    folder = shutil.copytree(first["adapter"], tmp_path / "adapter")
    sources = [{**first, "adapter": str(folder)}, second]
    config = search_config(base=adapters["base"], sources=sources)
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    broken = {name: tensor.fill_(float("nan")) for name, tensor in load_file(file).items()}
    save_file(broken, file)
    with pytest.raises(SearchError):
        run_search(config, tmp_path / "out", build=False)
    file.write_bytes(whole)
    for name in ("out", "fresh"):
        run_search(config, tmp_path / name, build=False)
    assert facts(tmp_path / "out") == facts(tmp_path / "fresh")


def test_a_study_does_not_depend_on_the_current_directory(
    tiny, tmp_path, search_config, monkeypatch
):
    """A search that was begun with relative names goes on from elsewhere, with the same trials, and
    its recipe builds there."""
    monkeypatch.chdir(tiny)
    config = search_config("ps", Path("."), sources="[{model: ./a}, {model: b}]")
    result = run_search(config, tmp_path / "out", build=False)
    monkeypatch.chdir(tmp_path)
    again = resume_search("out", build=False)
    assert (again.to_json(), again.winner) == (result.to_json(), result.winner)
    assert build_model(Recipe.load("out/recipe.yaml"), "built").is_dir()
    names = [source.model for source in SearchConfig.load("out/search.yaml").sources]
    assert names == [str(tiny / "a"), str(tiny / "b")]
    monkeypatch.chdir(tiny)
    repeated = run_search(config, tmp_path / "out", build=False)
    assert repeated.to_json() == result.to_json()


@pytest.mark.parametrize("how", slow_beyond(["copied"], ["copied", "alone"]))
def test_a_study_moves_with_its_data(how, tiny, tmp_path, search_config, monkeypatch):
    """A study that is copied with sources and data beside it goes on there, as if it had never been
    elsewhere; one that is moved without them reads them where they are. It has the same recipes,
    and what is built names the places of today."""
    old = tmp_path / "old" / "place"
    new = tmp_path / "new"
    study = new / "study"
    shutil.copytree(tiny, old / "data")
    config = search_config("ps", old / "data")
    whole = run_search(config, tmp_path / "whole", build=False)
    killed(lambda seen: seen.phase == "ps" and seen.done >= 5, run_search, config, old / "study")
    if how == "alone":
        shutil.move(old / "study", study)
    else:
        shutil.copytree(old, new)
    monkeypatch.chdir(tmp_path / "old")
    begun = (study / "search.yaml").read_bytes()
    result = resume_search(study)
    data = old / "data" if how == "alone" else new / "data"
    assert [ref.model for ref in result.winner.sources] == [str(data / "a"), str(data / "b")]
    assert [row.scores for row in result.rows] == [row.scores for row in whole.rows]
    assert facts(study) == facts(tmp_path / "whole")
    for file in ("recipe.yaml", "model/recipe.yaml"):
        assert (str(old) in (study / file).read_text()) == (how == "alone")
    assert (study / "search.yaml").read_bytes() == begun
    with Study.open(study) as opened:
        assert edited(opened)[1] is None
    repeated = run_search(search_config("ps", data), study)
    assert repeated.to_json() == result.to_json()

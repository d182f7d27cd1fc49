"""The Space under test: small published models made by real searches, and the page started on a
free port."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from served import Served, greedy

SPACE = Path(__file__).parents[2] / "space_app"
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(SPACE))

for _needed in ("gradio", "gradio_client", "pyarrow"):
    pytest.importorskip(_needed, reason="the Space's tests need the packages of the 'dev' extra")


@pytest.fixture(scope="session")
def finished(search_config, made_once):
    """Makes a search of the tiny family, published with its record: the model's folder, which a
    function may change."""
    from hf_evomerge.hub.record import write_record
    from hf_evomerge.search.run import run_search

    def make(space, change=lambda folder: None):
        optimizer = {"evaluations": 12, "population": 4}
        optimize = [{**optimizer, "space": "ps"}, {**optimizer, "space": "dfs"}]
        merge = (
            {}
            if space == "dfs"
            else {"merge": {}, "compare": {"finalists": 2, "contributions": True}}
        )
        config = search_config(
            space, path={"kind": "gates", "repetitions": 2}, optimize=optimize, **merge
        )

        def search(out):
            run_search(config, out / "search")
            shutil.copytree(out / "search" / "model", out / "model")
            write_record(out / "search", out / "model", examples=3)
            change(out / "model")

        return made_once(space, search) / "model"

    return make


@pytest.fixture(scope="session")
def dfs(finished):
    """A model with a path. The answer of its first example is how it begins itself, that of the
    second is not."""
    return finished("dfs", _with_answers)


def _with_answers(folder):
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    study["examples"][0]["answer"] = greedy(folder, study["examples"][0]["prompt"], 2)
    study["examples"][1]["answer"] = "none of the words it knows"
    study["settings"]["fitness"]["append_eos"] = False  # the answer above goes on
    for at, example in enumerate(study["examples"]):
        example["right"] = {"evolved": at == 0, "source:0": False, "source:1": False, "base": False}
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")


@pytest.fixture(scope="session")
def ps(finished):
    """A model of merged weights, with what each source gives it."""
    return finished("ps")


@pytest.fixture
def broken(dfs, tmp_path):
    """Makes a copy of the model with a path in which files are replaced, or are gone where the text
    is None."""

    def make(**files):
        copy = tmp_path / "copy"
        shutil.copytree(dfs, copy)
        for name, text in files.items():
            file = copy / name.replace("__", ".")
            file.unlink() if text is None else file.write_text(text, encoding="utf-8")
        return copy

    return make


@pytest.fixture(scope="session")
def serve():
    """Starts pages; they are closed at the end."""
    import app

    started = []

    def start(model):
        blocks, show = app.serve(
            str(model), server_name="127.0.0.1", prevent_thread_lock=True, quiet=True
        )
        started.append(blocks)
        return Served(blocks, show)

    yield start
    for blocks in started:
        blocks.close(verbose=False)


@pytest.fixture(scope="session")
def served(serve, dfs):
    """The page of the model with a path."""
    return serve(dfs)

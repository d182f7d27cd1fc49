"""A hub on loopback for each test, and ways to talk to it: the client in this process, or a program
of its own."""

import os
from contextlib import contextmanager
from itertools import zip_longest
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import warm
from commands import invoke
from faulty_hub import FaultyHub
from huggingface_hub import HfApi, constants, hf_api
from local_hub import LocalHub
from transformers.utils import hub as transformers_hub


class Said(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str
    log: str


@pytest.fixture
def hub(tmp_path):
    """A running hub of user `local`, who also writes in `acme`; its requests can be looked at and
    made to fail."""
    with FaultyHub(tmp_path / "hub", orgs=["acme"]) as hub:
        yield hub


@pytest.fixture
def program(hub, tmp_path):
    """Runs Python code in a process whose environment points at the hub, and gives what it printed.

    `check=False` gives output and errors of a program that fails.
    """

    def run(code, *arguments, check=True):
        environment = {**os.environ, **hub.environment(home=tmp_path / "client")}
        environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        done = warm.run(code, *arguments, env=environment)
        assert not check or done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    return run


@pytest.fixture
def command(lfs_api, caplog):
    """Runs `hf-evomerge` in this process, whose client is the hub's, and gives its status and what
    it said and logged."""

    def run(*words):
        caplog.clear()
        done = invoke(*words)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return Said(done.exit_code, done.stdout, done.stderr, caplog.text)

    return run


def use_hub(patch, hub, home):
    """Make the client of this process one of a running hub, as its user, with its cache in `home`.

    The client reads its environment when it is imported: here its own constants are told what a new
    process reads there.
    """
    own = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in own.items():
        patch.setattr(constants, name, value)
    # what the functions of huggingface_hub are methods of
    patch.setattr(hf_api.api, "endpoint", hub.endpoint)
    # transformers keeps one, of the first endpoint that it saw
    patch.setattr(transformers_hub, "_hf_api", None, raising=False)
    patch.setenv("HF_TOKEN", hub.token)
    patch.setenv("NO_PROXY", "127.0.0.1,localhost")
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@contextmanager
def hub_in(folder, **options):
    """Run a hub in a folder and make the client of this process its; gives both."""
    with LocalHub(folder / "hub", **options) as hub, pytest.MonkeyPatch.context() as patch:
        yield hub, use_hub(patch, hub, folder / "client")


@pytest.fixture
def connect(tmp_path, monkeypatch):
    """Makes the client of this process one of a running hub, as its user."""
    return lambda hub: use_hub(monkeypatch, hub, tmp_path / "client")


@pytest.fixture
def lfs_api(hub, connect):
    """The real client as user `local`."""
    return connect(hub)


def upload_models(api, *folders, licenses=()):
    """Put models on the hub as ``local/FOLDER``, with a card each that states a license; gives
    their names there, by folder."""
    names = {str(folder): f"local/{folder.name}" for folder in folders}
    for (folder, name), license in zip_longest(names.items(), licenses):
        api.create_repo(name)
        api.upload_folder(repo_id=name, folder_path=folder)
        if license is not None:
            card = f"---\nlicense: {license}\n---\n".encode()
            api.upload_file(repo_id=name, path_in_repo="README.md", path_or_fileobj=card)
    return names


def commit_titles(api, repo_id="local/merge", **more):
    """What the commits of a repository are called, the newest first."""
    return [commit.title for commit in api.list_repo_commits(repo_id, **more)]


@pytest.fixture
def no_waiting(monkeypatch):
    """The client does not wait between attempts."""
    clock = SimpleNamespace(sleep=lambda _: None)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)

"""A hub on loopback for each test that asks for one, and what is pushed to it."""

from pathlib import Path

import pytest
from hub_fixtures import command, connect, hub, lfs_api, no_waiting, program  # noqa: F401
from recipes import merge_of

from hf_evomerge import PushOptions, build_model, preview_push, push_model


@pytest.fixture
def plain(tiny, tmp_path):
    """A merge in parameter space, built from a hand-written recipe."""
    return build_model(merge_of(tiny / "a", tiny / "b"), tmp_path / "plain")


@pytest.fixture
def push(lfs_api):  # noqa: F811
    """Pushes a folder with options, by default as ``local/merge``."""
    return lambda folder, repo_id="local/merge", api=lfs_api, **options: push_model(
        folder, repo_id, PushOptions(**options), api=api
    )


@pytest.fixture
def preview(lfs_api):  # noqa: F811
    """Plans a push of a folder with options as ``local/merge``."""
    return lambda folder, api=lfs_api, **options: preview_push(
        folder, "local/merge", PushOptions(**options), api=api
    )


@pytest.fixture
def published_text(lfs_api):  # noqa: F811
    """Reads a file of ``local/merge``, by default its card."""
    return lambda name="README.md", repo_id="local/merge", **more: Path(
        lfs_api.hf_hub_download(repo_id, name, **more)
    ).read_text(encoding="utf-8")

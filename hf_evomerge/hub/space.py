"""The Gradio Space of a published model: uploads the app's files, or runs the app on this
machine."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..checkpoints.client import ask, default_api
from ..checkpoints.model_folder import INDEX
from ..checkpoints.open import config_name
from ..errors import EvoMergeError, HubError, optional, told
from ..recipes.names import is_folder
from ..search.study.database import STUDY_FILE
from .bundled import bundled
from .commit import Commit, Content, Target, commit_files, make_repo
from .record import IMAGES_FOLDER, write_record
from .target import CARD, check_login, check_private, find_model, find_repo, names_in

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SPACE_FOLDER = "space_app"
SETTINGS_FILE = "space.json"
REQUIREMENTS = "requirements.txt"
PREVIEWS = tuple(f"{IMAGES_FOLDER}/{name}.png" for name in ("path", "weights", "fitness"))
_PACKAGE = Path(__file__).parents[1]
LEFT_OUT = frozenset(
    {
        "__main__.py",
        "lines.py",
        "_bundled",
        "building",
        "cli",
        "demo",
        "hub",
        "mergekit",
        "routing",
        "search",
    }
)
"""The rooms of the package that the app does without. All others are uploaded beside it, so that it
needs no release."""
_EXTRAS = {
    "diffusers": ("diffusion", (INDEX,)),
    "torchvision": (
        "vision",
        ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    ),
}
"""Packages that some models need on the page: their extra here, and the files of these models."""
_LOCAL_EXAMPLES = 50


def push_space(
    repo_id: str,
    model: str,
    *,
    revision: str | None = None,
    private: bool = False,
    api: HfApi | None = None,
) -> Commit:
    """Make, or update, the Space of a model: the app with the package beside it, and a
    ``space.json`` that names the model.

    Args:
        repo_id: The Space, ``user/name``.
        model: The model on the Hub that it shows.
        revision: The model's branch or commit; ``main`` by default.
        private: Make a new Space private. A Space for a private model needs a secret ``HF_TOKEN``,
            which is the user's to set.
        api: The client.

    Raises:
        HubError: The model is not there, or the Hub does not take the Space.
    """
    api = api or default_api()
    check_login(api, repo_id)
    check_space(repo_id, api, private=private)
    missing = f"{model}: the Space would show a model that cannot be found"
    info = ask(missing, lambda: api.model_info(model, revision=revision))
    target = Target(repo_id, "space")
    make_repo(api, target, private=private, space_sdk="gradio")
    names = set(names_in(info))
    picture = next((name for name in PREVIEWS if name in names), None)
    title = repo_id.rsplit("/", 1)[-1]
    files = space_files(model, revision, title=title, picture=picture, there=names)
    message = f"Show {model} at {str(info.sha)[:12]}"
    return commit_files(api, target, files, message=message, remove=_is_code)


def check_space(repo_id: str, api: HfApi, *, private: bool = False) -> None:
    """Refuse a Space that shows something else, whose code would be replaced, or is public and
    should be private."""
    info = find_repo(repo_id, "space", api)
    names = names_in(info)
    if SETTINGS_FILE not in names and (code := next(filter(_is_code, names), None)):
        what = f"is a Space with an app of its own ({code}), which would be replaced"
        raise HubError(
            f"{repo_id}: {what}; give the Space another name with `hf-evomerge space`, or empty it"
        )
    check_private(repo_id, info, "the Space", private=private)


def space_files(
    model: str,
    revision: str | None = None,
    *,
    title: str | None = None,
    picture: str | None = None,
    there: Collection[str] | None = None,
) -> dict[str, Content]:
    """Return the files of the Space of a model, at a branch or commit.

    Its title is the app's own by default. Previews of links show a picture of the model's
    repository. The files that are there say which packages the page needs; all where they are not
    given.
    """
    folder = bundled(SPACE_FOLDER)
    files: dict[str, Content] = {}
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        is_hidden = any(part.startswith((".", "__")) for part in inside.parts)
        if file.is_file() and not is_hidden:
            files[str(inside)] = file
    # The app imports rooms of this package. They are uploaded beside it, so that the Space runs the
    # version that made the model, also one that was never released.
    sources = [file.relative_to(_PACKAGE) for file in sorted(_PACKAGE.rglob("*.py"))]
    files |= {
        f"{_PACKAGE.name}/{file.as_posix()}": _PACKAGE / file
        for file in sources
        if file.parts[0] not in LEFT_OUT
    }
    files[SETTINGS_FILE] = (
        json.dumps({"model": model, "revision": revision}, indent=2) + "\n"
    ).encode()
    files[CARD] = _header(folder / CARD, model, title, picture)
    if there is not None:
        lines = (folder / REQUIREMENTS).read_text(encoding="utf-8").splitlines(keepends=True)
        needed = _extras(there)
        left_out = tuple(name for name in _EXTRAS if name not in needed)
        kept = (line for line in lines if not line.startswith(left_out))
        files[REQUIREMENTS] = "".join(kept).encode()
    return files


def _extras(there: Collection[str]) -> dict[str, str]:
    """Packages that a model of these files needs beside those of every page, with their extras."""
    names = {name.rsplit("/", 1)[-1] for name in there}
    return {name: extra for name, (extra, files) in _EXTRAS.items() if names & set(files)}


def run_space(
    model: str,
    *,
    revision: str | None = None,
    port: int | None = None,
    host: str | None = None,
    share: bool = False,
) -> None:
    """Run the app for a model on this machine, until it is stopped.

    Args:
        model: A study, a model's folder, or a repository on the Hub.
        revision: The repository's branch or commit.
        port: Port to listen at; a free one from 7860 on by default.
        host: Address to listen at, such as ``0.0.0.0`` for other machines; this machine alone by
            default.
        share: Whether Gradio makes a public link.

    Raises:
        HubError: There is no such folder, the port is taken, gradio is not installed, or the app
            ended with an error. Of a repository that is not there the page tells.
    """
    place = Path(model)
    built = place / "model"
    if not place.is_dir():
        if is_folder(model) or model.count("/") != 1:
            raise HubError(
                f"{model}: there is no such folder; give a study, a model's folder, or a "
                "repository such as user/name"
            )
    elif not any((place / name).is_file() for name in (config_name(place), STUDY_FILE)):
        raise HubError(
            f"{model}: holds no model and no study; give the folder of one, or a repository "
            "such as user/name"
        )
    if port is not None:  # Gradio would take the next one that is free
        with socket.socket() as free, told(HubError, OSError, f"port {port}: ", "; give another"):
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind((host or "127.0.0.1", port))
    optional("gradio", "space", "the page", HubError)
    for folder in (place, built):
        for package, extra in _extras(os.listdir(folder) if folder.is_dir() else ()).items():
            optional(package, extra, "the page of this model", HubError)
    command = [sys.executable, str(bundled(SPACE_FOLDER) / "app.py")]
    with TemporaryDirectory(prefix="evomerge-space-") as scratch:
        shown: str | Path = model
        if place.is_dir():
            pipelines = [
                folder.resolve() for folder in (place, built) if (folder / INDEX).is_file()
            ]
            shown = (
                pipelines[0]
                if pipelines
                else with_record(place, Path(scratch) / place.resolve().name)
            )
        settings = {
            "EVOMERGE_MODEL": str(shown),
            "EVOMERGE_REVISION": revision,
            "GRADIO_SERVER_PORT": None if port is None else str(port),
            "GRADIO_SERVER_NAME": host,
            "GRADIO_SHARE": "True" if share else None,
        }
        given = {name: value for name, value in settings.items() if value is not None}
        ended = subprocess.run(command, env={**os.environ, **given}, check=False)
    if ended.returncode > 0:
        raise HubError(
            f"{model}: the app ended with status {ended.returncode}; what it said is above"
        )


def with_record(folder: Path, shown: Path) -> Path:
    """A study, or a model's folder, as it would be published, but with the sources where they are
    on this machine.

    Makes the folder `shown`, with links to the model's files and the record of the search beside
    them; gives `folder` itself where no search is known.
    """
    if not (folder / STUDY_FILE).is_file() and not (folder.parent / STUDY_FILE).is_file():
        return folder
    model, search = find_model(folder)
    if search is None:
        return folder
    write_record(search, shown, publish=lambda ref: ref)
    try:
        write_record(search, shown, examples=_LOCAL_EXAMPLES, publish=lambda ref: ref)
    except (
        EvoMergeError
    ) as cause:  # the data may have moved since the search, or have come from Python
        print(f"the page has no problems to try: {cause}", file=sys.stderr)
    for file in model.iterdir():
        (shown / file.name).symlink_to(file.resolve())
    return shown


def _header(readme: Path, model: str, title: str | None, picture: str | None) -> bytes:
    """The Space's README with the model in its metadata, so that the Hub links the two."""
    from huggingface_hub import RepoCard

    card = RepoCard.load(readme)
    card.data["models"] = [model]
    if title is not None:
        card.data["title"] = re.sub(r"[-_]+", " ", title)
    if picture is not None:
        card.data["thumbnail"] = f"https://huggingface.co/{model}/resolve/main/{picture}"
    return str(card).encode()


def _is_code(name: str) -> bool:
    """Tell whether a file in the Space's repository is one of an earlier version of the app."""
    return name.endswith((".py", ".css", ".js")) or name == REQUIREMENTS

"""Finds the model to publish on this machine, and checks the name and the login that it is
published under."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..checkpoints.client import ask, has_token
from ..checkpoints.open import config_name
from ..errors import HubError
from ..recipes.recipe import RECIPE_FILE
from ..search.study.database import STUDY_FILE
from ..search.study.files import MODEL_FOLDER, TOGETHER_FOLDER

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
ATTRIBUTES = ".gitattributes"  # in every repository, from its first commit
_SHOWN = 4


def find_model(folder: Path) -> tuple[Path, Path | None]:
    """The model's folder, and the study that it won or was trained beside, from either of them.

    Raises:
        HubError: There is no model that was built from a recipe.
    """
    if not folder.is_dir():
        raise HubError(
            f"{folder}: there is no such folder; give a study, or the folder of a built model"
        )
    is_study = (folder / STUDY_FILE).is_file()
    search, model = (
        (folder, folder / MODEL_FOLDER) if is_study else (folder.absolute().parent, folder)
    )
    if not (model / config_name(model)).is_file():
        what = (
            "the search has not built its winner yet; go on with it"
            if is_study
            else "neither a study nor a built model"
        )
        raise HubError(f"{folder}: {what}")
    if not (model / RECIPE_FILE).is_file():
        raise HubError(
            f"{model}: no {RECIPE_FILE} in it; only models that were built from a recipe can "
            "be published with it"
        )
    won = (search / STUDY_FILE).is_file() and (search / RECIPE_FILE).is_file()
    same = won and (search / RECIPE_FILE).read_bytes() == (model / RECIPE_FILE).read_bytes()
    return model, search if same or (won and model.name == TOGETHER_FOLDER) else None


def find_repo(repo_id: str, kind: str, api: HfApi) -> Any:
    """Describe a ``dataset`` or ``space`` as the Hub does; None where there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    def info() -> Any:
        try:
            return api.repo_info(repo_id, repo_type=kind)
        except RepositoryNotFoundError:
            return None

    return ask(f"{repo_id}: the {kind} cannot be read", info)


def names_in(info: Any) -> list[str]:
    """Names of the files of a repository that `find_repo` found; none where there is none."""
    return [file.rfilename for file in (info and info.siblings) or []]


def holds(repo_id: str, kind: str, name: str, api: HfApi) -> bool:
    """Tell whether a ``dataset`` or ``space`` is there and has a file of this name."""
    return name in names_in(find_repo(repo_id, kind, api))


def refuse_others(repo_id: str, names: Sequence[str]) -> NoReturn:
    """Refuse a repository with files of somebody else: `HubError`."""
    shown = [name for name in names if name != ATTRIBUTES]
    some = f"{', '.join(shown[:_SHOWN])}{', ...' if len(shown) > _SHOWN else ''}"
    raise HubError(
        f"{repo_id}: holds files that hf-evomerge has not pushed ({some}); choose another name, "
        "or push with --replace, which with --dry-run says what it would replace and remove"
    )


def check_private(repo_id: str, info: Any, kind: str, *, private: bool) -> None:
    """Refuse a repository that is public and should be private: `HubError`."""
    if private and info is not None and not info.private:
        raise HubError(
            f"{repo_id}: {kind} exists and is public; make it private on the Hub, or leave "
            "out --private"
        )


def check_login(api: HfApi, repo_id: str) -> None:
    """Refuse a name that cannot be, or is somebody else's, and a client without
    login: `HubError`."""
    check_name(repo_id)
    if not has_token(api):
        raise HubError(
            f"{api.endpoint}: nobody is logged in; log in with `hf auth login`, or set HF_TOKEN"
        )
    who = ask(f"{api.endpoint}: cannot be used", api.whoami)
    owner, name = repo_id.split("/")
    mine = [who["name"], *(org["name"] for org in who.get("orgs", ()))]
    # may not see all organisations
    narrow = who.get("auth", {}).get("accessToken", {}).get("role") == "fineGrained"
    if owner.lower() not in (each.lower() for each in mine) and not narrow:
        raise HubError(
            f"{repo_id}: you are logged in as {mine[0]}, who cannot write there; push to "
            f"{mine[0]}/{name}"
        )


def check_name(repo_id: str) -> None:
    """Refuse a name that cannot be; raises `HubError`."""
    from huggingface_hub.utils import validate_repo_id

    if os.path.isdir(repo_id):
        raise HubError(
            f"{repo_id!r}: a folder of this machine; give the name on the Hub, and in a push "
            "the folder before it"
        )
    if repo_id.startswith("YOUR-NAME/"):
        raise HubError(f"{repo_id!r}: write your own name on the Hub, and a name for the model")
    if repo_id.count("/") != 1:
        raise HubError(f"{repo_id!r}: not a name for a repository; write it as user/name")
    ask(
        f"{repo_id!r}: not a name for a repository, such as user/name",
        lambda: validate_repo_id(repo_id),
    )

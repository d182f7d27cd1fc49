"""Publishes a merged model: weights, code, tokenizer, recipe, the record of its search, pictures
and card, in one commit.

Nothing leaves this machine before everything is checked and planned.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..checkpoints.client import ask, default_api, unreachable
from ..errors import HubError
from ..recipes.recipe import SourceRef
from ..record import STUDY_JSON
from ..search.study.study import Study
from .card import check_metadata, metadata_text
from .commit import Commit, Target, commit_files, make_repo
from .licenses import NOT_ASKED
from .names import PublicNames
from .push_plan import PushOptions, PushPlan, files_there, is_ours, license_for, plan_push
from .space import push_space
from .target import check_login, check_name
from .trials import commit_trials

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pushed:
    """Commits that were published: the model's, and where they were asked for its Space's and its
    trials'; with the plan's warnings."""

    model: Commit
    space: Commit | None = None
    trials: Commit | None = None
    warnings: tuple[str, ...] = ()


def push_model(
    model: Study | str | Path,
    repo_id: str,
    options: PushOptions | None = None,
    *,
    api: HfApi | None = None,
) -> Pushed:
    """Publish a merged model, in one commit.

    A parameter-space merge goes up as the plain model it is; a path with the files of its class, so
    that it loads where this package is not installed. Running it again after a failure goes on
    where it ended; with nothing new it changes nothing.

    Args:
        model: A finished search, as its study or its folder, or the folder of a model that was
            built from a recipe.
        repo_id: ``user/name``; made where it does not exist.
        options: Options; see `PushOptions`.
        api: The client, with its endpoint and token; that of ``HF_ENDPOINT`` and of ``hf auth
            login`` by default.

    Raises:
        HubError: The folder cannot be published, the licenses forbid it, or the Hub does not take
            it.

    Example:
        >>> options = PushOptions(private=True)
        >>> pushed = push_model("my-search", "me/my-merge", options)  # doctest: +SKIP
        >>> pushed.model.url  # doctest: +SKIP
        'https://huggingface.co/me/my-merge'
    """
    options = options or PushOptions()
    api = api or default_api()
    folder = model.folder if isinstance(model, Study) else model
    check_login(api, repo_id)
    with TemporaryDirectory(prefix="evomerge-push-") as scratch:
        plan = plan_push(folder, repo_id, options, api=api, scratch=Path(scratch))
        target = _open_target(api, repo_id, options)
        what = "Evolved merge" if STUDY_JSON in plan.files else "Merge"
        message = f"{what} by hf_evomerge {version('hf-evomerge')}"
        commit = commit_files(
            api, target, plan.files, message=message, remove=partial(is_ours, parts=plan.parts)
        )
        for change in plan.changes if commit.changed else ():
            logger.info(f"{repo_id}: {change}")
        trials = None
        if plan.trials:
            with _beside(commit, "trials"):
                trials = commit_trials(api, repo_id, plan.trials, private=options.private)
    space = None
    warnings = [*plan.warnings]
    if options.space:
        with _beside(commit, "Space"):
            space = push_space(
                repo_id, repo_id, revision=options.revision, private=options.private, api=api
            )
        if options.private:
            warnings.append(
                "the Space can read the private model once you give it a secret HF_TOKEN: "
                f"{space.url}/settings"
            )
    return Pushed(commit, space, trials, tuple(warnings))


def preview_push(
    folder: str | Path,
    repo_id: str,
    options: PushOptions | None = None,
    *,
    api: HfApi | None = None,
) -> PushPlan:
    """Plan what `push_model` would do, with the same arguments and errors; reads the Hub and
    changes nothing. Needs no login; where the Hub cannot be reached, a warning says what was not
    looked up.

    Example:
        >>> print(preview_push("my-search", "me/my-merge"))  # doctest: +SKIP
    """
    options = options or PushOptions()
    api = api or default_api()
    check_name(repo_id)
    reason = unreachable(api, repo_id)
    with TemporaryDirectory(prefix="evomerge-push-") as scratch:
        plan = plan_push(
            folder, repo_id, options, api=None if reason else api, scratch=Path(scratch)
        )
    if reason is None:
        return plan
    unread = dict.fromkeys(
        parent.model for parent in plan.license.parents if parent.note == NOT_ASKED
    )
    asked = [f"what {repo_id} holds", "whether the Hub takes the card"]
    if unread:
        asked.append(f"licenses of the parents {', '.join(unread)}")
    warning = f"not asked: {'; '.join(asked)}; the Hub cannot be reached ({reason})"
    return replace(plan, warnings=(warning, *plan.warnings))


def check_push(
    repo_id: str,
    recipe_refs: Sequence[SourceRef],
    options: PushOptions,
    *,
    api: HfApi | None = None,
) -> None:
    """Refuse, before a search begins, what could not be pushed to a repository when it ends.

    Checks the login, the name, what is there already, and the licenses of the sources and the base.
    Raises:
        HubError: As `push_model`.
    """
    api = api or default_api()
    check_login(api, repo_id)
    files_there(api, repo_id, options)
    names = PublicNames(api, options.published)
    parents = [part for ref in recipe_refs for part in ref.parts]
    license = license_for(parents, names, options, api)
    check_metadata(metadata_text(repo_id, license, options.languages), repo_id, api)


@contextmanager
def _beside(model: Commit, what: str) -> Iterator[None]:
    """Say of what cannot be published beside a model that the model is there."""
    try:
        yield
    except HubError as cause:
        raise HubError(
            f"the model is published, {model.url} at {model.sha[:12]}, but not its {what}: {cause}"
        ) from cause


def _open_target(api: HfApi, repo_id: str, options: PushOptions) -> Target:
    """The repository and branch to commit to, made where they are missing."""
    make_repo(api, Target(repo_id), private=options.private)
    revision = options.revision or "main"
    if revision != "main":
        what = f"{repo_id}: no answer says that the branch {revision!r} was created"
        ask(what, lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
    return Target(repo_id, revision=revision)

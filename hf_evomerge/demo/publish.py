"""Publishes the demo's winner and the specialists it was made of, on the Hub, or on the one that
the environment names."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from ..checkpoints.client import ask, default_api
from ..errors import EvoMergeError
from ..hub.commit import Target, commit_files
from ..hub.push import push_model
from ..hub.push_plan import PushOptions
from ..hub.reproduce import reproduce
from ..hub.target import CARD
from ..search.study.paths import settings_in

EXAMPLES = 50


def publish_demo(
    search: Path,
    family: Path,
    repo_id: str,
    *,
    name: str | None = None,
    space: bool = False,
    card: Path | None = None,
    language: str = "ja",
) -> str:
    """Publish the specialists, then the winner that was made of them; rebuild it from what is
    there, and compare.

    Args:
        search: The finished study.
        family: The folder that has the base and the specialists that it merged, a folder each.
        repo_id: Repository of the winner; the specialists go beside it, their names after a hyphen.
        name: Another place for the winner.
        space: Whether to make a Space as well.
        card: Where to leave the published card.
        language: Language of the answers, as ISO 639 code.

    Returns:
        What was done, in lines for people.

    Raises:
        EvoMergeError: The Hub does not take them, or the winner does not come out the same.
    """
    api = default_api()
    published = {}
    config = settings_in(search)
    for specialist in sorted(
        {Path(ref.model).name for ref in (config.base, *config.sources) if ref is not None}
    ):
        target = Target(f"{repo_id}-{specialist}")
        ask(
            f"{target.repo_id}: no answer says that it was created",
            partial(api.create_repo, target.repo_id, exist_ok=True),
        )
        files = {
            file.name: file for file in sorted((family / specialist).iterdir()) if file.is_file()
        }
        commit_files(api, target, files, message=f"A source of {repo_id}")
        published[str(family / specialist)] = target.repo_id
    options = PushOptions(
        published=published, examples=EXAMPLES, languages=(language,), space=space
    )
    repo_id = name or repo_id
    pushed = push_model(search, repo_id, options, api=api)
    rebuilt = reproduce(repo_id, api=api)
    if not rebuilt.same:
        raise EvoMergeError(str(rebuilt))
    lines = [
        f"published {pushed.model.url}",
        *([f"Space: {pushed.space.url}"] if pushed.space else []),
    ]
    if card is not None:
        there = ask(
            f"{repo_id}: its card",
            lambda: api.hf_hub_download(repo_id, CARD, revision=pushed.model.sha),
        )
        shutil.copyfile(there, card)
        lines.append(f"its card: {card}")
    return "\n".join([*lines, f"rebuilt from its recipe: {str(rebuilt).splitlines()[0]}"])

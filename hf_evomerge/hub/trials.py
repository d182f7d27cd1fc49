"""Publishes the trials of a search as a data set of one table, for the Hub's viewer and SQL, with a
card that loads it in two lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..record import MADE_WITH, Record
from ..search.file.stages import STAGES
from .card import TAGS, license_terms, markdown_text
from .commit import Commit, Content, Target, commit_files, make_repo
from .record import TRIALS_FILE
from .target import ATTRIBUTES, check_private, find_repo, names_in, refuse_others

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from .licenses import LicenseDecision

_CARD = """---
{metadata}
---

# Trials of {name}

{about}

```python
from datasets import load_dataset
trials = load_dataset("{repo_id}", split="train")
```

In the viewer's SQL console: `SELECT stage, number, fitness FROM train ORDER BY fitness DESC`.

{stages}

| column | |
| --- | --- |
| `stage`, `number`, `generation` | part of the search; the trial's number in it; its proposal |
| `state`, `error`, `duplicate_of` | COMPLETE, or FAILED and why; an earlier trial of its recipe |
| `fitness`, `standard_error` | the mean score, more is better; its error |
| `accuracy` | the share of right answers |
| `objective.NAME` | another objective, where the search has several |
| `examples`, `evaluations`, `seconds` | problems scored; the same per all of them; time |
| `genome`, `recipe` | the vector; the YAML that builds the model |
| `path`, `scales` | the model's layers, in order, and a scale for each |

{made_with}
"""


def commit_trials(
    api: HfApi, repo_id: str, files: Mapping[str, Content], *, private: bool
) -> Commit:
    """Make the data set hold these files."""
    target = Target(repo_id, "dataset")
    make_repo(api, target, private=private)
    return commit_files(api, target, files, message="Trials of a search by hf_evomerge")


def check_trials(repo_id: str, api: HfApi, *, private: bool, replace: bool) -> None:
    """Refuse a data set with files of somebody else, or a public one that should be private:
    `HubError`."""
    info = find_repo(repo_id, "dataset", api)
    names = names_in(info)
    if not replace and TRIALS_FILE not in names and set(names) - {ATTRIBUTES}:
        refuse_others(f"data set {repo_id}", names)
    check_private(repo_id, info, "the data set", private=private)


def trials_card(record: Record, repo_id: str, license: LicenseDecision) -> str:
    """Write the card of the data set; it links to the model, which has its name."""
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        tags=TAGS,
        pretty_name=f"Trials of {repo_id}",
        license=license.license,
        **license_terms(repo_id, license),
    )
    about = markdown_text(record.settings.about or "")
    found = f"The search found [{repo_id}](https://huggingface.co/{repo_id})."
    stages = [
        f"- {STAGES[each.stage].capitalize()}: {each.trials} trials, {each.failed} of them failed."
        for each in record.stages
    ]
    return _CARD.format(
        metadata=data.to_yaml(),
        name=repo_id.rsplit("/", 1)[-1],
        repo_id=repo_id,
        about=f"{about} {found}".strip(),
        stages="\n".join(stages),
        made_with=MADE_WITH,
    )

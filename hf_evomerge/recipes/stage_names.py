"""The names of the stages of a search, and their titles: what trials and results are told apart
by."""

from __future__ import annotations

from typing import Literal

StageName = Literal["ps-first", "ps", "dfs-first", "dfs"]
STAGES: dict[str, str] = {
    "ps-first": "parameter space, first",
    "ps": "parameter space",
    "dfs-first": "data flow space, first",
    "dfs": "data flow space",
}
"""The titles of all stages that a search may have, by their names, in the order that they run."""

"""A callback that hands the progress of a search to a function, which may note it or end the search."""

from __future__ import annotations

from collections.abc import Callable

from hf_evomerge.search.callbacks import Progress, SearchCallback
from hf_evomerge.search.study.study import Study


class Watch(SearchCallback):
    """Calls a function after every trial and evaluation."""

    def __init__(self, see: Callable[[Progress], object]) -> None:
        self.see = see

    def on_progress(self, study: Study, progress: Progress) -> None:
        """Hand it on."""
        self.see(progress)

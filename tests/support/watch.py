"""Searches that are watched, and searches that are ended as a killed process is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hf_evomerge.search.callbacks import Progress, SearchCallback
from hf_evomerge.search.study.study import Study


class Watch(SearchCallback):
    """Calls a function after every trial and evaluation."""

    def __init__(self, see: Callable[[Progress], object]) -> None:
        self.see = see

    def on_progress(self, study: Study, progress: Progress) -> None:
        """Hand it on."""
        self.see(progress)


class KilledError(BaseException):
    """As if the process had been killed."""


def killed(when: Callable[[Progress], object], run: Callable[..., object], *given: Any, **more: Any) -> None:
    """Run a search, or go on with it, and end it where its progress is such."""

    def see(progress: Progress) -> None:
        if when(progress):
            raise KilledError

    with pytest.raises(KilledError):
        run(*given, **{"build": False, "callbacks": [Watch(see)], **more})

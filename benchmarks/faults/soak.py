"""One long search in one process: every trial succeeds, and the memory of the process stays what it
was."""

import sys
from pathlib import Path

from hf_evomerge.search.callbacks import Progress, SearchCallback
from hf_evomerge.search.run import run_search
from hf_evomerge.search.study.study import Study

from .bench import Bench, Rows, own_memory, search_of

WARM = 0.2  # of the trials, after which memory is measured first
ALLOWED = 0.05  # of what was measured first


def run(scratch: Path, count: int, seed: int) -> tuple[Rows, list[str]]:
    """A search of so many trials; all are lost where the memory grew by more than a twentieth."""
    Bench(scratch, 6)
    memory: dict[int, int] = {}

    class Measure(SearchCallback):
        """Notes the memory after every trial."""

        def on_progress(self, study: Study, progress: Progress) -> None:
            if progress.phase == "ps":
                memory[int(progress.done)] = own_memory()

    config = search_of(scratch / "tiny", count, seed)
    run_search(config, scratch / "soak", build=False, callbacks=[Measure()])
    study = Study.open(scratch / "soak")
    trials = study.trials("ps")
    study.close()
    first = memory[max(1, int(len(trials) * WARM))]
    last = memory[max(memory)]
    whole = sum(trial.scores.error is None for trial in trials)
    name = (
        f"trials of one search; memory {first >> 20} MiB after a fifth of them, {last >> 20} MiB "
        "at the end"
    )
    print(name, file=sys.stderr)
    flat = last < first * (1 + ALLOWED)
    row = {
        "injected": len(trials),
        "survived": whole if flat else 0,
        "lost": len(trials) - (whole if flat else 0),
    }
    return {name: row}, [] if flat else [f"memory grew from {first} to {last}"]

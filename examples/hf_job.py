# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-evomerge", "huggingface_hub>=1.0"]
# ///
"""Runs a search as a job that may be cut off at any time, and keeps its study in a data set
repository on the Hub.

The repository has a `search.yaml` with `device: auto`, and the data that it names beside it. Call
the same command again after the time limit: the search goes on from what was kept, with the trials
of one that was never cut off.

    hf jobs uv run --flavor a10g-large --timeout 4h --secrets HF_TOKEN hf_job.py \\
        YOUR-NAME/YOUR-STUDY
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from hf_evomerge import SearchCallback, SearchConfig, Study, resume_search, run_search

WORKERS = None  # as many as cores and memory take, one beside each GPU
KEPT = ["study.db", "search.yaml", "recipe.yaml", "results.json", "plots/*", "model/*"]


class Keep(SearchCallback):
    """Uploads the study after a generation, at most every so many seconds, and everything at the
    end."""

    def __init__(self, repo_id: str, seconds: float) -> None:
        self.repo_id = repo_id
        self.seconds = seconds
        self.last = time.monotonic()

    def on_generation(self, study: Study, generation: object) -> None:
        """Upload what has been scored so far."""
        if time.monotonic() - self.last >= self.seconds:
            self.upload(study.folder, "study.db")

    def upload(self, folder: Path, *names: str) -> None:
        """Upload files of the search's folder; the study as a copy that is whole, while it is being
        written."""
        copy = folder / "upload" / "study.db"
        copy.parent.mkdir(exist_ok=True)
        copy.unlink(missing_ok=True)
        with (
            closing(sqlite3.connect(folder / "study.db")) as study,
            closing(sqlite3.connect(copy)) as target,
        ):
            study.backup(target)
        api = HfApi()
        api.upload_file(
            path_or_fileobj=copy,
            path_in_repo="search/study.db",
            repo_id=self.repo_id,
            repo_type="dataset",
        )
        if rest := [name for name in names if name != "study.db"]:
            api.upload_folder(
                folder_path=folder,
                path_in_repo="search",
                repo_id=self.repo_id,
                repo_type="dataset",
                allow_patterns=rest,
            )
        self.last = time.monotonic()


def main() -> None:
    """Begin the search of a repository, or go on with it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repo_id", help="the data set repository")
    parser.add_argument("--work", type=Path, default=Path("job"), help="a folder on the job's disk")
    parser.add_argument("--seconds", type=float, default=600, help="between two uploads")
    given = parser.parse_args()
    snapshot_download(
        given.repo_id, repo_type="dataset", local_dir=given.work, ignore_patterns=["search/model/*"]
    )
    os.chdir(given.work)
    keep = Keep(given.repo_id, given.seconds)
    out = Path("search")
    if (out / "study.db").exists():
        resume_search(out, workers=WORKERS, callbacks=[keep])
    else:
        run_search(SearchConfig.load("search.yaml"), out, workers=WORKERS, callbacks=[keep])
    keep.upload(out, *KEPT)


if __name__ == "__main__":
    main()

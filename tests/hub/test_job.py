"""The example that runs a search as a job: cut off, begun again on an empty disk, and the same as
one that never was."""

import json
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from hf_evomerge.search.run import run_search
from hf_evomerge.search.study.study import Study

SCRIPT = Path(__file__).parents[2] / "examples" / "hf_job.py"


def test_a_job_goes_on_after_its_time_limit(
    tiny, tmp_path, hub, lfs_api, search_config, search_settings, monkeypatch
):
    """What a job has kept in its repository goes on from another disk, to the same trials and a
    model."""
    spec = spec_from_file_location("hf_job", SCRIPT)
    job = module_from_spec(spec)
    spec.loader.exec_module(job)  # type: ignore[union-attr]
    monkeypatch.setattr(job, "WORKERS", 0)  # in this process, which is cheaper
    settings = search_settings()
    settings["data"] = {split: {"jsonl": f"{split}.jsonl"} for split in settings["data"]}
    lfs_api.create_repo("local/study", repo_type="dataset")
    for split in settings["data"]:
        lfs_api.upload_file(
            path_or_fileobj=tiny / f"{split}.jsonl",
            path_in_repo=f"{split}.jsonl",
            repo_id="local/study",
            repo_type="dataset",
        )
    text = json.dumps(settings).encode()
    lfs_api.upload_file(
        path_or_fileobj=text, path_in_repo="search.yaml", repo_id="local/study", repo_type="dataset"
    )

    def run(disk, seconds):
        (tmp_path / disk).mkdir()
        monkeypatch.chdir(tmp_path / disk)
        monkeypatch.setattr("sys.argv", ["hf_job.py", "local/study", "--seconds", seconds])
        job.main()

    keep = job.Keep.upload

    def cut_off(self, folder, *names):
        keep(self, folder, *names)
        raise TimeoutError

    monkeypatch.setattr(job.Keep, "upload", cut_off)
    with pytest.raises(TimeoutError):
        run("first", "0")
    monkeypatch.setattr(job.Keep, "upload", keep)
    shutil.rmtree(tmp_path / "first")
    assert lfs_api.file_exists("local/study", "search/study.db", repo_type="dataset")
    run("second", "600")
    kept = Path(
        lfs_api.hf_hub_download(
            "local/study", "search/study.db", repo_type="dataset", local_dir=tmp_path / "kept"
        )
    )
    run_search(search_config(), tmp_path / "whole", build=False)
    trials = [Study.open(folder).trials() for folder in (tmp_path / "whole", kept.parent)]
    assert [trial.scores for trial in trials[0]] == [trial.scores for trial in trials[1]]
    assert {trial.generation for trial in trials[1]} == {0, 1}
    assert lfs_api.file_exists("local/study", "search/model/config.json", repo_type="dataset")

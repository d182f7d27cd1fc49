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
    where = {"repo_id": "local/study", "repo_type": "dataset"}
    lfs_api.create_repo(**where)
    lfs_api.upload_folder(folder_path=tiny, allow_patterns="*.jsonl", **where)
    text = json.dumps(settings).encode()
    lfs_api.upload_file(path_or_fileobj=text, path_in_repo="search.yaml", **where)

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
    run("second", "600")
    kept = Path(lfs_api.snapshot_download(**where)) / "search"
    run_search(search_config(), tmp_path / "whole", build=False)
    whole, again = (Study.open(folder).trials() for folder in (tmp_path / "whole", kept))
    assert [trial.scores for trial in whole] == [trial.scores for trial in again]
    assert {trial.generation for trial in again} == {0, 1}
    assert (kept / "model" / "config.json").exists()

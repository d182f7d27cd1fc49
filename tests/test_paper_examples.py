"""The paper's example files, with nothing edited but the device and budgets, on stand-ins of a Hub
on loopback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_fixtures import use_hub
from local_hub import LocalHub
from paper_stand_ins import ORGS, publish

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json, sys, warnings
from pathlib import Path

warnings.simplefilter("ignore")
from hf_evomerge import SearchConfig, plan_search, run_search

out, found = Path(sys.argv[1]), {}
for name in ("ps", "hybrid"):
    text = Path(f"examples/evollm-jp-{name}.yaml").read_text(encoding="utf-8")
    (out / "search.yaml").write_text(text, encoding="utf-8")
    plan = plan_search(SearchConfig.load(out / "search.yaml"))  # as it is
    for pattern, small in (
        ("cuda:0", "cpu"), ("evaluations: 1000", "evaluations: 2"), ("evaluations: 12800", "evaluations: 1"),
        ("population: 128", "population: 2"), ("max_new_tokens: 1024", "max_new_tokens: 2"), ("size: 64", "size: 512"),
        ("compat: paper}", "compat: paper, max_new_tokens: 2}"),
    ):
        text = text.replace(pattern, small)
    (out / "search.yaml").write_text(text, encoding="utf-8")
    result = run_search(SearchConfig.load(out / "search.yaml"), out / name)
    config = json.loads((out / name / "model" / "config.json").read_text())
    found[name] = {
        "plan": plan.to_text(),
        "rows": [row.stage for row in result.rows],
        "vocabulary": config.get("text_config", config)["vocab_size"],
    }
for name in ("evovlm-jp", "llava-next-maths", "qwen2-vl-experts", "evosdxl-jp"):
    text = Path(f"examples/{name}.yaml").read_text(encoding="utf-8")
    text = text.replace("pictures.jsonl", sys.argv[2]).replace("prompts.jsonl", sys.argv[3])
    (out / "search.yaml").write_text(text, encoding="utf-8")
    found[name] = {"plan": plan_search(SearchConfig.load(out / "search.yaml")).to_text()}
print(json.dumps(found))
"""  # noqa: E501


@pytest.mark.slow
def test_the_papers_files_run(tmp_path, monkeypatch):
    """All files are planned as they are on a machine without CUDA, from headers alone; those of
    text run to a built model."""
    for library in ("datasets", "diffusers", "torchvision"):
        pytest.importorskip(library)
    with LocalHub(tmp_path / "hub", orgs=ORGS) as hub:
        publish(use_hub(monkeypatch, hub, tmp_path / "client"), tmp_path / "stand-ins")
        environment = {
            **os.environ,
            **hub.environment(home=tmp_path / "client"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        environment["CUDA_VISIBLE_DEVICES"] = ""
        given = [str(tmp_path / "stand-ins" / name) for name in ("pictures.jsonl", "prompts.jsonl")]
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), *given]
        done = subprocess.run(
            command,
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, stages in (("ps", ["ps"]), ("hybrid", ["ps", "dfs"])):
        plan = found[name]["plan"]
        assert "warning: compute.device: 'cuda:0' cannot be used here" in plan
        assert re.search(r"^in all, with workers=\d+: time not measured$", plan, re.MULTILINE)
        assert "memory of each worker: about " in plan
        plain = ["average", "average"]
        assert found[name]["rows"] == ["base", *["source"] * 3, *plain, *stages]
        assert found[name]["vocabulary"] == 19
    assert (
        "ps: dare_ties, 6 numbers to evolve, 1000 evaluations, 111 generations of 9 on 1069 of 1069"
        in found["ps"]["plan"]
    )
    assert "generations of 9 on 869 of 869" in found["hybrid"]["plan"]
    assert "generations of 128 on 200 of 869" in found["hybrid"]["plan"]
    for name, numbers in (
        ("evovlm-jp", 4),
        ("llava-next-maths", 8),
        ("qwen2-vl-experts", 20),
        ("evosdxl-jp", 8),
    ):
        assert f", {numbers} numbers to evolve, " in found[name]["plan"], found[name]["plan"]

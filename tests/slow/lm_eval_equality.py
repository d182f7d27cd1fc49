"""Compares the fitness task ``lm_eval`` on candidates in memory with lm_eval's own command line on the built models.

A merge and a path over the demo's specialists, and three local tasks of different kinds on the demo's problems. Prints a line
per model and task; ends with status 1 where a document's score differs.

    python tests/slow/lm_eval_equality.py --out /tmp/lm-eval-equality
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from hf_evomerge.building.build import build_model
from hf_evomerge.demo.quickstart import SPECIALISTS, demo_config, write_problems
from hf_evomerge.fitness import DataSpec, LmEvalSpec
from hf_evomerge.recipes.recipe import FlowPart, MergePart, Recipe
from hf_evomerge.search.evaluation.evaluator import Evaluator

DOCUMENTS, FEW_SHOT = 40, 0  # the specialists have no room for more
KINDS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["<eos>"], "max_gen_toks": 8, "do_sample": False},
        "filter_list": [
            {"name": "first", "filter": [{"function": "regex", "regex_pattern": "(\\S+)"}, {"function": "take_first"}]},
            {"name": "whole", "filter": [{"function": "take_first"}]},
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{prompt}} {{answer}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}


def write_tasks(folder: Path) -> list[str]:
    """The tasks' files, over the demo's problems with the answers of others as further choices."""
    data = write_problems(folder, {"validation": DOCUMENTS, "test": DOCUMENTS})
    for file in data.values():
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        answers = list(dict.fromkeys(row["answer"] for row in rows))
        for number, row in enumerate(rows):
            row["choices"] = list(dict.fromkeys([*(answers[(number + k) % len(answers)] for k in range(3)), row["answer"]]))
        file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    files = {"train": str(data["validation"]), "test": str(data["test"])}
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test", "fewshot_split": "train"}
    for name, kind in KINDS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **kind}), encoding="utf-8")
    return [str(folder / f"{name}.yaml") for name in KINDS]


def command_line(model: Path, tasks: list[str], out: Path) -> dict[str, dict[int, float]]:
    """The score of each document, as lm_eval's command line logs it."""
    arguments = ["--model", "hf", "--model_args", f"pretrained={model},dtype=float32,trust_remote_code=True"]
    arguments += ["--tasks", *tasks, "--num_fewshot", str(FEW_SHOT), "--device", "cpu", "--batch_size", "8"]
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "lm_eval", "run", *arguments, "--log_samples", "--output_path", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    found: dict[str, dict[int, float]] = {}
    for name, kind in KINDS.items():
        (file,) = out.rglob(f"samples_{name}_*.jsonl")
        metric = kind["metric_list"][0]["metric"]  # type: ignore[index]
        for sample in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            if sample["filter"] in ("none", "whole"):
                value = sample[metric]
                found.setdefault(name, {})[sample["doc_id"]] = value[0] / value[1] if isinstance(value, list) else float(value)
    return found


def main() -> int:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    tasks = write_tasks(out / "data")
    config = demo_config("dfs", {}, 8, 0, SPECIALISTS)
    sources = {"sources": config.sources, "base": config.base, "dtype": "float32"}
    merge = MergePart(method="task_arithmetic", parameters=[{"weight": 0.9}, {"weight": 0.7}])
    layers = [Evaluator(config).sources.layers[number] for number in (0, 1)]
    path = [f"0:0-{layers[0] - 1}", f"1:1-{layers[1] - 1}"]
    recipes = {"merge": Recipe(**sources, merge=merge), "path": Recipe(**sources, flow=FlowPart(path=path))}
    worst = 0.0
    for label, recipe in recipes.items():
        build_model(recipe, out / label, progress=False, overwrite=True)
        theirs = command_line(out / label, tasks, out / f"{label}-lm_eval")
        for name, file in zip(KINDS, tasks, strict=True):
            metric = "exact_match,whole" if name == "writing" else None
            spec = LmEvalSpec(num_fewshot=FEW_SHOT, batch_size=8, metric=metric)
            live = config.model_copy(update={"fitness": spec, "data": {"search": DataSpec(lm_eval=[file])}})
            scores = Evaluator(live).evaluate(recipe)
            if scores.error is not None:
                raise SystemExit(f"{label}, {name}: {scores.error}")
            own = [theirs[name][number] for number in range(DOCUMENTS)]
            difference = float(np.abs(scores.values - own).max())
            worst = max(worst, difference)
            print(f"{label:6} {name:8} here {scores.mean:.6f}  lm_eval {np.mean(own):.6f}  largest difference {difference:.2g}")
    return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main())

"""The section of golden hashes that may change on purpose: what commands print, a published model,
the Space's pictures."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from facts import Facts, Golden, without
from pyarrow import parquet
from sections import CASES, internal, placed, searched, settings

PUBLISHED = ("hybrid", "nsga2", "dfs-terms")
VIEWS = (
    "heading",
    "path_view",
    "fitness_view",
    "front_view",
    "results_table",
    "commands",
    "licenses",
)
UPLOAD = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo(sys.argv[1])
HfApi().upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])
"""
DURATION = re.compile(r"\b\d+(?:\.\d+)? ?(?:ms|s|min|h|seconds|minutes)\b")
COMMIT = re.compile(r"revision: ([0-9a-f]{40})$", re.MULTILINE)
COMMAND = re.compile(r"^│ ([a-z][\w-]*) ", re.MULTILINE)


def text_section(golden: Golden) -> None:
    """The help of every command, what commands say of models and searches, publications, and the
    Space's pictures."""
    overview = command(golden, "--help")
    golden.put("text/help/hf-evomerge", overview)
    for name in COMMAND.findall(overview.partition("─ Start ─")[2]):
        golden.put(f"text/help/{name}", command(golden, name, "--help"))
    golden.put("text/methods", command(golden, "merge", "--methods"))
    for name in PUBLISHED:
        with golden.trying(f"text of {name}"):
            searched(golden, name)
            golden.put(f"text/show/{name}", command(golden, "show", f"search/{name}"))
            table = golden.work / f"{name}.csv"
            command(golden, "export", f"search/{name}", "--csv", str(table))
            golden.put(f"text/export/{name}", table_text(table.read_text(encoding="utf-8")))
    with golden.trying("reports"):
        reports(golden)
    with golden.trying("publication"), local_hub(golden) as hub:
        for name in PUBLISHED:
            golden.put_all(f"text/published/{name}", published(golden, name, hub))


def reports(golden: Golden) -> None:
    """What is said of checkpoints, recipes and searches before anything is computed."""
    from hf_evomerge import (
        EvoMergeError,
        Recipe,
        SearchConfig,
        check_recipe,
        diff_models,
        inspect_model,
        plan_search,
        to_mergekit,
    )

    models = golden.inputs / "float32"
    for folder in (models / "a", *(golden.work / "search" / name / "model" for name in PUBLISHED)):
        report = inspect_model(str(folder))
        golden.put(f"text/inspect/{folder.parent.name}", f"{report}\n{report.to_json()}")
    diff = diff_models(str(models / "a"), str(models / "b"), base=str(models / "base"))
    golden.put("text/diff", f"{diff}\n{diff.to_json()}")
    for name, given in CASES["builds"].items():
        recipe = Recipe.model_validate(placed({"base": "base", **given}, models))
        checked = check_recipe(recipe)
        golden.put(f"text/check/{name}", f"{checked}\n{checked.ledger}")
        with suppress(EvoMergeError):  # mergekit has no word for it
            golden.put(f"text/mergekit/{name}", "\n".join(map(str, to_mergekit(recipe))))
    for name in CASES["searches"]:
        try:
            plan = timeless(str(plan_search(SearchConfig.model_validate(settings(name, models)))))
        except Exception as error:  # a crash is a text like any other: it may not change unseen
            plan = repr(error)
        golden.put(f"text/plan/{name}", plan)


def command(golden: Golden, *words: str, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints, without durations."""
    program = [sys.executable, "-m", "hf_evomerge", *words]
    done = subprocess.run(
        program,
        cwd=golden.work,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        golden.complain(f"`{' '.join(words)}` ended with {done.returncode}: {done.stderr[-500:]}")
    return timeless(done.stdout)


def timeless(text: str) -> str:
    """A text without durations."""
    return DURATION.sub("TIME", text)


def table_text(text: str) -> str:
    """A table of trials without its times and the columns that name recipes by their places."""
    header, *rows = csv.reader(text.splitlines())
    kept = [
        index
        for index, column in enumerate(header)
        if "seconds" not in column and "recipe" not in column
    ]
    return "\n".join(",".join(row[index] for index in kept) for row in (header, *rows))


@contextmanager
def local_hub(golden: Golden) -> Iterator[dict[str, str]]:
    """A Hub on loopback, as the environment of its client."""
    program = [sys.executable, "-m", "local_hub", "--root", "hub", "--port", "0"]
    serving = subprocess.Popen(program, cwd=golden.work, stdout=subprocess.PIPE, text=True)
    try:
        assert serving.stdout is not None
        environment = {"HF_HUB_OFFLINE": "0"}
        for line in serving.stdout:
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").strip().partition("=")
                environment[name] = shlex.split(value)[0]
            elif "HF_ENDPOINT" in environment:
                break
        for name in ("a", "b", "base"):
            program = [
                sys.executable,
                "-c",
                UPLOAD,
                f"local/{name}",
                str(golden.inputs / "float32" / name),
            ]
            subprocess.run(program, env={**os.environ, **environment}, check=True)
        yield environment
    finally:
        serving.terminate()
        serving.wait()


def published(golden: Golden, name: str, hub: Mapping[str, str]) -> Facts:
    """Publish a search; its card, its record, and what the Space shows of it."""
    import hf_evomerge

    sources = [
        f"--published={golden.inputs / 'float32' / source}=local/{source}"
        for source in ("a", "b", "base")
    ]
    command(
        golden,
        "push",
        f"search/{name}",
        f"local/{name}",
        "--license=mit",
        "--examples=2",
        *sources,
        environment=hub,
    )
    folder = golden.work / "published" / name
    folder.mkdir(parents=True)
    for file in ("README.md", "study.json", "recipe.yaml", "config.json", "trials.parquet"):
        address = f"{hub['HF_ENDPOINT']}/local/{name}/resolve/main/{file}"
        with urllib.request.urlopen(address) as response:
            (folder / file).write_bytes(response.read())
    for commit in COMMIT.findall((folder / "recipe.yaml").read_text(encoding="utf-8")):
        golden.words |= {commit: "COMMIT", commit[:12]: "COMMIT"}
    with closing(sqlite3.connect(golden.work / "search" / name / "study.db")) as study:
        golden.words |= {key: "RECIPE" for (key,) in study.execute("SELECT key FROM recipes")}
    facts: Facts = {
        file: timeless((folder / file).read_text(encoding="utf-8"))
        for file in ("README.md", "recipe.yaml")
    }
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    for key, value in without(study, "seconds").items():
        facts[f"study.json/{key}"] = timeless(json.dumps(value, indent=1, sort_keys=True))
    for column, values in parquet.read_table(folder / "trials.parquet").to_pydict().items():
        if column != "seconds":
            facts[f"trials.parquet/{column}"] = timeless(json.dumps(values, default=str))
    return facts | {
        f"space/{view}": html
        for view, html in pictures(
            folder, Path(hf_evomerge.__file__).parents[1] / "space_app"
        ).items()
    }


def pictures(folder: Path, space: Path) -> dict[str, str]:
    """What the Space shows of a published model, as HTML with SVG; nothing where its modules have
    moved."""
    sys.path.insert(0, str(space))
    try:
        views = importlib.import_module("views")
        model = internal("read")(str(folder))
        return {
            view: timeless(getattr(views, view)(model)) for view in VIEWS if hasattr(views, view)
        }
    except (ImportError, AttributeError) as error:
        print(f"golden: no pictures of the Space: {error}", file=sys.stderr)
        return {}
    finally:
        sys.path.remove(str(space))

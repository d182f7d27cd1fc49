"""Small searches and what they leave, for the tests of whole searches."""

import json
import shutil
import sqlite3
from contextlib import closing
from hashlib import sha256

import yaml

from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.file.config import SearchConfig

TABLES = yaml.safe_load("""
gradient: &gradient {by: gradient, evaluations: 12}
# few scores, so weights that plainly differ
weights: &weights {starts: [], parameters: {weight: {low: 0.0, high: 1.0}}}
by gradient:
  ps:
    merge: {method: breadcrumbs, groups: tensor, <<: *weights}
    optimize: [{<<: *gradient, batch: 2}]
  dfs:
    path: {kind: gates}
    optimize: [&longer {<<: *gradient, evaluations: 30, batch: 2}]
  hybrid:
    merge: {groups: block, <<: *weights}
    path: {kind: gates, repetitions: 1}
    optimize:
      - {<<: *gradient, space: ps}
      - {<<: *gradient, evaluations: 40, space: dfs}
  terms:
    space: dfs
    path: {kind: gates, terms: all}
    optimize: [*longer]
by both:
  ps:
    optimize:
      - &first {<<: *gradient, fitness: {task: likelihood}}
      - &then {evaluations: 10, population: 4}
  dfs:
    path: {kind: gates}
    optimize: [{<<: *first, evaluations: 30}, *then]
""")
GRADIENT = TABLES["gradient"]
BY_GRADIENT = TABLES["by gradient"]
BY_BOTH = TABLES["by both"]


def as_read(settings):
    """Settings of which a section may be the text that a search file has there."""
    return {
        key: yaml.safe_load(section) if isinstance(section, str) else section
        for key, section in settings.items()
    }


def minimal(**more):
    """A search over two sources that are not there; keywords replace whole sections."""
    settings = {
        "space": "ps",
        "sources": [{"model": "a"}, {"model": "b"}],
        "fitness": {"task": "likelihood"},
    }
    return validate(SearchConfig, {**settings, **as_read(more)}, SearchError)


def write_lines(file, *records):
    """Write a file of JSON lines; returns its name."""
    file.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    return file


def facts(folder):
    """Everything that a study holds of its trials but the seconds."""
    with closing(sqlite3.connect(folder / "study.db")) as study:
        rows = {}
        for table in ("trials", "recipes", "evaluations", "objectives"):
            columns = study.execute(f"PRAGMA table_info({table})").fetchall()
            kept = ", ".join(name for _, name, *_ in columns if name != "seconds")
            keys = ", ".join(name for _, name, *_, key in columns if key)
            rows[table] = study.execute(f"SELECT {kept} FROM {table} ORDER BY {keys}").fetchall()
        return rows


def digests(folder):
    """The sha256 of every file in a folder, by its name."""
    return {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def count_trials(folder):
    """How many trials a study holds; 0 where there is none yet."""
    return len(facts(folder)["trials"]) if (folder / "study.db").exists() else 0


def copy_of(study, to):
    """Copy a finished study. Another test may be reading it: what the database makes for its
    readers comes and goes, and holds nothing of the study."""
    return shutil.copytree(study, to, ignore=shutil.ignore_patterns("*-wal", "*-shm"))

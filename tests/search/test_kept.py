"""What a model keeps of its parents' skills."""

from dataclasses import replace

import numpy as np
import pytest
from searches import write_lines

from hf_evomerge import Scores, run_search
from hf_evomerge.search.results.kept import mean_kept, what_is_kept
from hf_evomerge.search.results.result import Result
from hf_evomerge.search.results.table import Against, Row, kept_by, rows_table


def _scores(right):
    return Scores(np.where(right, -0.1, -2.0), correct=right)


def _rows(model_right, parent_right):
    quiet = _scores(np.zeros(parent_right.size, dtype=bool))
    parent = {"a": _scores(parent_right), "b": quiet}
    other = {"a": quiet, "b": _scores(parent_right)}
    model = {"a": _scores(model_right), "b": _scores(parent_right)}
    return [
        Row("source", "first", quiet, retained=parent),
        Row("source", "second", quiet, retained=other),
        Row("ps", "merge", _scores(model_right), winner=True, retained=model),
    ]


def test_the_share_is_of_the_best_parent():
    """The share is the ratio of accuracies; where all answers are equal it has an interval too."""
    parent = np.arange(100) < 80
    model = np.arange(100) < 60
    rows = _rows(model, parent)
    first, second = kept = kept_by(rows[2], rows)
    assert (first.skill, first.share, first.parent) == ("a", pytest.approx(0.75), "first")
    assert (second.share, second.high) == (1.0, 1.0)
    assert second.low == pytest.approx(80 / (80 + 1.96**2), abs=1e-3)  # Wilson, 80 of 80
    assert mean_kept(kept) == "0.88"
    (lost,) = what_is_kept([replace(first, share=0.4), second])
    assert lost.endswith("; MORE THAN HALF IS LOST of a: give more examples of it")
    (said, *_) = what_is_kept(kept)
    assert said.startswith("Keeps 0.75 (")
    assert said.endswith("0.88 on average, 0.75 at least")
    assert "kept" in rows_table(rows, "").splitlines()[0]


def test_what_the_advised_model_keeps_is_said():
    """Where the verdict names another model than the winner, both shares are said."""
    parent = np.arange(100) < 80
    rows = _rows(parent & (np.arange(100) < 40), parent)
    beside = Row("together", "merge with LoRA (best of 2)", against=Against("it", "take it"))
    skills = {name: _scores(parent) for name in ("a", "b")}
    rows.insert(2, replace(beside, scores=_scores(parent), retained=skills))
    said = Result(None, "test", rows).verdict
    assert any(each.startswith("Keeps 0.50 (") for each in said)
    (of_lora,) = (each for each in said if each.startswith("Merge with LoRA keeps 1.00 ("))
    assert of_lora.endswith("1.00 on average, 1.00 at least")


def test_the_interval_covers():
    """In about 95 of 100 draws the interval holds the true share."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        parent = rng.random(150) < 0.8
        model = np.where(rng.random(150) < 0.5, parent, rng.random(150) < 0.6)
        rows = _rows(model, parent)
        share = kept_by(rows[2], rows)[0]
        inside += share.low <= 0.7 / 0.8 <= share.high
    assert 0.91 <= inside / 400 <= 0.985


def test_no_share_is_beyond_what_an_accuracy_can_be():
    """Of a parent that is always right, no more than everything is kept."""
    right = np.ones(50, dtype=bool)
    rows = _rows(np.arange(50) != 7, right)
    assert kept_by(rows[2], rows)[0].high == 1.0


def test_nothing_is_kept_of_what_no_parent_has():
    """A skill that every parent lacks has no share, and without skills there is no sentence."""
    nobody = np.zeros(10, dtype=bool)
    rows = _rows(~nobody, nobody)
    assert kept_by(rows[2], rows) == []
    assert what_is_kept(kept_by(rows[2], rows)) == []
    assert "kept" not in rows_table(rows, "")


def test_skills_of_the_test_split(search_config, tmp_path):
    """Data of two skills gives every row a column for each, without further evaluations."""
    data = {"search": {"sources": {}}, "test": {"sources": {}}}
    for split, spec in data.items():
        for name in ("a", "b"):
            records = [{"prompt": f"{split} {name}{i}", "answer": f"w{i}"} for i in range(2)]
            file = write_lines(tmp_path / f"{name}-{split}.jsonl", *records)
            spec["sources"][name] = {"jsonl": str(file)}
    data["search"]["sources"]["a"]["weight"] = 0.5
    result = run_search(search_config("ps", data=data), tmp_path / "skills", build=False)
    for row in result.rows:
        a, b = (row.retained[name].values.tolist() for name in ("a", "b"))
        assert len(a) == len(b) == 2
        assert sorted(a + b) == sorted(row.scores.values)

"""What the scores of parents say before a search begins."""

import numpy as np
import pytest

from hf_evomerge import Scores, SearchConfig, Study
from hf_evomerge.search.phases.parents import _common_end, _tell
from hf_evomerge.search.phases.phase import SearchRun


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (["tac (see key)", "god (see key)"], "all 2 answers end with ' (see key)': a model that"),
        (['{"a": 1}', '{"a": 2}'], None),  # two characters say nothing
        (["yes", "yes"], None),  # one answer, which is told elsewhere
        (["tac", "god"], None),
    ],
)
def test_a_common_end_of_the_answers_is_told(answers, said):
    """An end that all answers have, and that no model may know, makes every answer wrong."""
    found = _common_end(answers)
    assert (found is None) == (said is None)
    assert (found or "").startswith(said or "")


@pytest.mark.parametrize(("least", "said"), [(19, True), (10, False)])
def test_a_task_that_every_model_solves_is_told(least, said, caplog, tmp_path):
    """Where base and sources have nearly all search examples right, there is little to gain; the
    study keeps the line for the results, once."""
    config = SearchConfig.model_validate(
        {
            "space": "ps",
            "sources": [{"model": "a"}, {"model": "b"}],
            "base": {"model": "base"},
            "fitness": {"task": "likelihood"},
            "data": {"search": {"jsonl": "x.jsonl"}},
        }
    )
    solved = dict(zip(config.parents, (20, least, 20), strict=True))
    scores = {
        label: Scores(np.linspace(-2, -1, 20) - count, correct=np.arange(20) < count)
        for label, count in solved.items()
    }
    with Study.create(tmp_path, config.model_dump(mode="json")) as study:
        run = SearchRun(config, study, None, None, {"search": 20})
        _tell(run, scores)
        _tell(run, scores)  # as after a kill
        kept = [line for line in study.meta("warnings") if "every model has 95% right" in line]
    assert ("every model has 95% right" in caplog.text) == said
    assert len(kept) == said

"""What the scores of parents say before a search begins."""

import pytest

from hf_evomerge.search.phases.parents import _common_end


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

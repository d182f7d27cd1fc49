"""Every type of causal language model in transformers, as the table in
benchmarks/pages/model-tests.md records it."""

from pathlib import Path

import pytest
import torch
import transformers
from every_type import TYPES
from slowly import slow_beyond
from tiny_models import FAMILIES
from type_verdicts import FAILS, IN_PLACE, PLAIN_FAILS, REFUSED, SEES, WORKS, refusal, row, verdict

DOCUMENT = (Path(__file__).parents[2] / "benchmarks" / "pages" / "model-tests.md").read_text(
    encoding="utf-8"
)
TABLE = dict(filter(None, map(row, DOCUMENT.splitlines())))
# the table is of the installed version
RECORDED = f"transformers {transformers.__version__}:" in DOCUMENT
NAMES = [name for name in TABLE if name in TYPES]
OFTEN = (
    *FAMILIES,
    *{TABLE[name].outcome: name for name in NAMES}.values(),
)  # and one of every outcome


def test_the_table_has_every_type():
    """No type of the transformers that the table names is left out, and none fails."""
    assert not RECORDED or TABLE.keys() == set(TYPES)
    assert len(TABLE) > 150
    assert not [name for name, found in TABLE.items() if found.outcome == FAILS]


@pytest.mark.skipif(not RECORDED, reason="the table is of another version of transformers")
@pytest.mark.parametrize(
    "name", slow_beyond(OFTEN, [name for name in NAMES if TABLE[name].outcome != PLAIN_FAILS])
)
def test_a_type_is_refused_as_the_table_says(name):
    """What the configuration alone says of a type, and of moving its layers, is what the table has:
    nothing, or the reason."""
    recorded = TABLE[name]
    found = refusal(name)
    assert (found.outcome if found else WORKS) == recorded.outcome
    assert recorded.why.startswith(found.why if found else "")


@pytest.mark.parametrize(
    "name", slow_beyond(["exaone"], ["falcon_h1", "dots1", "exaone", "nemotron_h"])
)
def test_a_type_does_what_the_table_says(name, tmp_path):
    """A few that are built in unusual ways, with everything that the table's script runs."""
    with torch.no_grad():
        assert verdict(name, tmp_path).outcome == TABLE[name].outcome in (WORKS, IN_PLACE)


def test_outcomes_are_those_that_the_document_explains():
    """The text above the table explains each outcome that occurs."""
    assert all(
        f"`{outcome}`" in DOCUMENT for outcome in (WORKS, IN_PLACE, REFUSED, SEES, PLAIN_FAILS)
    )

"""What the site's search box answers; needs the built site (``make docs``) and lunr."""

import json
import os
from pathlib import Path

import pytest

SITE = Path(os.environ.get("EVOMERGE_SITE", Path(__file__).parents[2] / "build" / "site"))
INDEX = SITE / "search" / "search_index.json"
lunr = pytest.importorskip("lunr")
pytestmark = pytest.mark.skipif(not INDEX.is_file(), reason="the site is not built")


@pytest.fixture(scope="module")
def pages():
    """The index of the search box, and its sections."""
    found = json.loads(INDEX.read_text(encoding="utf-8"))
    builder = lunr.get_default_builder()
    builder.pipeline.reset()
    builder.search_pipeline.reset()
    builder.ref("id")
    for name in ("title", "text"):
        builder.field(name, boost=found["config"]["fields"][name]["boost"])
    for number, section in enumerate(found["docs"]):
        section["id"] = str(number)
        builder.add(section, attributes={"boost": section.get("boost", 1)})
    return builder.build(), found["docs"]


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("hop", "concepts/#the-words"),
        ("±", "concepts/#the-words"),
        ("own metric", "how-to/#use-a-fitness-of-your-own"),
        ("three adapters", "how-to/#merge-two-or-three-adapters"),
        ("only some layers", "search/#search-only-some-layers"),
        ("parents score 0", "troubleshooting/#the-parents-score-0"),
    ],
)
def test_the_guide_answers_first(words, place, pages):
    """Among the first three hits of each question is the section that answers it."""
    index, sections = pages
    hits = index.search(" ".join(f"+{word}*" for word in words.split()))[:3]
    places = [sections[int(hit["ref"])]["location"] for hit in hits]
    assert any(each.startswith(place) for each in places), places

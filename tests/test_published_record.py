"""The record of a search as strangers may have written it: limits, and one line for whatever is
wrong."""

import json

import pytest

from hf_evomerge.errors import HubError, SearchError
from hf_evomerge.record import Record, Results

POINT = {"number": 0, "stage": "ps", "trial": 0, "winner": True, "search": {}, "judged": {}}
LONG = "x" * 301


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "not a JSON object"),
        ('{"results": 3}', "results: must be a mapping"),
        ('{"examples": [{"prompt": 2, "answer": "1"}]}', "examples.0.prompt: must be a text"),
        (
            f'{{"settings": {{"about": "{LONG}"}}}}',
            "settings.about: must have at most 300 characters",
        ),
        (f'{{"unit": "{LONG}"}}', "unit: must have at most 300 characters"),
        ('{"levels": {"a": Infinity}}', "levels.a: must be"),
        ('{"levels": {"a": 1e301}}', "levels.a: must be less than"),
        (
            f'{{"levels": {json.dumps(dict.fromkeys(range(1001), 0))}}}',
            "levels: must have 1000 or fewer entries",
        ),
        (
            f'{{"results": {{"front": {json.dumps([POINT] * 50_001)}}}}}',
            "results.front: must have 50000 or fewer entries",
        ),
        (
            f'{{"results": {{"front": [{json.dumps(POINT | {"search": {"fitness": 1e301}})}]}}}}',
            "results.front.0.search.fitness: must be less than",
        ),
        ('{"stages": [{"stage": "<b>"}]}', "stages.0.stage: must be"),
    ],
    ids=lambda text: text[:40],
)
def test_what_exceeds_a_limit_is_one_line(text, complaint, tmp_path):
    """A record of the wrong shape, or larger than a page can show, is refused in one line that
    names the key."""
    file = tmp_path / "study.json"
    file.write_text(text)
    with pytest.raises(HubError, match=rf"^.*{complaint}.*$"):
        Record.load(file)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"seed": ' + "9" * 5000 + "}", "\xff", None])
def test_what_is_no_json_is_one_line(text, tmp_path):
    """Broken, deep, absent and overlong files raise the error that was asked for."""
    file = tmp_path / "results.json"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    told = "no such file" if text is None else "cannot be read"
    with pytest.raises(SearchError, match=rf"results\.json: {told}"):
        Results.load(file, SearchError)


def test_keys_of_later_versions_are_ignored(tmp_path):
    """What a later version adds does not hide what this one knows; of the settings every key is
    kept."""
    file = tmp_path / "study.json"
    known = '{"seed": 3, "settings": {"new": 2}, "results": {"rows": [{"model": "a"}]}}'
    file.write_text(known.replace('"seed"', '"new": 1, "seed"').replace("[{", '[{"new": 3, '))
    record = Record.load(file)
    assert (record.seed, [row.model for row in record.rows]) == (3, ["a"])
    assert record.to_json() == json.loads(known)

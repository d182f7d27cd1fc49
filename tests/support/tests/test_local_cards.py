"""Card metadata: what the hub on loopback takes, what it refuses, and the tags that follow."""

import pytest
import yaml
from local_hub.cards import card_tags, check_card

GOOD = {
    "model": {
        "license": "other",
        "license_name": "x",
        "base_model": ["a/x", "b/y.z_1"],
        "language": ["code", "haw"],
        "mood": {"good": True},
    },
    "space": {"license": "mit", "sdk": "gradio", "sdk_version": 6.3, "pinned": False},
}
BAD = {
    "license": ("model", {"license": ["mit", "mine"]}, '"license" must be one of'),
    "tags as text": ("model", {"tags": "merge"}, '"tags" must be an array'),
    "a folder as parent": ("model", {"base_model": ["/m"]}, '"base_model" with value "/m" is not'),
    "parents as a mapping": ("model", {"base_model": {"a": "b"}}, '"base_model" must be a string'),
    "language name": ("model", {"language": "English"}, '"language" with value "English" is not'),
    "what YAML reads in `language: no`": ("model", {"language": False}, '"language" must be a'),
    "a Space's SDK": ("space", {"sdk": "flask"}, '"sdk" must be one of'),
    "a Space's words": ("space", {"sdk": "static", "short_description": "x" * 61}, "60 characters"),
}


def _checked(kind, metadata):
    return check_card(f"---\n{yaml.safe_dump(metadata)}---\n# m\n", kind)


@pytest.mark.parametrize("kind", GOOD)
def test_good_metadata(kind):
    """Metadata that the Hub takes has no errors and no warnings."""
    assert _checked(kind, GOOD[kind]) == ([], [])


@pytest.mark.parametrize(("kind", "metadata", "message"), BAD.values(), ids=BAD)
def test_bad_metadata(kind, metadata, message):
    """Each mistake is one error that names the key."""
    (error,), _ = _checked(kind, metadata)
    assert message in error


def test_tags_of_relations():
    """Several parents make a merge, one makes a fine-tune, and a card may say otherwise."""
    assert card_tags({"base_model": ["a/x", "b/y"]}) == [
        "base_model:a/x", "base_model:b/y", "base_model:merge:a/x", "base_model:merge:b/y",
    ]  # fmt: skip
    own = {"base_model": "a/x", "base_model_relation": "quantized"}
    assert "base_model:finetune:a/x" in card_tags({"base_model": "a/x"})
    assert "base_model:quantized:a/x" in card_tags(own)
    assert card_tags({"sdk": "gradio", "tags": ["x", "x"], "language": 7}) == ["x", "gradio"]

"""Card metadata: what the hub on loopback takes, what it refuses, and the tags that follow."""

import pytest
import yaml
from local_hub.cards import card_tags, check_card


def _card(**metadata):
    return f"---\n{yaml.safe_dump(metadata)}---\n# m\n"


GOOD = {
    "nothing else": ("model", {"license": "mit"}),
    "several parents": (
        "model",
        {"license": "apache-2.0", "base_model": ["a/x", "b/y.z_1"], "base_model_relation": "merge"},
    ),
    "one parent": ("model", {"license": "cc-by-nc-sa-4.0", "base_model": "gpt2", "language": "ja"}),
    "own license": ("model", {"license": "other", "license_name": "x", "license_link": "LICENSE"}),
    "unknown keys": ("model", {"license": "mit", "mood": {"good": True}}),
    "special languages": (
        "dataset",
        {"license": "odbl", "language": ["code", "multilingual", "haw"]},
    ),
    "a Space": ("space", {"sdk": "gradio", "sdk_version": 6.3, "title": "t", "pinned": False}),
}
BAD = {
    "license": ("model", {"license": "Apache 2"}, '"license" must be one of'),
    "license of several": ("model", {"license": ["mit", "mine"]}, '"license" must be one of'),
    "license as a number": ("model", {"license": 2}, '"license" must be a string'),
    "tags as text": ("model", {"tags": "merge"}, '"tags" must be an array'),
    "tags of numbers": (
        "model",
        {"tags": ["merge", 7]},
        '"tags" must be a string or an array of strings',
    ),
    "a folder as parent": (
        "model",
        {"base_model": ["/home/me/model"]},
        '"base_model" with value "/home/me/model" is not valid',
    ),
    "a relative folder": (
        "model",
        {"base_model": "./model"},
        '"base_model" with value "./model" is not valid',
    ),
    "parents as a mapping": ("model", {"base_model": {"a": "b"}}, '"base_model" must be a string'),
    "language name": (
        "model",
        {"language": "English"},
        '"language" with value "English" is not valid',
    ),
    "Norwegian": (
        "model",
        {"language": False},
        '"language" must be a string',
    ),  # what YAML reads in `language: no`
    "pipeline as a number": ("model", {"pipeline_tag": 7}, '"pipeline_tag" must be a string'),
    "a Space without SDK": ("space", {"title": "t"}, '"sdk" must be one of'),
    "a Space's SDK": ("space", {"sdk": "flask"}, '"sdk" must be one of'),
    "a Space's description": (
        "space",
        {"sdk": "gradio", "short_description": "x" * 61},
        "60 characters",
    ),
    "a Space's parents": (
        "space",
        {"sdk": "gradio", "models": ["/tmp/x"]},
        '"models" with value "/tmp/x" is not valid',
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_metadata(name):
    """Metadata that the Hub takes has no errors and no warnings."""
    kind, metadata = GOOD[name]
    assert check_card(_card(**metadata), kind) == ([], [])


@pytest.mark.parametrize("name", BAD)
def test_bad_metadata(name):
    """Each mistake is one error that names the key."""
    kind, metadata, message = BAD[name]
    errors, _ = check_card(_card(**metadata), kind)
    assert len(errors) == 1, errors
    assert message in errors[0]


def test_tags_of_relations():
    """Several parents make a merge, one makes a fine-tune, and a card may say otherwise."""
    assert card_tags({"base_model": ["a/x", "b/y"]}) == [
        "base_model:a/x", "base_model:b/y", "base_model:merge:a/x", "base_model:merge:b/y",
    ]  # fmt: skip
    assert "base_model:finetune:a/x" in card_tags({"base_model": "a/x"})
    assert "base_model:quantized:a/x" in card_tags(
        {"base_model": "a/x", "base_model_relation": "quantized"}
    )
    assert card_tags({"sdk": "gradio", "tags": ["x", "x"]}) == ["x", "gradio"]
    assert card_tags({"tags": {"a": 1}, "language": 7}) == []

"""The record that a build leaves: what it gave, so that a change of it is seen."""

from importlib.metadata import version

import pytest
from refused import refused

from hf_evomerge.building.build_record import changed_since, read_build_record, write_build_record
from hf_evomerge.checkpoints.hashes import file_sha256
from hf_evomerge.errors import EvoMergeError

FILES = ["model.safetensors", "config.json", "recipe.yaml", "modeling_x.py"]


@pytest.fixture
def model(tmp_path):
    """Files that have the names of a model's."""
    for name in (*FILES, "tokenizer.json"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_a_record_is_read_as_it_was_written(model):
    """It names weights, config, recipe and code with their hashes, and the versions; the tokenizer
    may be changed."""
    assert read_build_record(model) is None
    built = write_build_record(model)
    assert read_build_record(model) == built
    assert built.sha256.keys() == {*FILES}
    assert built.sha256["config.json"] == file_sha256(model / "config.json")
    assert built.versions["torch"] == version("torch")
    (model / "tokenizer.json").write_text("other")
    assert changed_since(model, built) == []


def test_what_changed_is_named(model):
    """A file that is another, is gone, or came later."""
    built = write_build_record(model)
    (model / "model.safetensors").write_text("model.safetensorS")
    (model / "config.json").unlink()
    (model / "more.safetensors").write_text("")
    assert changed_since(model, built) == ["config.json", "model.safetensors", "more.safetensors"]


@pytest.mark.parametrize("text", ["", "[]", '{"sha256": 3}', '{"other": {}}'])
def test_a_damaged_record_is_one_line(model, text):
    """A record that is none is refused with the file's name."""
    (model / "build.json").write_text(text)
    with refused(r"build.json: cannot be read; build the model again", EvoMergeError):
        read_build_record(model)

"""mergekit files as people publish them: each is built from tiny stand-ins of its models, or
refused as it states."""

import re
from pathlib import Path

import pytest
import zoo
from refusals import refused
from safetensors import safe_open
from slowly import slow_beyond

from hf_evomerge.building.build import build_model
from hf_evomerge.errors import EvoMergeError
from hf_evomerge.mergekit import from_mergekit, to_mergekit

CONFIGS = sorted(Path(__file__).with_name("configs").glob("*.yml"))
OFTEN = [
    file for file in CONFIGS if not file.stem.startswith("card-")
]  # of cards: further files of the same kinds
REFUSED = "# refused: "
ONE_WAY = "# one way: "  # built, and not written as a mergekit file again


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The folder of all stand-ins."""
    return tmp_path_factory.mktemp("zoo")


@pytest.mark.parametrize("file", slow_beyond(OFTEN, CONFIGS), ids=lambda file: file.stem)
def test_a_published_file_is_built_or_refused(file, models, tmp_path):
    """It gives a model with as many rows as its tokenizer has tokens or more, or one line that says
    why not."""
    text = file.read_text()
    first = text.partition("\n")[0]
    if text.startswith(REFUSED):
        with refused(EvoMergeError, re.escape(first.removeprefix(REFUSED))):
            build_model(from_mergekit(zoo.localise(text, models)).recipe, tmp_path / "out")
        return
    recipe = from_mergekit(zoo.localise(text, models)).recipe
    out = build_model(recipe, tmp_path / "out")
    with safe_open(out / "model.safetensors", "pt") as tensors:
        assert tensors.get_tensor("model.embed_tokens.weight").isfinite().all()
    if text.startswith(ONE_WAY):
        with refused(EvoMergeError, first.removeprefix(ONE_WAY)):
            to_mergekit(recipe)
        return
    assert from_mergekit(to_mergekit(recipe)[0]).recipe.merge == recipe.merge


def test_how_many_are_built():
    """Of at least 130 files at most one in ten is refused."""
    refusals = [file.stem for file in CONFIGS if file.read_text().startswith(REFUSED)]
    assert len(CONFIGS) >= 130
    assert 10 * len(refusals) <= len(CONFIGS), refusals

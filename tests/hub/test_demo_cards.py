"""The cards of the demo's models in ``model_cards/demo``: what the package would write today.

After a demo, ``python tests/hub/test_demo_cards.py DEMO`` brings what they are made of up to date; without an argument it only
writes the cards again.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from huggingface_hub import ModelCard

from hf_evomerge.hub.card import CardFacts, render_card
from hf_evomerge.hub.licenses import ParentLicense, decide_license

CARDS = Path(__file__).parents[2] / "model_cards" / "demo"
SPACES = {"ps": "demo/evolved-ps", "dfs": "demo/evolved-dfs", "hybrid": "demo/evolved"}
FACTS = ("config.json", "recipe.yaml", "study.json")


def _render(space: str) -> str:
    facts = CardFacts.of_folder(CARDS / space)
    parents = facts.recipe.refs
    license = decide_license([ParentLicense(ref.model, "apache-2.0") for ref in parents])
    return render_card(facts, SPACES[space], license, languages=["ja"])


@pytest.mark.parametrize("space", SPACES)
def test_the_card_is_up_to_date(space: str) -> None:
    """The card in the repository is what the package writes from the facts beside it."""
    text = (CARDS / space / "README.md").read_text(encoding="utf-8")
    assert text == _render(space), "python tests/hub/test_demo_cards.py writes it again"
    recipe = CardFacts.of_folder(CARDS / space).recipe
    for image in ("fitness.png", *(["path.png"] if recipe.flow else []), *(["weights.png"] if recipe.merge else [])):
        assert f"(images/{image})" in text
        assert (CARDS / space / "images" / image).is_file()


def test_the_card_claims_what_was_measured() -> None:
    """The winner's figures in the metadata are those of the record beside the card."""
    card = ModelCard.load(CARDS / "hybrid" / "README.md")
    study = CardFacts.of_folder(CARDS / "hybrid").study
    assert study is not None
    assert study.winner is not None
    assert study.winner.accuracy is not None
    assert card.data.eval_results is not None
    assert card.data.eval_results[0].metric_value == round(study.winner.accuracy, 4)


def _refresh(demo: Path) -> None:
    """Publish the demo's winners to a hub of their own, and take what is there."""
    from hf_evomerge.demo.quickstart import SPECIALISTS, publish
    from local_hub import LocalHub

    with TemporaryDirectory() as scratch, LocalHub(scratch, user="demo") as hub:
        for space, repo_id in SPACES.items():
            publish(demo / space, SPECIALISTS, "demo/tiny", "--name", repo_id, environment=hub.environment())
            folder = CARDS / space
            shutil.rmtree(folder, ignore_errors=True)
            from huggingface_hub import HfApi

            HfApi(endpoint=hub.endpoint, token=hub.token).snapshot_download(
                repo_id, local_dir=folder, allow_patterns=[*FACTS, "images/*.png"]
            )
            shutil.rmtree(folder / ".cache")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _refresh(Path(sys.argv[1]))
    for name in SPACES:
        (CARDS / name / "README.md").write_text(_render(name), encoding="utf-8")

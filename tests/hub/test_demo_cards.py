"""The cards of the demo's models in ``model_cards/demo``: what the package would write today, and
run as a program writes."""

from pathlib import Path

import pytest

from hf_evomerge.hub.card import CardFacts, render_card
from hf_evomerge.hub.licenses import ParentLicense, decide_license

CARDS = Path(__file__).parents[2] / "model_cards" / "demo"
SPACES = {"ps": "demo/evolved-ps", "dfs": "demo/evolved-dfs", "hybrid": "demo/evolved"}


def _render(space: str) -> str:
    facts = CardFacts.of_folder(CARDS / space)
    parents = facts.recipe.refs
    license = decide_license([ParentLicense(ref.model, "apache-2.0") for ref in parents])
    return render_card(facts, SPACES[space], license, languages=["ja"])


@pytest.mark.parametrize("space", SPACES)
def test_the_card_is_up_to_date(space):
    """The card in the repository is what the package writes from the facts beside it."""
    text = (CARDS / space / "README.md").read_text(encoding="utf-8")
    assert text == _render(space), "python tests/hub/test_demo_cards.py writes it again"
    recipe = CardFacts.of_folder(CARDS / space).recipe
    for image in (
        "fitness.png",
        *(["path.png"] if recipe.flow else []),
        *(["weights.png"] if recipe.merge else []),
    ):
        assert f"(images/{image})" in text
        assert (CARDS / space / "images" / image).is_file()


if __name__ == "__main__":
    for name in SPACES:
        (CARDS / name / "README.md").write_text(_render(name), encoding="utf-8")

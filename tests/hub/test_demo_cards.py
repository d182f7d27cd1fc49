"""The cards of the demo's models in ``model_cards/demo``: what the package would write today."""

import pytest
from cards import CARDS, PUBLISHED, card

from hf_evomerge.hub.card import CardFacts


@pytest.mark.parametrize("space", PUBLISHED)
def test_the_card_is_up_to_date(space):
    """The card in the repository is what the package writes from the facts beside it."""
    text = (CARDS / space / "README.md").read_text(encoding="utf-8")
    assert text == card(space), "python website/cards.py writes it again"
    recipe = CardFacts.of_folder(CARDS / space).recipe
    for image in (
        "fitness.png",
        *(["path.png"] if recipe.flow else []),
        *(["weights.png"] if recipe.merge else []),
    ):
        assert f"(images/{image})" in text
        assert (CARDS / space / "images" / image).is_file()

"""The demo's model that sees: its pictures, and a merge of it that answers in another language."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from specialists.language import problems
from specialists.pictures import IMAGE_TOKEN, SIDE, picture_config, picture_problems, write_picture_problems
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_evomerge.search.file.sections import CompareConfig
from hf_evomerge.search.run import run_search

SIZES = {"search": 48, "test": 40}


def test_pictures_show_the_numbers_of_the_problems():
    """Each problem is one of the demo's, every number of it a picture; the same every time, no two alike."""
    found, again = picture_problems("search", 6), picture_problems("search", 6)
    for (shown, pictures), (_, same), told in zip(found, again, problems("search", 6), strict=True):
        assert shown["answer"] == told["answer"]
        words = zip(shown["prompt"].split(), told["prompt"].split(), strict=True)
        hidden = [word for mark, word in words if mark == IMAGE_TOKEN and word.isdecimal()]
        assert len(hidden) == shown["prompt"].count(IMAGE_TOKEN) == len(pictures) == 2
        assert [image.tobytes() for image in pictures] == [image.tobytes() for image in same]
        assert {image.size for image in pictures} == {(SIDE, SIDE)}
    drawn = [image.tobytes() for _, pictures in found for image in pictures]
    assert len(set(drawn)) == len(drawn)


def test_a_merge_sees_calculates_and_answers_in_japanese(tmp_path):
    """Neither parent solves a problem; a few evaluations of the search by gradient do, and the winner does so on its own."""
    data = write_picture_problems(tmp_path / "data", SIZES)
    config = picture_config("ps", data, 20).model_copy(update={"compare": CompareConfig()})
    result = run_search(config, tmp_path / "search")
    scores = {row.model: row.scores.accuracy or 0.0 for row in result.rows}
    assert scores["sight"] == scores["japanese"] == 0.0
    assert scores[next(row.model for row in result.rows if row.stage == "average")] < 0.2
    assert result.row("ps").scores.accuracy > 0.6  # type: ignore[operator]
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "search" / "model")
    assert type(loaded).__name__ == "LlavaForConditionalGeneration"
    assert AutoProcessor.from_pretrained(tmp_path / "search" / "model").image_token == IMAGE_TOKEN

"""Pictures in examples: what is read and what is refused; that tasks see each example's own."""

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from vlms import picture, processor, random_model, tokenizer, vlm_config

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import (
    DataSpec,
    Example,
    check_disjoint,
    load_examples,
    make_task,
    parse_task,
)
from hf_evomerge.fitness.example import MAX_BYTES, Picture
from hf_evomerge.fitness.pictures import SeeingTokenizer
from hf_evomerge.recipes.strict_yaml import validate

from .conftest import refused


def png(color="red", size=(8, 8)):
    """The file of a picture of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, format="PNG")
    return stream.getvalue()


def load(value, **keys):
    """The one example with this picture, from a function, or from a file of JSON lines where one is
    named."""
    record = {"prompt": "what is it ?", "answer": "red", "picture": value}
    source = keys or {"function": lambda: [record]}
    if "jsonl" in keys:
        Path(keys["jsonl"]).write_text(json.dumps(record))
    return load_examples(validate(DataSpec, {"image_field": "picture", **source}, FitnessError))


def test_a_picture_is_read_from_whatever_holds_one(tmp_path):
    """A file beside the data, bytes, an image, a column's mapping; one or several; and a data set's
    image column."""
    import datasets

    (tmp_path / "red.png").write_bytes(png())
    wanted = png()
    for value in (
        wanted,
        {"bytes": wanted, "path": None},
        {"bytes": None, "path": str(tmp_path / "red.png")},
    ):
        assert [one.data for one in load(value)[0].pictures] == [wanted]
    assert load(picture())[0].pictures[0].load().getpixel((0, 0)) == (255, 0, 0)
    assert len(load([wanted, png("blue")])[0].pictures) == 2
    assert load("red.png", jsonl=str(tmp_path / "data.jsonl"))[0].pictures[0].data == wanted
    rows = {"prompt": ["what is it ?"], "answer": ["red"], "picture": [picture()]}
    text = datasets.Value("string")
    features = datasets.Features({"prompt": text, "answer": text, "picture": datasets.Image()})
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(
        tmp_path / "set" / "train.parquet"
    )
    spec = validate(
        DataSpec, {"dataset": str(tmp_path / "set"), "image_field": "picture"}, FitnessError
    )
    assert load_examples(spec)[0].pictures[0].load().getpixel((0, 0)) == (255, 0, 0)


REFUSED = {
    "an address": (
        "https://example.com/a.png",
        "'https://example.com/a.png' is an address, and none is followed",
    ),
    "an address in the data": ("data:image/png;base64,AAAA", "is an address, and none is followed"),
    "an address of a column": (
        {"bytes": None, "path": "s3://bucket/a.png"},
        "is an address, and none is followed",
    ),
    "a name without a folder": ("a.png", "'a.png' is a name; give the picture itself"),
    "text": (b"no picture", "no picture in PNG, JPEG, WEBP, GIF, BMP"),
    "a width of 20,000": (
        png(size=(20_000, 1)),
        "a picture of 20000 x 1 pixels; a side has at most 16384",
    ),
    "too many bytes": (
        b"\x89PNG" + b"\0" * MAX_BYTES,
        "a picture of 33554436 bytes; the limit is 33554432",
    ),
    "nothing": (None, "neither a picture nor the name of one"),
    "an empty list": ([], "the list of pictures is empty"),
    "a number": (3, "neither a picture nor the name of one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_picture_is_refused(case):
    """One line that names the record, when the examples are read."""
    value, message = REFUSED[case]
    with refused(message) as caught:
        load(value)
    assert str(caught.value).startswith("function[0] (field 'picture')")
    assert "\n" not in str(caught.value)


def test_a_file_outside_the_folder_of_the_data_is_refused(tmp_path):
    """Neither a name that leads out, nor a link that does, alone or in a column's mapping; a file
    that is missing is named."""
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    os.symlink(tmp_path / "secret.png", tmp_path / "data" / "link.png")
    for name in ("../secret.png", "link.png", "nul\0.png", str(tmp_path / "secret.png")):
        for value in (name, {"path": name}, {"bytes": None, "path": name}, [{"path": name}]):
            with refused(r"is not in .*data, where the data is; put it there"):
                load(value, jsonl=str(tmp_path / "data" / "data.jsonl"))
    os.mkfifo(tmp_path / "data" / "pipe.png")
    with refused("a pipe or a device, and no picture"):
        load("pipe.png", jsonl=str(tmp_path / "data" / "data.jsonl"))
    (tmp_path / "data" / "red.png").write_bytes(png())
    assert (
        load({"path": "red.png"}, jsonl=str(tmp_path / "data" / "data.jsonl"))[0].pictures[0].data
        == png()
    )
    with refused(r"missing.png: no such file"):
        load("missing.png", jsonl=str(tmp_path / "data" / "data.jsonl"))


def test_a_data_set_names_no_picture_outside_of_its_folder(tmp_path):
    """A row of a Parquet file with the path of another file is refused; one beside the data is
    read."""
    import datasets

    (tmp_path / "outside.png").write_bytes(png())
    for name, file in (("fine", "fine/red.png"), ("wrong", "outside.png")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "red.png").write_bytes(png())
        row = {
            "prompt": ["?"],
            "answer": ["red"],
            "picture": [{"bytes": None, "path": str(tmp_path / file)}],
        }
        datasets.Dataset.from_dict(row).to_parquet(folder / "train.parquet")
        for source in ({"dataset": str(folder)}, {"data_files": str(folder / "train.parquet")}):
            spec = validate(DataSpec, {"image_field": "picture", **source}, FitnessError)
            if name == "fine":
                assert load_examples(spec)[0].pictures[0].data == png()
                continue
            with refused(r"is not in .*wrong, where the data is"):
                load_examples(spec)


def test_a_damaged_picture_is_one_line():
    """One whose header is fine is found when it is decoded."""
    whole = png(size=(64, 64))
    damaged = load(whole[: len(whole) - 40])[0].pictures[0]
    with refused(r"function\[0\] .*: the picture cannot be read"):
        damaged.load()


def test_the_same_question_about_another_picture_is_another_problem():
    """Splits may ask the same of different pictures, but not of the same."""
    red, blue = (
        Example("what is it ?", "x", color, pictures=(Picture(png(color), color),))
        for color in ("red", "blue")
    )
    check_disjoint([red], [blue])
    with refused("the splits overlap"):
        check_disjoint([red], [blue], [red])


def seen(color, prompt="what is it ?", answer="red", **fields):
    """An example with a picture of one colour."""
    return Example(
        prompt, answer, color, chat=True, pictures=(Picture(png(color), color),), **fields
    )


@pytest.mark.parametrize("task", ["likelihood", "generation", "multiple_choice"])
def test_tasks_score_each_example_with_its_own_picture(task):
    """In a batch of prompts of different length the scores are those of each alone, and another
    picture gives others."""
    sections = {
        "likelihood": {"separator": " "},
        "generation": {"max_new_tokens": 4, "extract": "all"},
        "multiple_choice": {"separator": " "},
    }
    model = random_model(vlm_config("llava"), 0, "LlavaForConditionalGeneration")
    for parameter in model.model.multi_modal_projector.parameters():
        parameter.data.mul_(8)  # so that pictures matter
    sees = SeeingTokenizer(processor("llava"))

    def score(*examples):
        made = make_task(parse_task({"task": task, **sections[task]}))
        made.prepare(examples, sees)
        scores = made.evaluate(model)
        return list(scores.values), list(scores.outputs or [])

    examples = [
        seen(color, "what is it ?" + " ?" * n, choices=("red", "blue"))
        for n, color in enumerate(("red", "blue"))
    ]
    values, outputs = score(*examples)
    for place, example in enumerate(examples):
        alone, wrote = score(example)
        assert values[place] == pytest.approx(alone[0], abs=1e-4)
        assert outputs[place : place + 1] == wrote
    if task == "likelihood":
        assert score(seen("red"))[0] != score(seen("white"))[0]


def test_pictures_need_a_processor_and_a_task_that_looks_at_them():
    """A tokenizer alone, a task for text, and examples of which only some have pictures are refused
    in one line."""
    example = seen("red")
    likelihood = make_task(parse_task({"task": "likelihood", "separator": " "}))
    with refused("red: has pictures, which a tokenizer alone cannot read"):
        likelihood.prepare([example], tokenizer())
    with refused("has pictures, which perplexity does not look at"):
        make_task(parse_task({"task": "perplexity"})).prepare(
            [example], SeeingTokenizer(processor("llava"))
        )
    blind = Example("what is it ?", "red", "blind", chat=True)
    with refused("blind: has no picture, and others have"):
        likelihood.prepare([example, blind], SeeingTokenizer(processor("llava")))
    with refused("reads no pictures"):
        SeeingTokenizer(tokenizer())

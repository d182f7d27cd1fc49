"""Pictures in examples: what is read and what is refused; that tasks see each example's own."""

import io
import os

import pytest
from PIL import Image
from vlms import picture, processor, random_model, tokenizer, vlm_config

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import DataSpec, Example, check_disjoint, load_examples
from hf_evomerge.fitness.example import MAX_BYTES, Picture
from hf_evomerge.fitness.pictures import SeeingTokenizer
from hf_evomerge.recipes.strict_yaml import validate

from .conftest import prepared, refused, write_lines


def png(color="red", size=(8, 8)):
    """The file of a picture of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, format="PNG")
    return stream.getvalue()


RED = png()


def read(**source):
    """The pictures of the first example of data."""
    data = validate(DataSpec, {"image_field": "picture", **source}, FitnessError)
    return load_examples(data)[0].pictures


def load(value, folder=None):
    """The pictures of a record, from a function, or from a file of JSON lines in a folder."""
    record = {"prompt": "what is it ?", "answer": "red", "picture": value}
    if folder is None:
        return read(function=lambda: [record])
    return read(**write_lines(folder / "data.jsonl", [record]))


def save_set(folder, value, feature=None):
    """A data set of one record, in a folder as Parquet."""
    import datasets

    folder.mkdir()
    rows = {"prompt": ["what is it ?"], "answer": ["red"], "picture": [value]}
    data = datasets.Dataset.from_dict(rows)
    if feature is not None:
        data = data.cast_column("picture", feature)
    data.to_parquet(folder / "train.parquet")
    return {"dataset": str(folder)}, {"data_files": str(folder / "train.parquet")}


def test_a_picture_is_read_from_whatever_holds_one(tmp_path):
    """A file beside the data, bytes, an image, a column's mapping; one or several; and a data set's
    image column."""
    import datasets

    (tmp_path / "red.png").write_bytes(RED)
    path = str(tmp_path / "red.png")
    for value in (RED, {"bytes": RED, "path": None}, {"bytes": None, "path": path}):
        assert [one.data for one in load(value)] == [RED]
    assert len(load([RED, png("blue")])) == 2
    for value in ("red.png", {"path": "red.png"}):
        assert load(value, tmp_path)[0].data == RED
    column = read(**save_set(tmp_path / "set", picture(), datasets.Image())[0])
    for one in (*column, *load(picture())):
        assert one.load().getpixel((0, 0)) == (255, 0, 0)


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
    with refused(rf"^function\[0\] \(field 'picture'\).*{message}"):
        load(value)


def test_a_file_outside_the_folder_of_the_data_is_refused(tmp_path):
    """Neither a name that leads out, nor a link that does, alone or in a column's mapping; a file
    that is missing is named."""
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(RED)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "pipe.png")
    for name in ("../secret.png", "link.png", "nul\0.png", str(tmp_path / "secret.png")):
        for value in (name, {"path": name}, {"bytes": None, "path": name}, [{"path": name}]):
            with refused(r"is not in .*data, where the data is; put it there"):
                load(value, folder)
    with refused("a pipe or a device, and no picture"):
        load("pipe.png", folder)
    with refused(r"missing.png: no such file"):
        load("missing.png", folder)


def test_a_data_set_names_no_picture_outside_of_its_folder(tmp_path):
    """A row of a Parquet file with the path of another file is refused; one beside the data is
    read."""
    (tmp_path / "outside.png").write_bytes(RED)
    for name, file in (("fine", "fine/red.png"), ("wrong", "outside.png")):
        sources = save_set(tmp_path / name, {"bytes": None, "path": str(tmp_path / file)})
        (tmp_path / name / "red.png").write_bytes(RED)
        for source in sources:
            if name == "fine":
                assert read(**source)[0].data == RED
                continue
            with refused(r"is not in .*wrong, where the data is"):
                read(**source)


def test_a_damaged_picture_is_one_line():
    """One whose header is fine is found when it is decoded."""
    (damaged,) = load(png(size=(64, 64))[:-40])
    with refused(r"function\[0\] .*: the picture cannot be read"):
        damaged.load()


def seen(color, prompt="what is it ?", **fields):
    """An example with a picture of one colour."""
    pictures = (Picture(png(color), color),)
    return Example(prompt, "red", color, chat=True, pictures=pictures, **fields)


def test_the_same_question_about_another_picture_is_another_problem():
    """Splits may ask the same of different pictures, but not of the same."""
    red = seen("red")
    blue = seen("blue")
    check_disjoint([red], [blue])
    with refused("the splits overlap"):
        check_disjoint([red], [blue], [red])


SECTIONS = {
    "likelihood": {"separator": " "},
    "generation": {"max_new_tokens": 4, "extract": "all"},
    "multiple_choice": {"separator": " "},
}


@pytest.fixture
def sees():
    """A tokenizer that sees."""
    return SeeingTokenizer(processor("llava"))


@pytest.mark.parametrize("task", SECTIONS)
def test_tasks_score_each_example_with_its_own_picture(task, sees):
    """In a batch of prompts of different length the scores are those of each alone, and another
    picture gives others."""
    model = random_model(vlm_config("llava"), 0, "LlavaForConditionalGeneration")
    for parameter in model.model.multi_modal_projector.parameters():
        parameter.data.mul_(8)  # so that pictures matter

    def score(*examples):
        return prepared(task, examples, sees, **SECTIONS[task]).evaluate(model)

    choices = ("red", "blue")
    examples = [seen(each, "what is it ?" + " ?" * len(each), choices=choices) for each in choices]
    together = score(*examples)
    for place, example in enumerate(examples):
        alone = score(example)
        assert together.values[place] == pytest.approx(alone.values[0], abs=1e-4)
        assert (together.outputs or choices)[place] == (alone.outputs or choices[place:])[0]
    if task == "likelihood":
        assert score(seen("red")) != score(seen("white"))


def test_pictures_need_a_processor_and_a_task_that_looks_at_them(sees):
    """A tokenizer alone, a task for text, and examples of which only some have pictures are refused
    in one line."""
    example = seen("red")
    with refused("red: has pictures, which a tokenizer alone cannot read"):
        prepared("likelihood", [example], tokenizer())
    with refused("has pictures, which perplexity does not look at"):
        prepared("perplexity", [example], sees)
    with refused("blind: has no picture, and others have"):
        prepared("likelihood", [example, Example("?", "red", "blind", chat=True)], sees)
    with refused("reads no pictures"):
        SeeingTokenizer(tokenizer())

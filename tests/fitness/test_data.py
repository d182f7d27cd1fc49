import json
import os
import sys

import pytest

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import DataSpec, Example, check_disjoint, load_examples
from hf_evomerge.recipes.strict_yaml import validate

from .conftest import refused


def records(count=10):
    """Numbered problems."""
    return [
        {"question": f"question {i}", "number": float(i), "name": f"n{i}"} for i in range(count)
    ]


@pytest.fixture
def jsonl(tmp_path):
    """A file with ten problems and blank lines between them."""
    file = tmp_path / "problems.jsonl"
    file.write_text(
        "\n\n".join(json.dumps(record) for record in records()) + "\n", encoding="utf-8"
    )
    return str(file)


def spec(**keys):
    """Settings as they are read from a file, with the problems' field names."""
    return validate(
        DataSpec, {"prompt_field": "question", "answer_field": "number"} | keys, FitnessError
    )


def test_jsonl_becomes_examples(jsonl):
    """A line becomes an example that is named by file and line, and whole numbers lose their
    ``.0``."""
    examples = load_examples(spec(jsonl=jsonl))
    assert len(examples) == 10
    assert examples[1] == Example("question 1", "1", f"{jsonl}:3")


def test_template_id_and_chat(jsonl):
    """A template is filled from any fields, doubled braces are braces, and values are never
    templates themselves."""
    made = load_examples(
        spec(
            jsonl=jsonl,
            template="{{Q}} {question} ({name})\n",
            id_field="name",
            chat=True,
            system="s",
            count=1,
        )
    )
    assert made == [Example("{Q} question 0 (n0)\n", "0", "n0", chat=True, system="s")]
    hostile = spec(
        function=lambda: [{"question": "{number.__class__}", "number": 1}], template="{question}"
    )
    assert load_examples(hostile)[0].prompt == "{number.__class__}"


@pytest.mark.parametrize(
    "template",
    [
        "{question.__class__}",
        "{question[0]}",
        "{question!r}",
        "{question:>9999999}",
        "{}",
        "{question",
        "no field",
        "{a.b}{question}",
    ],
)
def test_hostile_templates(template):
    """A template that is more or less than plain fields is refused, with the key's name."""
    with refused("template"):
        spec(jsonl="x", template=template)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({}, "exactly one"),
        ({"jsonl": "a", "dataset": "b"}, "exactly one"),
        ({"jsonl": "a", "split": "test"}, "belong to 'dataset'"),
        ({"jsonl": "a", "system": "s"}, "needs 'chat: true'"),
        ({"jsonl": "a", "count": 0}, "count"),
        ({"jsonl": "a", "nonsense": 1}, "nonsense"),
        ({"function": "os.system"}, "function"),
        ({"data_files": "x.pkl"}, "data_files: cannot tell how to read x.pkl"),
        ({"data_files": ["x.csv", "y.tsv"]}, "files of one kind are read"),
        ({"dataset": "pandas", "data_files": "x.pkl"}, "pandas reads pickle files"),
        ({"jsonl": "x.jsonl", "data_files": "x.csv"}, "found jsonl and data_files"),
        (
            {"data_files": "x.json", "columns": ["a"]},
            "'columns' names the fields of CSV and TSV files",
        ),
        ({"dataset": "some/set", "streaming": True}, "'streaming' needs a 'count'"),
        (
            {"jsonl": "x.jsonl", "streaming": True, "count": 1},
            "belong to 'dataset'; here is 'jsonl'",
        ),
    ],
)
def test_wrong_keys(keys, complaint):
    """A contradictory or unknown key, and what would be read by running it, is refused before
    anything is opened."""
    with refused(complaint):
        spec(**keys)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            '{"question": "a", "number": 1}\n{"question": ',
            ":2: not valid JSON: .*; write one JSON object per line",
        ),
        (
            "\n[1, 2]\n",
            ":2: expected an object of fields, found list; write one JSON object per line",
        ),
        ('{"question": "a"}\n', ":1: no field 'number'; its fields are question"),
        ('{"question": "a", "number": null}\n', ":1: field 'number' is neither text, nor"),
        ('{"question": "a", "number": NaN}\n', ":1: field 'number' is neither text, nor"),
        ('{"question": ["a"], "number": 1}\n', ":1: field 'question' is neither text, nor"),
        (
            '{"question": "a\\ud800b", "number": 1}\n',
            ":1: field 'question' has half of a surrogate pair",
        ),
        ('{"question": "a", "number": " "}\n', ":1: the answer .* is empty"),
        ("[" * 100_000, ":1: not valid JSON"),
        ("\n \n", "no records"),
    ],
)
def test_broken_jsonl(tmp_path, text, complaint):
    """A broken file is refused in one line that names the file and, where there is one, the
    line."""
    file = tmp_path / "broken.jsonl"
    file.write_text(text, encoding="utf-8")
    with refused(rf"broken\.jsonl.*{complaint}") as caught:
        load_examples(spec(jsonl=str(file)))
    assert "\n" not in str(caught.value)


def test_unreadable_file(tmp_path):
    """A file that is absent, or is not UTF-8, is refused by name."""
    with refused(r"absent.jsonl: no such file"):
        load_examples(spec(jsonl=str(tmp_path / "absent.jsonl")))
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    with refused(r"latin.*cannot be read.*; save it as UTF-8$"):
        load_examples(spec(jsonl=str(tmp_path / "latin.jsonl")))
    with refused(r"a\?b: cannot be read: embedded null byte$"):
        load_examples(spec(jsonl="a\0b"))


def test_one_chat_message_is_its_text(tmp_path):
    """Prompt and completion of one message each, as trl writes them, are read as their texts; a
    longer chat is refused."""
    user, assistant = ({"role": role, "content": role} for role in ("user", "assistant"))
    file = tmp_path / "chat.jsonl"
    fields = {"jsonl": str(file), "prompt_field": "prompt", "answer_field": "completion"}
    file.write_text(json.dumps({"prompt": [user], "completion": [assistant]}))
    (example,) = load_examples(spec(**fields))
    assert (example.prompt, example.answer) == ("user", "assistant")
    file.write_text(json.dumps({"prompt": [user, user], "completion": [assistant]}))
    with refused(r"nor one chat message .*; write each problem as one"):
        load_examples(spec(**fields))


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_never_ends_is_no_file(kind, tmp_path):
    """A pipe, of which nothing may ever come, and a device, of which everything may, are not
    read."""
    file = tmp_path / "endless.jsonl"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    with refused(r"endless\.jsonl: a pipe or a device, and no file; save the records in a file"):
        load_examples(spec(jsonl=str(file)))


def test_slices_of_one_shuffle_are_disjoint(jsonl):
    """Slices with one seed part the data, another seed orders it otherwise, and the same
    specification repeats itself."""
    first = load_examples(spec(jsonl=jsonl, shuffle_seed=3, count=6))
    second = load_examples(spec(jsonl=jsonl, shuffle_seed=3, start=6))
    assert sorted(example.answer for example in first + second) == [str(i) for i in range(10)]
    assert first == load_examples(spec(jsonl=jsonl, shuffle_seed=3, count=6))
    assert first != load_examples(spec(jsonl=jsonl, shuffle_seed=4, count=6))
    check_disjoint(first, second)


def test_overlap_is_of_content(tmp_path):
    """A problem is found again in another file, template, answer and width of letters; repeats in
    one split are fine."""
    one = tmp_path / "one.jsonl"
    two = tmp_path / "two.jsonl"
    one.write_text('{"question": "What is 2 + 3?", "answer": 5}\n', encoding="utf-8")
    two.write_text(
        '{"q": "Who?", "answer": 1}\n{"q": "What is  ２ + 3?", "answer": "five"}\n',
        encoding="utf-8",
    )
    search = load_examples(DataSpec(jsonl=str(one), template="Question: {question}\nAnswer:"))
    test = load_examples(DataSpec(jsonl=str(two), prompt_field="q"))
    with refused(r"one.jsonl:1 \(search\) and .*two.jsonl:2 \(test\) have the same prompt;"):
        check_disjoint(search, [], test)
    check_disjoint(search * 2, [], test[:1])


def test_whole_texts(tmp_path):
    """A record that is a text has no prompt, and no second place for one; texts that two splits
    share are found."""
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "one two"}\n{"text": "three"}\n{"text": " "}\n', encoding="utf-8")
    texts = load_examples(DataSpec(jsonl=str(file), text_field="text", count=2))
    assert [(text.prompt, text.answer) for text in texts] == [("", "one two"), ("", "three")]
    check_disjoint(texts[:1], texts[1:])
    with refused("the splits overlap"):
        check_disjoint(texts, texts)
    with refused(r"texts.jsonl:3: the text \(field 'text'\) is empty"):
        load_examples(DataSpec(jsonl=str(file), text_field="text"))
    with refused("'text_field' is the whole text, without a prompt; leave out 'template'"):
        validate(
            DataSpec, {"jsonl": str(file), "text_field": "text", "template": "{text}"}, FitnessError
        )


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The datasets library with a cache of its own."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library.disable_progress_bars()
    return library


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_datasets_library(tmp_path, kind, datasets):
    """A folder of JSON or Parquet files is read through the datasets library."""
    folder = tmp_path / "problems"
    data = datasets.Dataset.from_list(records())
    folder.mkdir()
    getattr(data, f"to_{kind}")(str(folder / f"test.{kind}"))
    here = spec(dataset=str(folder), split="test", start=2, count=3)
    assert [(e.prompt, e.answer) for e in load_examples(here)] == [
        (f"question {i}", str(i)) for i in (2, 3, 4)
    ]
    with refused("no field 'answer'; its fields are question, number, name"):
        load_examples(spec(dataset=str(folder), split="test", answer_field="answer"))
    with refused("cannot be loaded"):
        load_examples(spec(dataset=str(folder), split="validation"))
    for name in ("./nowhere", str(folder / f"test.{kind}")):  # is not looked for on the Hub
        with refused("no folder; give a folder of data or a data set's id, or name files by"):
            load_examples(spec(dataset=name))


@pytest.mark.usefixtures("datasets")
def test_anything_that_datasets_reads(tmp_path):
    """Files by name, tables without a heading, a filter and a seed; a stream is read as far as it
    is asked for."""
    table = tmp_path / "a.tsv"
    table.write_text(
        "".join(f'q "{i}\t{i}\t{"odd" if i % 2 else "even"}\n' for i in range(20)), encoding="utf-8"
    )
    odd = {
        "data_files": str(table),
        "columns": ["q", "a", "kind"],
        "filter": {"kind": ["odd", "other"]},
    }
    first, rest = (
        load_examples(DataSpec(**odd, prompt_field="q", answer_field="a", shuffle_seed=1, **cut))
        for cut in ({"count": 4}, {"start": 4})
    )
    assert sorted(int(example.answer) for example in first + rest) == list(range(1, 20, 2))
    assert first[0].prompt == f'q "{first[0].answer}'
    with refused(r"a.tsv: count 11 from start 0 asked for, but there are only 10 records"):
        load_examples(DataSpec(**odd, prompt_field="q", answer_field="a", count=11))
    with refused(r"a.tsv: 'filter' keeps none of 20 records"):
        load_examples(
            DataSpec(**{**odd, "filter": {"kind": "none"}}, prompt_field="q", answer_field="a")
        )

    lines = tmp_path / "b.jsonl"
    lines.write_text(
        "".join(json.dumps({"prompt": f"p{i}", "answer": i}) + "\n" for i in range(30)),
        encoding="utf-8",
    )
    stream = {"data_files": [str(lines)], "streaming": True, "shuffle_seed": 3}
    parts = [load_examples(DataSpec(**stream, start=start, count=10)) for start in (0, 10, 20)]
    assert sorted(int(example.answer) for part in parts for example in part) == list(range(30))
    assert parts[0] == load_examples(DataSpec(**stream, count=10))
    assert [int(example.answer) for example in parts[0]] != sorted(
        int(example.answer) for example in parts[0]
    )
    with refused(r"b.jsonl: count 11 from start 20 asked for, but 10 came"):
        load_examples(DataSpec(**stream, start=20, count=11))


@pytest.mark.usefixtures("datasets")
def test_a_file_that_no_reader_takes_is_one_line(tmp_path):
    """Whatever error the reader of a format has, it is one that names the data, also in the midst
    of a stream."""
    archive = tmp_path / "pictures.tar"
    archive.write_bytes(b"no archive" * 200)
    with refused(r"^webdataset: cannot be loaded: invalid header$"):
        load_examples(DataSpec(dataset="webdataset", data_files=[str(archive)]))
    files = [tmp_path / name for name in ("whole.jsonl", "broken.jsonl")]
    for file, text in zip(files, ('{"prompt": "a", "answer": 1}', '{"prompt": '), strict=True):
        file.write_text(text)
    with refused(r"^.*whole\.jsonl, .*broken\.jsonl: cannot be loaded: "):
        load_examples(DataSpec(data_files=[str(file) for file in files], streaming=True, count=2))


def test_datasets_library_absent(monkeypatch):
    """Without the datasets library the message says what to install."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused(r"pip install 'hf-evomerge\[eval\]'"):
        load_examples(spec(dataset="someone/something"))


def test_function_data():
    """Records may come from a Python function; what is no record, or lacks the field of a filter,
    is refused."""
    assert load_examples(spec(function=records))[2] == Example("question 2", "2", "function[2]")
    with refused(r"function\[0\]: expected a mapping"):
        load_examples(spec(function=lambda: ["text"]))
    with refused(r"function\[0\]: no field 'kind', which 'filter' names"):
        load_examples(spec(function=records, filter={"kind": "odd"}))

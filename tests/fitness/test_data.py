import json
import os
import sys

import pytest
import yaml

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
    file.write_text("\n\n".join(map(json.dumps, records())), encoding="utf-8")
    return str(file)


def spec(**keys):
    """Settings as they are read from a file, with the problems' field names."""
    return validate(
        DataSpec, {"prompt_field": "question", "answer_field": "number"} | keys, FitnessError
    )


def load(**keys):
    """Examples of such settings."""
    return load_examples(spec(**keys))


def test_jsonl_becomes_examples(jsonl):
    """A line becomes an example that is named by file and line, and whole numbers lose their
    ``.0``."""
    examples = load(jsonl=jsonl)
    assert len(examples) == 10
    assert examples[1] == Example("question 1", "1", f"{jsonl}:3")


def test_template_and_chat(jsonl):
    """A template is filled from any fields, doubled braces are braces, and values are never
    templates themselves."""
    template = "{{Q}} {question} ({name})\n"
    made = load(jsonl=jsonl, template=template, chat=True, system="s", count=1)
    assert made == [Example("{Q} question 0 (n0)\n", "0", f"{jsonl}:1", chat=True, system="s")]
    hostile = [{"question": "{number.__class__}", "number": 1}]
    (example,) = load(function=lambda: hostile, template="{question}")
    assert example.prompt == "{number.__class__}"


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
        ("{}", "exactly one"),
        ("{jsonl: a, dataset: b}", "exactly one"),
        ("{jsonl: a, split: test}", "belong to 'dataset'"),
        ("{jsonl: a, system: s}", "needs 'chat: true'"),
        ("{jsonl: a, count: 0}", "count"),
        ("{jsonl: a, nonsense: 1}", "nonsense"),
        ("function: os.system", "function"),
        ("data_files: x.pkl", "data_files: cannot tell how to read x.pkl"),
        ("data_files: [x.csv, y.tsv]", "files of one kind are read"),
        ("{dataset: pandas, data_files: x.pkl}", "pandas reads pickle files"),
        ("{jsonl: x.jsonl, data_files: x.csv}", "found jsonl and data_files"),
        ("{data_files: x.json, columns: [a]}", "'columns' names the fields of CSV and TSV files"),
        ("{dataset: some/set, streaming: true}", "'streaming' needs a 'count'"),
        ("{jsonl: x, text_field: t}", "is the whole text, without a prompt; leave"),
        ("{jsonl: x.jsonl, streaming: true, count: 1}", "belong to 'dataset'; here is 'jsonl'"),
    ],
)
def test_wrong_keys(keys, complaint):
    """A contradictory or unknown key, and what would be read by running it, is refused before
    anything is opened."""
    with refused(complaint):
        spec(**yaml.safe_load(keys))


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
    with refused(rf"broken\.jsonl.*{complaint}"):
        load(jsonl=str(file))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("absent", "absent: no such file"),
        ("latin", r"latin.*cannot be read.*; save it as UTF-8$"),
        ("a\0b", r"a\?b: cannot be read: embedded null byte$"),
        ("pipe", "pipe: a pipe or a device, and no file; save the records in a file"),
        ("device", "device: a pipe or a device, and no file; save the records in a file"),
    ],
)
def test_unreadable_file(name, complaint, tmp_path):
    """A file that is absent or not UTF-8, a pipe, of which nothing may ever come, and a device, of
    which everything may, are refused by name."""
    (tmp_path / "latin").write_bytes(b'{"question": "\xe9"}')
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with refused(complaint):
        load(jsonl=f"{tmp_path}/{name}")


def test_one_chat_message_is_its_text():
    """Prompt and completion of one message each, as trl writes them, are read as their texts; a
    longer chat is refused."""
    user, assistant = ({"role": role, "content": role} for role in ("user", "assistant"))
    fields = {"prompt_field": "prompt", "answer_field": "completion"}
    (example,) = load(function=lambda: [{"prompt": [user], "completion": [assistant]}], **fields)
    assert (example.prompt, example.answer) == ("user", "assistant")
    longer = {"prompt": [user, user], "completion": [assistant]}
    with refused(r"nor one chat message .*; write each problem as one"):
        load(function=lambda: [longer], **fields)


def test_slices_of_one_shuffle_are_disjoint(jsonl):
    """Slices with one seed part the data, another seed orders it otherwise, and the same
    specification repeats itself."""
    first = load(jsonl=jsonl, shuffle_seed=3, count=6)
    second = load(jsonl=jsonl, shuffle_seed=3, start=6)
    assert sorted(example.answer for example in first + second) == [str(i) for i in range(10)]
    assert first == load(jsonl=jsonl, shuffle_seed=3, count=6)
    assert first != load(jsonl=jsonl, shuffle_seed=4, count=6)
    check_disjoint(first, second)


def test_overlap_is_of_content():
    """A problem is found again in another file, template, answer and width of letters; repeats in
    one split are fine."""
    one = [{"question": "What is 2 + 3?", "number": 5}]
    two = [{"q": "Who?", "answer": 1}, {"q": "What is  ２ + 3?", "answer": "five"}]
    search = load(function=lambda: one, template="Question: {question}\nAnswer:")
    test = load(function=lambda: two, prompt_field="q", answer_field="answer")
    with refused(r"function\[0\] \(search\) and function\[1\] \(test\) have the same prompt;"):
        check_disjoint(search, [], test)
    check_disjoint(search * 2, [], test[:1])


def test_whole_texts():
    """A record that is a text has no prompt, and no second place for one; texts that two splits
    share are found."""
    records = [{"text": "one two"}, {"text": "three"}, {"text": " "}]
    whole = DataSpec(function=lambda: records, text_field="text")
    texts = load_examples(whole.model_copy(update={"count": 2}))
    assert [(text.prompt, text.answer) for text in texts] == [("", "one two"), ("", "three")]
    check_disjoint(texts[:1], texts[1:])
    with refused("the splits overlap"):
        check_disjoint(texts, texts)
    with refused(r"function\[2\]: the text \(field 'text'\) is empty"):
        load_examples(whole)


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
    folder.mkdir()
    data = datasets.Dataset.from_list(records())
    getattr(data, f"to_{kind}")(str(folder / f"test.{kind}"))
    given = {"dataset": str(folder), "split": "test"}
    examples = load(**given, start=2, count=3)
    assert [(each.prompt, each.answer) for each in examples] == [
        (f"question {i}", str(i)) for i in (2, 3, 4)
    ]
    no_folder = "no folder; give a folder of data or a data set's id, or name files by"
    for changes, message in (
        ({"answer_field": "answer"}, "no field 'answer'; its fields are question, number, name"),
        ({"split": "validation"}, "cannot be loaded"),
        ({"dataset": "./nowhere"}, no_folder),  # is not looked for on the Hub
        ({"dataset": str(folder / f"test.{kind}")}, no_folder),
    ):
        with refused(message):
            load(**{**given, **changes})


@pytest.mark.usefixtures("datasets")
def test_anything_that_datasets_reads(tmp_path):
    """Files by name, tables without a heading, a filter and a seed."""
    table = tmp_path / "a.tsv"
    rows = [f'q "{i}\t{i}\t{"odd" if i % 2 else "even"}\n' for i in range(20)]
    table.write_text("".join(rows), encoding="utf-8")

    def read(kinds=("odd", "other"), **cut):
        columns = ["question", "number", "kind"]
        return load(data_files=str(table), columns=columns, filter={"kind": list(kinds)}, **cut)

    first = read(shuffle_seed=1, count=4)
    rest = read(shuffle_seed=1, start=4)
    assert sorted(int(example.answer) for example in first + rest) == list(range(1, 20, 2))
    assert first[0].prompt == f'q "{first[0].answer}'
    with refused(r"a.tsv: count 11 from start 0 asked for, but there are only 10 records"):
        read(count=11)
    with refused(r"a.tsv: 'filter' keeps none of 20 records"):
        read(["none"])


@pytest.mark.usefixtures("datasets")
def test_a_stream(jsonl):
    """A stream is shuffled, and read as far as it is asked for."""

    def read(**cut):
        examples = load(data_files=[jsonl], streaming=True, shuffle_seed=3, **cut)
        return [int(example.answer) for example in examples]

    parts = read(count=5) + read(start=5, count=5)
    assert sorted(parts) == list(range(10))
    assert parts[:5] == read(count=5) != sorted(parts[:5])
    with refused(r"problems.jsonl: count 6 from start 5 asked for, but 5 came"):
        read(start=5, count=6)


@pytest.mark.usefixtures("datasets")
def test_a_file_that_no_reader_takes_is_one_line(tmp_path):
    """Whatever error the reader of a format has, it is one that names the data, also in the midst
    of a stream."""
    archive = tmp_path / "pictures.tar"
    archive.write_bytes(b"no archive" * 200)
    with refused(r"^webdataset: cannot be loaded: invalid header$"):
        load(dataset="webdataset", data_files=[str(archive)])
    files = [tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"]
    files[0].write_text('{"question": "a", "number": 1}')
    files[1].write_text('{"question": ')
    with refused(r"^.*whole\.jsonl, .*broken\.jsonl: cannot be loaded: "):
        load(data_files=list(map(str, files)), streaming=True, count=2)


def test_datasets_library_absent(monkeypatch):
    """Without the datasets library the message says what to install."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused(r"pip install 'hf-evomerge\[eval\]'"):
        load(dataset="someone/something")


def test_function_data():
    """Records may come from a Python function; what is no record, or lacks the field of a filter,
    is refused."""
    assert load(function=records)[2] == Example("question 2", "2", "function[2]")
    with refused(r"function\[0\]: expected a mapping"):
        load(function=lambda: ["text"])
    with refused(r"function\[0\]: no field 'kind', which 'filter' names"):
        load(function=records, filter={"kind": "odd"})

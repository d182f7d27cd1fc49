import json

import pytest
from searches import minimal

from hf_evomerge.errors import EvoMergeError, SearchError
from hf_evomerge.fitness import DataSpec, GenerationTask, load_examples, make_task, parse_task
from hf_evomerge.fitness.tasks.generation import is_right
from hf_evomerge.fitness.tasks.word_problems import PAPER_STOPS, WORDS
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.file.config import SearchConfig

# What the paper's scorer was measured with.
PAPER_PROMPT = (
    "以下に、あるタスクを説明する指示があります。リクエストを適切に完了するための回答を日本語で記述してください。"
    "一歩一歩考えましょう。\n\n### 指示:\n{question}\n\n### 応答:"
)


def search(fitness, **data):
    """A search file with these sections."""
    return minimal(fitness=fitness, data=data)


def test_paper():
    """`compat: paper` is the paper's protocol, on MGSM of the Hub and on the problems that the
    paper searched with."""
    found = search(
        {"task": "mgsm", "language": "ja", "compat": "paper"},
        search={"dataset": "SakanaAI/gsm8k-ja-test_250-1319", "split": "test", "count": 200},
        test={},
    )
    spec = parse_task(found.fitness.model_dump())
    assert (spec.max_new_tokens, spec.stop, spec.extract) == (1024, PAPER_STOPS, "last_number")
    assert spec.language.model_dump() == {"code": "ja", "threshold": 0.5}
    for split in ("search", "test"):
        assert (found.data[split].template, found.data[split].answer_field) == (
            PAPER_PROMPT,
            "answer_number",
        )
    test = found.data["test"]
    assert (test.dataset, test.config, test.split, test.count) == (
        "juletxara/mgsm",
        "ja",
        "test",
        None,
    )
    assert (found.data["search"].config, found.data["search"].count) == (None, 200)
    assert not is_right("1,000", "1000", spec)
    assert validate(SearchConfig, found.model_dump(mode="json"), SearchError) == found


def test_corrected_by_default():
    """Without `compat` numbers are read as they are written, and stops are the prompt's own
    headings."""
    spec = parse_task({"task": "mgsm", "language": "de"})
    assert is_right("Das sind 1.000,5 Euro.", "1000.5", spec)
    assert spec.stop == ["### Aufgabe", "### Lösung"]
    assert (
        parse_task(
            {"task": "mgsm", "language": {"code": "ja", "threshold": 0.9}, "stop": []}
        ).language.threshold
        == 0.9
    )
    assert isinstance(make_task(spec), GenerationTask)


@pytest.mark.parametrize("code", WORDS)
def test_table_of_the_authors(code, tmp_path):
    """The authors' table is read as it is, quotation marks and all, and every prompt ends where an
    answer begins."""
    file = tmp_path / f"mgsm_{code}.tsv"
    file.write_text('He said "2 + 3" is?\t5\nNA\t276,000\n', encoding="utf-8")
    for files in (str(file), [str(file)]):
        found = search({"task": "mgsm", "language": code}, search={"data_files": files}).data[
            "search"
        ]
        examples = load_examples(found)
        assert [example.id.rpartition("[")[2] for example in examples] == ["0]", "1]"]
    assert [example.answer for example in examples] == ["5", "276,000"]
    assert [example.content for example in examples] == ['He said "2 + 3" is?', "NA"]
    assert examples[0].prompt == WORDS[code].template.replace("{question}", 'He said "2 + 3" is?')
    assert examples[0].prompt.endswith(":")


def test_gsm8k(tmp_path):
    """GSM8K's answers are the numbers after its four hashes; in a chat the question comes first."""
    file = tmp_path / "test.jsonl"
    file.write_text(
        json.dumps({"question": "How many?", "answer": "2 + 3 = 5\n#### 1,005"}) + "\n",
        encoding="utf-8",
    )
    found = search({"task": "gsm8k"}, search={"jsonl": str(file), "chat": True}, test={})
    (example,) = load_examples(found.data["search"])
    assert example.answer == "1,005"
    assert example.prompt == f"How many?\n\n{WORDS['en'].instruction}"
    assert (found.data["test"].dataset, found.data["test"].config) == ("openai/gsm8k", "main")
    assert found.fitness.language is None
    file.write_text(json.dumps({"question": "How many?", "answer": "5"}) + "\n", encoding="utf-8")
    with pytest.raises(EvoMergeError, match=r"test.jsonl:1: no '####' in the answer"):
        load_examples(found.data["search"])


def test_a_file_has_the_last_word():
    """What a section of the data says stays."""
    given = {"jsonl": "x.jsonl", "template": "Q: {q}", "answer_field": "a"}
    assert search({"task": "mgsm", "language": "ja"}, search=given).data["search"] == DataSpec(
        **given
    )


@pytest.mark.parametrize(
    ("fitness", "message"),
    [
        ({"task": "mgsm"}, "language: which. There are prompts for de, en"),
        (
            {"task": "mgsm", "language": "de", "compat": "paper"},
            r"compat: the paper measured ja alone \(found de\)",
        ),
        ({"task": "gsm8k", "compat": "paper"}, r"compat: the paper measured ja alone \(found en\)"),
        ({"task": "mgsm", "language": "japanese"}, "language"),
    ],
)
def test_refusals(fitness, message):
    """What the paper did not measure, and problems without a language, are refused in one line."""
    with pytest.raises(SearchError, match=message):
        search(fitness, search={})


def test_languages_without_a_prompt():
    """A language that has no prompt here needs a template."""
    data = search({"task": "mgsm", "language": "sw"}, search={"jsonl": "x.jsonl"}).data["search"]
    here = data.model_copy(
        update={"jsonl": None, "function": lambda: [{"question": "a", "answer_number": 1}]}
    )
    with pytest.raises(EvoMergeError, match=r"function\[0\]: no field 'prompt'"):
        load_examples(here)

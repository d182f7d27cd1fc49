import pytest
import yaml
from refusals import refused
from searches import minimal

from hf_evomerge.errors import EvoMergeError, SearchError
from hf_evomerge.fitness import DataSpec, GenerationTask, load_examples, make_task, parse_task
from hf_evomerge.fitness.tasks.generation import is_right
from hf_evomerge.fitness.tasks.word_problems import PAPER_STOPS, WORDS
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.file.config import SearchConfig

from .conftest import write_lines

# What the paper's scorer was measured with.
PAPER_PROMPT = (
    "以下に、あるタスクを説明する指示があります。リクエストを適切に完了するための回答を日本語で記述してください。"
    "一歩一歩考えましょう。\n\n### 指示:\n{question}\n\n### 応答:"
)


def search(fitness, **data):
    """A search file with these sections."""
    return minimal(fitness=fitness, data=data)


def section(fitness, **data):
    """The section of a search file for its search's data, as it is completed."""
    return search(fitness, search=data).data["search"]


def test_paper():
    """`compat: paper` is the paper's protocol, on MGSM of the Hub and on the problems that the
    paper searched with."""
    problems = {"dataset": "SakanaAI/gsm8k-ja-test_250-1319", "split": "test", "count": 200}
    fitness = {"task": "mgsm", "language": "ja", "compat": "paper"}
    found = search(fitness, search=problems, test={})
    spec = parse_task(found.fitness.model_dump())
    assert (spec.max_new_tokens, spec.stop, spec.extract) == (1024, PAPER_STOPS, "last_number")
    assert spec.language.model_dump() == {"code": "ja", "threshold": 0.5}
    usual = {"template": PAPER_PROMPT, "answer_field": "answer_number"}
    hub = {"dataset": "juletxara/mgsm", "config": "ja", "split": "test"}
    assert found.data == {"search": DataSpec(**usual, **problems), "test": DataSpec(**usual, **hub)}
    assert not is_right("1,000", "1000", spec)
    assert validate(SearchConfig, found.model_dump(mode="json"), SearchError) == found


def test_corrected_by_default():
    """Without `compat` numbers are read as they are written, and stops are the prompt's own
    headings."""
    spec = parse_task({"task": "mgsm", "language": "de"})
    assert is_right("Das sind 1.000,5 Euro.", "1000.5", spec)
    assert spec.stop == ["### Aufgabe", "### Lösung"]
    strict = {"code": "ja", "threshold": 0.9}
    assert parse_task({"task": "mgsm", "language": strict}).language.threshold == 0.9
    assert isinstance(make_task(spec), GenerationTask)


@pytest.mark.parametrize("code", WORDS)
def test_table_of_the_authors(code, tmp_path):
    """The authors' table is read as it is, quotation marks and all, and every prompt ends where an
    answer begins."""
    file = tmp_path / f"mgsm_{code}.tsv"
    file.write_text('He said "2 + 3" is?\t5\nNA\t276,000\n', encoding="utf-8")
    for files in (str(file), [str(file)]):
        data = section({"task": "mgsm", "language": code}, data_files=files)
        first, second = load_examples(data)
        assert (first.id[-3:], second.id[-3:]) == ("[0]", "[1]")
        assert (first.content, first.answer) == ('He said "2 + 3" is?', "5")
        assert (second.content, second.answer) == ("NA", "276,000")
        assert first.prompt == WORDS[code].template.replace("{question}", first.content)
        assert first.prompt.endswith(":")


def test_gsm8k(tmp_path):
    """GSM8K's answers are the numbers after its four hashes; in a chat the question comes first."""

    def read(answer):
        record = {"question": "How many?", "answer": answer}
        file = write_lines(tmp_path / "test.jsonl", [record])
        return load_examples(section({"task": "gsm8k"}, chat=True, **file))[0]

    example = read("2 + 3 = 5\n#### 1,005")
    assert example.answer == "1,005"
    assert example.prompt == f"How many?\n\n{WORDS['en'].instruction}"
    hub = search({"task": "gsm8k"}, search={}, test={})
    assert (hub.data["test"].dataset, hub.data["test"].config) == ("openai/gsm8k", "main")
    assert hub.fitness.language is None
    with refused(EvoMergeError, "test.jsonl:1: no '####' in the answer"):
        read("5")


def test_a_file_has_the_last_word():
    """What a section of the data says stays."""
    given = {"jsonl": "x.jsonl", "template": "Q: {q}", "answer_field": "a"}
    assert section({"task": "mgsm", "language": "ja"}, **given) == DataSpec(**given)


@pytest.mark.parametrize(
    ("fitness", "message"),
    [
        ("task: mgsm", "language: which. There are prompts for de, en"),
        (
            "{task: mgsm, language: de, compat: paper}",
            r"compat: the paper measured ja alone \(found de\)",
        ),
        ("{task: gsm8k, compat: paper}", r"compat: the paper measured ja alone \(found en\)"),
        ("{task: mgsm, language: japanese}", "language"),
    ],
)
def test_refusals(fitness, message):
    """What the paper did not measure, and problems without a language, are refused in one line."""
    with refused(SearchError, message):
        search(yaml.safe_load(fitness), search={})


def test_languages_without_a_prompt():
    """A language that has no prompt here needs a template."""
    data = section({"task": "mgsm", "language": "sw"}, jsonl="x.jsonl")
    records = [{"question": "a", "answer_number": 1}]
    here = data.model_copy(update={"jsonl": None, "function": lambda: records})
    with refused(EvoMergeError, r"function\[0\]: no field 'prompt'"):
        load_examples(here)

"""A first search file: what it is made from, that it is one, and what it cannot be made from."""

import importlib.util
import random
import re
import shutil
from pathlib import Path

import pytest
from classes import CLASSES, edit_json, random_class
from commands import invoke
from refusals import refused
from searches import write_lines
from tiny_adapters import save_adapter
from transformers import BertConfig, BertForMaskedLM
from vlms import WORDS, tokenizer

from hf_evomerge import SearchConfig, SourceRef, plan_search
from hf_evomerge.errors import FitnessError, SearchError, SourceError
from hf_evomerge.recipes.strict_yaml import parse_yaml, validate
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.scaffold import AnswerForm, _named, draft_search


def _data(folder, *records, count=80):
    """A file with the records, and more of the kind of the last."""
    key, text = next(iter(records[-1].items()))
    more = [{**records[-1], key: f"{text} {n} ?"} for n in range(count)]
    return write_lines(folder / "my problems.jsonl", *records, *more)


PLAIN = {"prompt": "w1 w2", "answer": "w3"}


def _drafted(names, data, **more):
    draft = draft_search([*map(str, names)], data, **more)
    return parse_yaml(SearchConfig, draft.text, SearchError), draft


@pytest.fixture
def pair(tiny):
    """The fine-tunes."""
    return [tiny / "a", tiny / "b"]


@pytest.fixture
def base(tiny):
    """Their base."""
    return str(tiny / "base")


@pytest.fixture
def tiny_copy(tiny, tmp_path):
    """Models that a test may change."""
    return shutil.copytree(tiny, tmp_path / "tiny")


def test_models_of_one_depth_are_merged(pair, base, tmp_path):
    """A draft is a quick search for weights over slices that do not overlap, with comments for what
    comes after it."""
    data = _data(tmp_path, {"question": "w1 w2", "answer": 3}, count=1000)
    config, draft = _drafted(pair, data, base=base)
    assert (config.space, config.merge.groups) == ("ps", "rows")
    assert [(step.by, step.evaluations) for step in config.optimize] == [("gradient", 48)]
    assert "\noptimize: quick\n" in draft.text
    assert [source.model for source in config.sources] == [*map(str, pair)]
    assert config.base == SourceRef(model=base)
    assert config.compare.baselines == ("average", "prompt", "alone", "merge+lora")
    assert "by itself, 2 times its cost; does the result need them all?" in draft.text
    specs = config.data.values()
    assert [(spec.start, spec.count) for spec in specs] == [(0, 128), (128, 200), (328, 400)]
    assert {(spec.prompt_field, spec.shuffle_seed) for spec in specs} == {("question", 0)}
    assert config.fitness.separator == " "
    after = draft.text.split("# After the quick look")[1].replace("\n# ", "\n")
    assert "# task: generation" in draft.text
    assert "merge: {groups: 2} # 2 x 2 weights" in after
    assert re.search(r"^optimize: \[{by: gradient, evaluations: 150}\] # ", after, re.MULTILINE)


def test_choices_are_chosen_from(pair, base, tmp_path):
    """Records with choices make a search for the right one, by its log-probability, which also says
    how often it is right."""
    data = _data(tmp_path, {"question": "w1", "choices": ["w2", "w3"], "answer": 1})
    config, draft = _drafted(pair, data, base=base)
    assert (config.fitness.task, config.fitness.unit) == ("multiple_choice", "nats per answer")
    assert {spec.choices for spec in config.data.values()} == {"choices"}
    assert config.optimize[0].by == "cma"
    assert "gradient" not in draft.text


def test_without_peft_no_lora_learns_beside(pair, base, tmp_path, monkeypatch):
    """The baseline that trains a LoRA is left out where peft is not installed."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config, draft = _drafted(pair, _data(tmp_path, PLAIN), base=base)
    assert config.compare.baselines == ("average", "prompt", "alone")
    assert "merge+lora among the baselines says it" in draft.text
    assert 'pip install "hf-evomerge[lora]"' in draft.text


def test_models_of_other_depths(tiny, base, tmp_path):
    """Where depths differ the search is for a path."""
    names = [tiny / name for name in ("a", "deep")]
    config, draft = _drafted(names, _data(tmp_path, PLAIN), base=base)
    assert config.space == "dfs"
    assert "which are 2, 3, 2" in draft.text
    assert re.match("3 models: a has 2 layers and .*M; deep has 3 layers and .*M", draft.found[0])
    assert "a path through their layers is searched (space: dfs)" in "".join(draft.found)
    assert "# path: {kind: gates, repetitions: 2}" in draft.text
    assert config.compare.baselines == ("average", "prompt", "alone")


def test_models_without_a_base(pair, tmp_path):
    """Without a base the merge is a mean, which begins at the average alone."""
    config, draft = _drafted(pair, _data(tmp_path, PLAIN))
    assert config.compare.baselines == ("average", "prompt")  # a mean of one model is that model
    assert (config.merge.method, config.merge.starts) == ("linear", ["average", "sources"])
    assert config.optimize[0].by == "gradient"
    begin, _, after = draft.text.partition(
        "# After the quick look, in place of optimize and merge above:\n"
    )
    kept = re.sub("^(optimize|merge): .*\n", "", begin, flags=re.MULTILINE)
    said = after.split("# Or,")[0]
    later = kept + re.sub("^# ", "", said, flags=re.MULTILINE)
    assert parse_yaml(SearchConfig, later, SearchError).optimize[0].evaluations == 150


def _says(folder, base, *, card=True):
    """A model's card, or its config, names a base."""
    if card:
        (folder / "README.md").write_text(f"---\nbase_model:\n- {base}\n---\n# A fine-tune\n")
    else:
        edit_json(folder / "config.json", _name_or_path=base)


def test_the_base_is_found(tiny_copy, tmp_path):
    """Without --base the one is taken that cards and configs name; where they name none, several or
    one that will not do, this is said, and what it costs."""
    data = _data(tmp_path, PLAIN)
    a, b, base, deep = (tiny_copy / name for name in ("a", "b", "base", "deep"))

    def drafted():
        config, draft = _drafted([a, b], data)
        return config, "\n".join(draft.found)

    averaged = "weights are averaged (merge: {method: linear}); task vectors need --base"
    config, said = drafted()
    assert config.base is None
    assert f"warning: no base is known: {averaged}" in said
    _says(a, base)
    _says(b, str(base), card=False)
    config, said = drafted()
    assert (config.base.model, config.merge.method) == (str(base), "task_arithmetic")
    assert f"the base is the one that they name (a and b: {base})" in said
    for other in (deep, "no/such"):
        _says(a, other)
        config, said = drafted()
        assert config.base is None
        assert f"warning: no base is known (a: {other}; b: {base}): {averaged}" in said
    _says(b, "no/such")
    assert "which will not do: no/such: no folder in " in drafted()[1]
    for folder in (a, b):
        _says(folder, deep)
    assert "of 3 layers): weights" in drafted()[1]


def test_half_precision_is_for_gpus(tiny_copy, tmp_path):
    """Models of half precision are scored in float32 on a processor, as the file says; on a GPU
    they stay what they are."""
    names = [tiny_copy / name for name in ("a", "b")]
    for name in names:
        edit_json(name / "config.json", dtype="bfloat16")
    data = _data(tmp_path, PLAIN)
    for device, dtype in {"cpu": "float32", "cuda": None}.items():
        assert _drafted(names, data, device=device)[0].output.dtype == dtype


def test_a_draft_is_ready_for_a_card(pair, tmp_path):
    """The line that says what the model is for waits to be filled in; a gloss is taken where every
    record has one."""
    record = {**PLAIN, "english": "one two"}
    config, draft = _drafted(pair, _data(tmp_path, record))
    assert {spec.gloss_field for spec in config.data.values()} == {"english"}

    def filled(line):
        text = re.sub("^# about: .*what the model is for.*$", line, draft.text, flags=re.MULTILINE)
        return parse_yaml(SearchConfig, text, SearchError).about

    assert filled("about: Adds in Japanese.") == "Adds in Japanese."
    waiting = draft.text[draft.text.index("about:") :].split("\n")[0]
    for line, message in {
        waiting: "about: still waits to be filled in",
        "about: a sentence: two": "mapping values are not allowed here.*; put a text with a colon",
        f"about: {'x' * 301}": "about: must have at most 300 characters",
    }.items():
        with refused(SearchError, message):
            filled(line)
    config, _ = _drafted(pair, _data(tmp_path, {**PLAIN, "prompt": "w4"}, record))
    assert {spec.gloss_field for spec in config.data.values()} == {None}


@pytest.mark.parametrize(
    ("record", "separator"),
    [
        ({"prompt": "2 + 3 =", "answer": "5"}, " "),
        ({"prompt": "2 + 3 =\n", "answer": "5"}, ""),
        ({"prompt": "全部で何個ですか?", "answer": "5個です"}, ""),
        ({"prompt": "答えは", "answer": "5"}, ""),
        ({"prompt": "2 + 3 =", "answer": " 5"}, ""),
    ],
)
def test_the_separator_is_guessed_from_the_writing(pair, tmp_path, record, separator):
    """Without a measurement: a space where words have spaces between them, and neither prompt nor
    answer has it."""
    records = ({**record, "prompt": f"{number} {record['prompt']}"} for number in range(8))
    config, _ = _drafted(pair, write_lines(tmp_path / "problems.jsonl", *records))
    assert config.fitness.separator == separator


def test_chat_templates_are_used_where_all_have_one(tiny_copy, tmp_path):
    """With a template in every model the prompts are messages and no separator is written; with one
    in some it is remarked."""
    data = _data(tmp_path, {"instruction": "w1", "input": "w2", "output": "w " * 200})
    names = [tiny_copy / name for name in ("a", "b", "base")]

    def drafted(with_template):
        for name in with_template:
            (name / "chat_template.jinja").write_text("{{ messages[0].content }}")
        return _drafted(names[:2], data, base=str(names[2]))

    config, draft = drafted(names[:1])
    assert {spec.chat for spec in config.data.values()} == {False}
    assert "if all models have one" in draft.text
    config, _ = drafted(names)
    specs = config.data.values()
    assert {(spec.chat, spec.template) for spec in specs} == {(True, "{instruction}\n{input}")}
    assert (config.fitness.separator, config.fitness.normalize) == ("", "token")


@pytest.mark.parametrize(
    ("record", "count", "message"),
    [
        (PLAIN, 3, "3 records; a search needs 8 at least"),
        (PLAIN, 9, "prompts occur more than once, such as 'w1 w2' .9 times.; keep one of each"),
        ({"messages": []}, 9, "messages holds whole chats; write each problem as"),
        ({"words": "a"}, 9, "none of the fields words looks like the prompt"),
    ],
)
def test_data_that_does_not_do(pair, tmp_path, record, count, message):
    """Too few records, repeated prompts, chats and unknown fields are one line that says what to
    do."""
    with refused(FitnessError, message):
        _drafted(pair, write_lines(tmp_path / "problems.jsonl", *[record] * count))


def test_prompts_without_answers_are_of_a_model_each(pair, tmp_path, monkeypatch):
    """One file of prompts for each model, in their order, gives a search by agreement; one for all
    is refused, for its answers may have another name."""
    files = []
    for name in ("first", "second"):
        records = ({"prompt": f"{name} {number}", "reply": "b"} for number in range(40))
        files.append(write_lines(tmp_path / f"{name}.jsonl", *records))
    config, draft = _drafted(pair, files)
    assert config.fitness.task == "agreement"
    for spec in config.data.values():
        assert list(spec.sources) == config.source_names
        assert [Path(each.jsonl).stem for each in spec.sources.values()] == ["first", "second"]
        assert {each.answer_field for each in spec.sources.values()} == {None}
    assert "no answers in it: the result is to answer as a does" in draft.found
    assert not any("needs peft" in line for line in draft.found)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert any("needs peft" in line for line in _drafted(pair, files)[1].found)
    monkeypatch.undo()
    assert config.fitness.vary == 128 - config.data["search"].sources["a"].count
    with refused(FitnessError, "none of the fields prompt, reply looks like the answer.*1 given"):
        _drafted(pair, files[0])


@pytest.mark.parametrize("answered", [False, True])
def test_the_price_of_trainings_is_the_dry_runs(answered, pair, base, tmp_path):
    """The comments say as many searches as the dry run, with made prompts and without."""
    rng = random.Random(0)
    files = []
    for name in "ab":
        records = [{"prompt": " ".join(rng.choices(WORDS, k=6))} for _ in range(16)]
        if answered:
            records = [{**record, "answer": "w1"} for record in records]
        files.append(write_lines(tmp_path / f"{name}.jsonl", *records))
    draft = draft_search([*map(str, pair)], files, base=base)
    short = draft.text.replace("vary: 112", "vary: 112, max_new_tokens: 4")
    config = parse_yaml(SearchConfig, short, SearchError)
    said = re.search(r"merge, about (\d+) times its cost", draft.text)
    planned = re.search(r"about (\d+) times the cost of the search", str(plan_search(config)))
    assert said is not None
    assert planned is not None
    assert said[1] == planned[1]


@pytest.mark.parametrize(
    ("counts", "prompt", "splits"),
    [
        ((16, 9), "add {} to {}", {"search": 16}),
        ((16, 24), "add {} to {}", {"search": 8, "test": 8}),
        ((16, 16), "<{}{}>", {"search": 16}),
    ],
)
def test_few_prompts_without_answers(pair, tmp_path, counts, prompt, splits):
    """Fewer than 24 are all searched with, and those of validation are made of them; where a file
    has more, half is for the test."""
    files = []
    for name, count in zip("ab", counts, strict=True):
        records = ({"prompt": prompt.format(n, 3 * n)} for n in range(count))
        files.append(write_lines(tmp_path / f"{name}.jsonl", *records))
    config, draft = _drafted(pair, files)
    assert {split: spec.sources["a"].count for split, spec in config.data.items()} == splits
    assert config.fitness.vary == 128 - min(s.count for s in config.data["search"].sources.values())
    said = (
        "models are chosen on prompts made of these, which flatters them; from 24 prompts on, half "
        "are kept for a test"
    )
    assert (said in draft.found) == ("test" not in splits)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"prompt": "a"}, {"prompt": "b", "answer": "c"}], "some records have an answer and some"),
        ([{"prompt": " ", "answer": "c"}], "1 prompts are empty; leave them out"),
    ],
)
def test_prompts_that_do_not_do(pair, tmp_path, records, message):
    """Files of which some records have answers, and empty prompts, are one line."""
    more = [{**records[0], "prompt": f"w{number}"} for number in range(40)]
    with refused(FitnessError, message):
        _drafted(pair, write_lines(tmp_path / "prompts.jsonl", *more, *records))


def test_answers_are_in_all_files_or_in_none(pair, tmp_path):
    """A skill with answers and one without are refused in words of the data."""
    files = [
        write_lines(
            tmp_path / f"{name}.jsonl", *({"prompt": f"{name} {n}", **rest} for n in range(40))
        )
        for name, rest in (("a", {}), ("b", {"answer": "c"}))
    ]
    with refused(SearchError, "a.jsonl has no answers and others have; give answers in all files"):
        _drafted(pair, files)


def test_the_command_replaces_no_file_unasked(pair, base, tmp_path, monkeypatch):
    """The file is written once, names with spaces are quoted, and one source is refused."""
    monkeypatch.chdir(tmp_path)
    data = _data(tmp_path, PLAIN).name
    words = ["init", *pair, "--base", base, "--data", data]
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    assert (
        "81 problems in my problems.jsonl: 40 for search, 41 for test\nmore search" in done.stdout
    )
    assert "hf-evomerge search search.yaml --out my-search --dry-run" in done.stdout
    assert SearchConfig.load("search.yaml").data["search"].jsonl == data
    assert invoke(*words, "--out", "new/search.yaml").exit_code == 0
    again = invoke(*words)
    assert (again.exit_code, again.stderr.count("exists already")) == (1, 1)
    alone = invoke("init", pair[0], "--data", data, "--out", "other.yaml")
    assert "give the names of two fine-tunes of one model" in alone.stderr


@pytest.mark.parametrize(
    ("count", "choices", "sizes"),
    [
        (8, None, [4, 4]),
        (24, None, [16, 8]),
        (150, None, [75, 75]),
        (160, None, [80, 16, 64]),
        (214, None, [107, 21, 86]),
        (300, None, [128, 34, 138]),
        (400, None, [128, 72, 200]),
        (2000, None, [128, 200, 400]),
        (214, ["w2", "w3"], [64, 64, 86]),
    ],
)
def test_how_problems_are_split(count, choices, sizes, pair, base, tmp_path):
    """With a gradient half are searched with, and validation has a fifth of the rest, or what a
    test of 200 leaves; without one it has as many as the search. The splits do not overlap, and
    what was chosen is said."""
    record = PLAIN | ({"answer": "w2", "choices": choices} if choices else {})
    config, draft = _drafted(pair, _data(tmp_path, record, count=count - 1), base=base)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    slices = [(spec.start, spec.count) for spec in config.data.values()]
    assert slices == [*zip(starts, sizes, strict=True)]
    why = next(line for line in draft.found if "the test tells an accuracy" in line)
    more = "more search examples may help (count)"
    assert why.startswith(more if sizes[0] == 128 else "more search examples mostly help;")
    error = 0.98 / sizes[-1] ** 0.5
    assert f"the test tells an accuracy to ± {error:.2f}; " in why
    assert ("validation guards against luck" in why) == (len(sizes) == 3)


def test_an_answer_that_most_problems_have_is_told(pair, base, tmp_path):
    """One answer to most problems is a warning of the draft."""
    data = _data(tmp_path, {"question": "w1", "answer": "w2"}, count=30)
    found = _drafted(pair, data, base=base)[1].found
    assert "warning: 'w2' is the answer to 31 of them: does the task ask for more?" in found


def test_adapters_are_sources(pair, base, tmp_path):
    """An adapter of the base that is given, by its folder; and one named with its base."""
    lora = str(save_adapter(Path(base), tmp_path / "lora", 0))
    a, b = map(str, pair)
    config, _ = _drafted([lora, f"{a}+{lora}", b], _data(tmp_path, PLAIN), base=base)
    sources = [(source.model, source.adapter) for source in config.sources]
    assert sources == [(base, lora), (a, lora), (b, None)]


def test_a_folder_of_adapters(base, tmp_path):
    """A folder of adapters stands for all of them, and the base is the one that they name."""
    for seed, name in enumerate(("b", "a", "c")):
        save_adapter(Path(base), tmp_path / "loras" / name, seed)
    config, _ = _drafted([tmp_path / "loras"], _data(tmp_path, PLAIN))
    assert config.base == SourceRef(model=base)
    sources = [(source.model, source.adapter) for source in config.sources]
    assert sources == [(base, str(tmp_path / "loras" / name)) for name in "abc"]
    assert config.merge.method == "task_arithmetic"


def test_worked_solutions_are_scored_by_their_result(pair, tmp_path):
    """Where every answer has its result after the mark of GSM8K, that is the answer, and the
    settings are explained."""
    data = _data(tmp_path, {"question": "w1 w2", "answer": "w3 w4\n#### 43"})
    config, draft = _drafted(pair, data)
    assert {spec.answer_after for spec in config.data.values()} == {"####"}
    assert "# task: generation" in draft.text
    for key in ("answer_after", "prompt_field", "shuffle_seed", "start", "count", "max_new_tokens"):
        assert re.search(f"# .*{key}\\b", draft.text), key


def _bert(folder, seed, *labels):
    """A tiny classifier of these labels, or without any a masked language model; returns its
    folder."""
    numbers = {label: number for number, label in enumerate(labels)}
    named = {"id2label": dict(enumerate(labels)), "label2id": numbers}
    model = (
        random_class("bert", seed, **named)
        if labels
        else BertForMaskedLM(BertConfig(**CLASSES["bert"][1]))
    )
    model.save_pretrained(folder)
    tokenizer(vocabulary=WORDS[:32]).save_pretrained(folder)
    return str(folder)


def _berts(folder, *labels):
    """Folders of classifiers, named after their seeds."""
    return [_bert(folder / str(seed), seed, *each) for seed, each in enumerate(labels)]


COLORS = ("red", "blue")


def test_the_task_follows_the_class(tmp_path):
    """Classifiers are scored by labels, masked language models by what is near; no search scores
    these by likelihood."""
    *names, one, other = _berts(tmp_path, COLORS, COLORS, (), ())
    data = _data(tmp_path, {"prompt": "w1 w2", "answer": "red"}, {"prompt": "w3", "answer": "blue"})
    config, _ = _drafted(names, data)
    assert config.fitness.task == "classification"
    assert config.sources[0].component is None
    config, _ = _drafted([one, other], data)
    assert config.fitness.task == "retrieval"
    settings = config.model_dump(exclude_unset=True) | {"fitness": {"task": "likelihood"}}
    with refused(
        SourceError,
        r"2: BertForMaskedLM \(model type 'bert'\) is no model that the task likelihood",
    ):
        plan_search(validate(SearchConfig, settings, SearchError))


def test_other_labels_are_for_a_file_by_hand(tmp_path):
    """Classifiers of other labels each need a head for each example: init says what to write."""
    names = _berts(tmp_path, COLORS, ("dark", "light"))
    data = _data(tmp_path, {"prompt": "w1", "answer": "dark"})
    with refused(FitnessError, "other labels each; write the search file by hand"):
        _drafted(names, data)


@pytest.mark.parametrize(
    ("record", "template"),
    [
        ({"query": "w1", "passage": "w2 w3", "score": 1.0}, "{query}\t{passage}"),
        (
            {"qid": "7", "sentence1": "w1", "sentence2": "w2 w3", "label": 0},
            "{sentence1}\t{sentence2}",
        ),
        ({"sentence_A": "w1", "sentence_B": "w2 w3", "score": 0.75}, "{sentence_A}\t{sentence_B}"),
    ],
)
def test_re_rankers_are_given_pairs(record, template, tmp_path):
    """Two texts and a label, by sentence-transformers' names, are pairs, and the file scores a
    source on them."""
    names = _berts(tmp_path, ["LABEL_0"], ["LABEL_0"])
    first = template.partition("}")[0].removeprefix("{")
    records = [{**record, first: f"w{n} w4"} for n in range(12)]
    config, _ = _drafted(names, write_lines(tmp_path / "pairs.jsonl", *records))
    assert (config.fitness.task, config.fitness.pair_separator) == ("classification", "\t")
    label = [*record][-1]
    specs = config.data.values()
    assert {(spec.template, spec.answer_field) for spec in specs} == {(template, label)}
    assert plan_search(config).phases
    scores = Evaluator(config).evaluate(config.sources[0])
    assert (scores.error, len(scores.values)) == (None, 6)
    wrong = write_lines(tmp_path / "wrong.jsonl", *({**each, label: 8.3} for each in records))
    with refused(FitnessError, r"the model has no label '8\.3'; it has 0, 1"):
        _drafted(names, wrong)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_one_source_without_a_head_is_named(order, tmp_path):
    """Beside classifiers, wherever it stands; the message says what to do."""
    names = _berts(tmp_path, COLORS, COLORS, ())
    data = _data(tmp_path, {"prompt": "w1 w2", "answer": "red"})
    with refused(SearchError, r"2: BertForMaskedLM has no head, .* give it as the base"):
        _drafted([names[at] for at in order], data)


def test_a_revision_is_written():
    """`NAME@REVISION` is a commit of a repository, in the file as well."""
    assert _named("you/model@v2+you/lora@main", None) == SourceRef(
        model="you/model", revision="v2", adapter="you/lora", adapter_revision="main"
    )


def _skill(folder, name, count):
    records = ({"prompt": f"{name} w{i}", "answer": f"w{i}"} for i in range(count))
    return write_lines(folder / f"{name}.jsonl", *records)


def test_one_file_for_each_skill(pair, base, tmp_path):
    """Every split has some of each skill, and a skill's weight is 1 over the gap that was
    measured."""
    files = [_skill(tmp_path, "sums", 80), _skill(tmp_path, "letters", 600)]
    measured = (AnswerForm("", chat=False), {"sums": 8.0, "letters": 0.5}, [])
    config, draft = _drafted(pair, files, base=base, measure=lambda config: measured)
    assert list(config.data) == ["search", "test"]  # sums has none for validation to spare
    for split, spec in config.data.items():
        assert [each.weight for each in spec.sources.values()] == [0.125, 2.0], split
    tasks = Evaluator(config).tasks
    weights = {(each.source, each.weight) for each in tasks.examples("search")}
    assert weights == {("sums", 0.125), ("letters", 2.0)}
    assert "prompts without answers keep more of both" in "\n".join(draft.found)
    prompts = [each.prompt for split in config.data for each in tasks.examples(split)]
    assert len(prompts) == len(set(prompts))


@pytest.mark.parametrize("more", [["letters.jsonl"], ["--data", "letters.jsonl"]])
def test_init_takes_a_file_for_each_skill(more, pair, tmp_path, monkeypatch):
    """Files behind --data are data, whether the option is repeated or not."""
    monkeypatch.chdir(tmp_path)
    for name in ("sums", "letters"):
        _skill(tmp_path, name, 40)
    done = invoke("init", *pair, "--no-measure", "--data", "sums.jsonl", *more)
    assert done.exit_code == 0, done.output
    search = SearchConfig.load("search.yaml").data["search"]
    assert list(search.sources) == ["sums", "letters"]

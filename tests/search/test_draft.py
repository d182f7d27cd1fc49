"""A first search file: what it is made from, that it is one, and what it cannot be made from."""

import json
import re
import shutil

import pytest
from classes import CLASSES, random_class
from tiny_adapters import save_adapter
from transformers import BertConfig, BertForMaskedLM
from typer.testing import CliRunner
from vlms import WORDS, tokenizer

from hf_evomerge import cli
from hf_evomerge.errors import FitnessError, SearchError, SourceError
from hf_evomerge.recipes.recipe import SourceRef
from hf_evomerge.recipes.strict_yaml import parse_yaml, validate
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.file.scaffold import AnswerForm, _named, draft_search
from hf_evomerge.search.plan import plan_search


def _data(folder, *records, count=80):
    """A file with the records, and more of the kind of the last."""
    more = [
        {**records[-1], next(iter(records[-1])): f"{next(iter(records[-1].values()))} {n} ?"}
        for n in range(count)
    ]
    file = folder / "my problems.jsonl"
    file.write_text(
        "\n".join(json.dumps(record, ensure_ascii=False) for record in [*records, *more]),
        encoding="utf-8",
    )
    return file


def _drafted(tiny, data, *names, base="base"):
    sources = [str(tiny / name) for name in names or ("a", "b")]
    draft = draft_search(sources, data, base=str(tiny / base) if base else None)
    return parse_yaml(SearchConfig, draft.text, SearchError), draft.text


def test_models_of_one_depth_are_merged(tiny, tmp_path):
    """A draft is a quick search for weights over slices that do not overlap, with comments for what
    comes after it."""
    data = _data(tmp_path, {"question": "w1 w2", "answer": 3}, count=1000)
    config, text = _drafted(tiny, data)
    assert (config.space, config.merge.groups) == ("ps", "rows")
    assert [(step.by, step.evaluations) for step in config.optimize] == [("gradient", 48)]
    assert "\noptimize: quick\n" in text
    assert [source.model for source in config.sources] == [str(tiny / "a"), str(tiny / "b")]
    assert config.base is not None
    assert config.compare.baselines == ("average", "prompt", "alone")
    assert "by itself, 2 times its cost; does the result need them all?" in text
    splits = [
        (spec.start, spec.count, spec.prompt_field, spec.shuffle_seed)
        for spec in config.data.values()
    ]
    assert splits == [(0, 128, "question", 0), (128, 200, "question", 0), (328, 400, "question", 0)]
    assert config.fitness.separator == " "
    after = text.split("# After the quick look")[1].replace("\n# ", "\n")
    assert "# task: generation" in text
    assert "merge: {groups: 2} # 2 x 2 weights" in after
    assert re.search(r"^optimize: \[{by: gradient, evaluations: 150}\] # ", after, re.MULTILINE)


def test_choices_are_chosen_from(tiny, tmp_path):
    """Records with choices make a search for the right one, by its log-probability, which also says
    how often it is right."""
    config, text = _drafted(
        tiny, _data(tmp_path, {"question": "w1", "choices": ["w2", "w3"], "answer": 1})
    )
    assert (config.fitness.task, config.fitness.unit) == ("multiple_choice", "nats per answer")
    assert [spec.choices for spec in config.data.values()] == ["choices"] * 3
    assert config.optimize[0].by == "cma"
    assert "gradient" not in text


def test_models_of_other_depths_and_without_a_base(tiny, tmp_path):
    """Where depths differ the search is for a path; without a base the merge is a mean, which
    begins at the average alone."""
    data = _data(tmp_path, {"prompt": "w1", "answer": "w2"})
    config, text = _drafted(tiny, data, "a", "deep")
    assert config.space == "dfs"
    assert "which are 2, 3, 2" in text
    draft = draft_search([str(tiny / name) for name in ("a", "deep")], data)
    assert re.match("2 models: a has 2 layers and .*M; deep has 3 layers and .*M", draft.found[0])
    assert "a path through their layers is searched (space: dfs)" in draft.found[1]
    assert "# path: {kind: gates, repetitions: 2}" in text
    assert config.compare.baselines == ("average", "prompt", "alone")
    config, text = _drafted(tiny, data, base=None)
    assert config.compare.baselines == ("average", "prompt")  # a mean of one model is that model
    assert (config.merge.method, config.merge.starts, config.optimize[0].by) == (
        "linear",
        ["average", "sources"],
        "gradient",
    )
    begin, _, after = text.partition(
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
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "_name_or_path": base}))


def test_the_base_is_found(tiny_copy, tmp_path):
    """Without --base the one is taken that cards and configs name; where they name none, several or
    one that will not do, this is said, and what it costs."""
    data = _data(tmp_path, {"prompt": "w1", "answer": "w2"})
    names = [str(tiny_copy / name) for name in ("a", "b")]

    def drafted():
        draft = draft_search(names, data)
        return parse_yaml(SearchConfig, draft.text, SearchError), "\n".join(draft.found)

    averaged = "weights are averaged (merge: {method: linear}); task vectors need --base"
    config, said = drafted()
    assert config.base is None
    assert f"warning: no base is known: {averaged}" in said
    base = str(tiny_copy / "base")
    _says(tiny_copy / "a", base)
    _says(tiny_copy / "b", base, card=False)
    config, said = drafted()
    assert (config.base, config.merge.method) == (SourceRef(model=base), "task_arithmetic")
    assert f"the base is the one that they name (a and b: {base})" in said
    for other, why in {
        str(tiny_copy / "deep"): f"a: {tiny_copy / 'deep'}; b: {base}",
        "no/such": f"a: no/such; b: {base}",
    }.items():
        _says(tiny_copy / "a", other)
        config, said = drafted()
        assert config.base is None
        assert f"warning: no base is known ({why}): {averaged}" in said
    _says(tiny_copy / "b", "no/such")
    assert "which will not do: no/such: no folder in " in drafted()[1]
    for name in ("a", "b"):
        _says(tiny_copy / name, str(tiny_copy / "deep"))
    assert "of 3 layers): weights" in drafted()[1]


def test_half_precision_is_for_gpus(tiny, tmp_path):
    """Models of half precision are scored in float32 on a processor, as the file says; on a GPU
    they stay what they are."""
    for name in ("a", "b"):
        file = shutil.copytree(tiny / name, tmp_path / name) / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "dtype": "bfloat16"}))
    data = _data(tmp_path, {"prompt": "w1 w2", "answer": "w3"})
    for device, dtype in {"cpu": "float32", "cuda": None}.items():
        text = draft_search([str(tmp_path / name) for name in ("a", "b")], data, device=device).text
        assert parse_yaml(SearchConfig, text, SearchError).output.dtype == dtype


def test_a_draft_is_ready_for_a_card(tiny, tmp_path):
    """The line that says what the model is for waits to be filled in; a gloss is taken where every
    record has one."""
    record = {"prompt": "w1 w2", "answer": "w3", "english": "one two"}
    config, text = _drafted(tiny, _data(tmp_path, record))
    assert [spec.gloss_field for spec in config.data.values()] == ["english"] * 2
    assert re.search("^# about: .*what the model is for", text, re.MULTILINE)
    told = re.sub("^# about: .*$", "about: Adds in Japanese.", text, flags=re.MULTILINE)
    assert parse_yaml(SearchConfig, told, SearchError).about == "Adds in Japanese."
    for line, message in {
        text[text.index("about:") :].split("\n")[0]: "about: still waits to be filled in",
        "about: a sentence: two": "mapping values are not allowed here.*; put a text with a colon in it in quotes",  # noqa: E501
        f"about: {'x' * 301}": "about: must have at most 300 characters",
    }.items():
        with pytest.raises(SearchError, match=message):
            parse_yaml(
                SearchConfig, re.sub("^# about: .*$", line, text, flags=re.MULTILINE), SearchError
            )
    config, _ = _drafted(tiny, _data(tmp_path, {"prompt": "w4", "answer": "w3"}, record))
    assert [spec.gloss_field for spec in config.data.values()] == [None] * 2


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
def test_the_separator_is_guessed_from_the_writing(tiny, tmp_path, record, separator):
    """Without a measurement: a space where words have spaces between them, and neither prompt nor
    answer has it."""
    file = tmp_path / "problems.jsonl"
    records = ({**record, "prompt": f"{number} {record['prompt']}"} for number in range(8))
    file.write_text("\n".join(map(json.dumps, records)))
    config, _ = _drafted(tiny, file)
    assert config.fitness.separator == separator


def test_chat_templates_are_used_where_all_have_one(tiny_copy, tmp_path):
    """With a template in every model the prompts are messages and no separator is written; with one
    in some it is remarked."""
    data = _data(tmp_path, {"instruction": "w1", "input": "w2", "output": "w " * 200})
    (tiny_copy / "a" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    config, text = _drafted(tiny_copy, data)
    assert not any(spec.chat for spec in config.data.values())
    assert "if all models have one" in text
    for name in ("b", "base"):
        (tiny_copy / name / "chat_template.jinja").write_text("{{ messages[0].content }}")
    config, _ = _drafted(tiny_copy, data)
    assert all(
        spec.chat and spec.template == "{instruction}\n{input}" for spec in config.data.values()
    )
    assert (config.fitness.separator, config.fitness.normalize) == ("", "token")


@pytest.fixture
def tiny_copy(tiny, tmp_path):
    """Models that a test may change."""
    return shutil.copytree(tiny, tmp_path / "tiny")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"prompt": "a", "answer": "b"}] * 3, "3 records; a search needs 8 at least"),
        (
            [{"prompt": "a", "answer": "b"}] * 9,
            "1 prompts occur more than once, such as 'a'; keep one of each",
        ),
        ([{"messages": []}] * 9, "messages holds whole chats; write each problem as"),
        (
            [{"prompt": "a", "reply": "b"}] * 9,
            "none of the fields prompt, reply looks like the answer; call it answer",
        ),
        ([{"words": "a"}] * 9, "none of the fields words looks like the prompt"),
    ],
)
def test_data_that_does_not_do(tiny, tmp_path, records, message):
    """Too few records, repeated prompts, chats and unknown fields are one line that says what to
    do."""
    file = tmp_path / "problems.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(FitnessError) as caught:
        draft_search([str(tiny / "a"), str(tiny / "b")], file)
    assert message in str(caught.value)


def test_the_command_replaces_no_file_unasked(tiny, tmp_path, monkeypatch):
    """The file is written once, names with spaces are quoted, and one source is refused."""
    monkeypatch.chdir(tmp_path)
    data = _data(tmp_path, {"prompt": "w1", "answer": "w2"})
    words = [
        "init",
        str(tiny / "a"),
        str(tiny / "b"),
        "--base",
        str(tiny / "base"),
        "--data",
        data.name,
    ]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert (
        "81 problems in my problems.jsonl: 40 for search, 41 for test\neach search" in done.stdout
    )
    assert "hf-evomerge search search.yaml --out my-search --dry-run" in done.stdout
    assert SearchConfig.load("search.yaml").data["search"].jsonl == data.name
    assert CliRunner().invoke(cli.app, [*words, "--out", "new/search.yaml"]).exit_code == 0
    again = CliRunner().invoke(cli.app, words)
    assert (again.exit_code, again.stderr.count("exists already")) == (1, 1)
    alone = CliRunner().invoke(
        cli.app, ["init", str(tiny / "a"), "--data", data.name, "--out", "other.yaml"]
    )
    assert "give the names of two fine-tunes of one model" in alone.stderr


@pytest.mark.parametrize(
    ("count", "choices", "sizes"),
    [
        (8, None, [4, 4]),
        (24, None, [16, 8]),
        (214, None, [107, 107]),
        (400, None, [128, 72, 200]),
        (2000, None, [128, 200, 400]),
        (214, ["w2", "w3"], [64, 64, 86]),
    ],
)
def test_how_problems_are_split(count, choices, sizes, tiny, tmp_path):
    """With a gradient half are searched with, and validation has what a test of 200 leaves; without
    one it has as many as the search. The splits do not overlap, and what was chosen is said."""
    record = {"question": "w1 w2", "answer": "w2"} | ({"choices": choices} if choices else {})
    data = _data(tmp_path, record, count=count - 1)
    config, _ = _drafted(tiny, data)
    assert [spec.count for spec in config.data.values()] == sizes
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    assert [spec.start for spec in config.data.values()] == starts
    found = draft_search([str(tiny / name) for name in ("a", "b")], data).found
    why = next(line for line in found if "the test tells an accuracy" in line)
    more = "more search examples may help (count)"
    assert why.startswith(more if sizes[0] == 128 else "each search example helps;")
    error = 0.5 / sizes[-1] ** 0.5
    assert f"the test tells an accuracy to ± {error:.2f}; " in why
    assert ("validation guards against luck" in why) == (len(sizes) == 3)


def test_adapters_are_sources(tiny, tmp_path):
    """An adapter of the base that is given, by its folder; and one named with its base."""
    lora = str(save_adapter(tiny / "base", tmp_path / "lora", 0))
    data = _data(tmp_path, {"question": "w1 w2", "answer": 3})
    draft = draft_search(
        [lora, f"{tiny / 'a'}+{lora}", str(tiny / "b")], data, base=str(tiny / "base")
    )
    sources = parse_yaml(SearchConfig, draft.text, SearchError).sources
    assert [(source.model, source.adapter) for source in sources] == [
        (str(tiny / "base"), lora),
        (str(tiny / "a"), lora),
        (str(tiny / "b"), None),
    ]


def test_a_folder_of_adapters(tiny, tmp_path):
    """A folder of adapters stands for all of them, and the base is the one that they name."""
    for seed, name in enumerate(("b", "a", "c")):
        save_adapter(tiny / "base", tmp_path / "loras" / name, seed)
    draft = draft_search(
        [str(tmp_path / "loras")], _data(tmp_path, {"question": "w1 w2", "answer": 3})
    )
    config = parse_yaml(SearchConfig, draft.text, SearchError)
    base = str(tiny / "base")
    assert config.base == SourceRef(model=base)
    assert [(source.model, source.adapter) for source in config.sources] == [
        (base, str(tmp_path / "loras" / name)) for name in "abc"
    ]
    assert config.merge.method == "task_arithmetic"


def test_worked_solutions_are_scored_by_their_result(tiny, tmp_path):
    """Where every answer has its result after the mark of GSM8K, that is the answer, and the
    settings are explained."""
    config, text = _drafted(
        tiny, _data(tmp_path, {"question": "w1 w2", "answer": "w3 w4\n#### 43"})
    )
    assert [spec.answer_after for spec in config.data.values()] == ["####"] * 2
    assert "# task: generation" in text
    for key in ("answer_after", "prompt_field", "shuffle_seed", "start", "count", "max_new_tokens"):
        assert re.search(f"# .*{key}\\b", text), key


def _bert(folder, seed, *labels):
    """A tiny classifier of these labels, or without any a masked language model; returns its
    folder."""
    named = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    model = (
        random_class("bert", seed, **named)
        if labels
        else BertForMaskedLM(BertConfig(**CLASSES["bert"][1]))
    )
    model.save_pretrained(folder)
    tokenizer(vocabulary=WORDS[:32]).save_pretrained(folder)
    return str(folder)


def test_the_task_follows_the_class(tmp_path):
    """Classifiers are scored by labels, masked language models by what is near; no search scores
    these by likelihood."""
    names = [_bert(tmp_path / name, seed, "red", "blue") for seed, name in enumerate(("a", "b"))]
    data = _data(tmp_path, {"prompt": "w1 w2", "answer": "red"}, {"prompt": "w3", "answer": "blue"})
    draft = draft_search(names, data)
    config = parse_yaml(SearchConfig, draft.text, SearchError)
    assert config.fitness.task == "classification"
    assert config.sources[0].component is None
    encoders = [_bert(tmp_path / name, seed) for seed, name in enumerate(("c", "d"))]
    config = parse_yaml(SearchConfig, draft_search(encoders, data).text, SearchError)
    assert config.fitness.task == "retrieval"
    settings = config.model_dump(exclude_unset=True) | {"fitness": {"task": "likelihood"}}
    with pytest.raises(
        SourceError,
        match=r"c: BertForMaskedLM \(model type 'bert'\) is no model that the task likelihood",
    ):
        plan_search(validate(SearchConfig, settings, SearchError))


def test_other_labels_are_for_a_file_by_hand(tmp_path):
    """Classifiers of other labels each need a head for each example: init says what to write."""
    names = [_bert(tmp_path / "a", 0, "red", "blue"), _bert(tmp_path / "b", 1, "dark", "light")]
    data = _data(tmp_path, {"prompt": "w1", "answer": "dark"})
    with pytest.raises(FitnessError, match="other labels each; write the search file by hand"):
        draft_search(names, data)


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
    names = [_bert(tmp_path / name, seed, "LABEL_0") for seed, name in enumerate(("a", "b"))]
    records = [
        {**record, next(name for name in record if name in template): f"w{n} w4"} for n in range(12)
    ]
    draft = draft_search(names, _data(tmp_path, *records, count=0))
    config = parse_yaml(SearchConfig, draft.text, SearchError)
    assert (config.fitness.task, config.fitness.pair_separator) == ("classification", "\t")
    label = next(name for name in ("label", "score") if name in record)
    assert [(spec.template, spec.answer_field) for spec in config.data.values()] == [
        (template, label)
    ] * 2
    assert plan_search(config).phases
    evaluator = Evaluator(config)
    scores = evaluator.evaluate(config.sources[0])
    assert (scores.error, len(scores.values)) == (None, 6)
    with pytest.raises(FitnessError, match=r"the model has no label '8\.3'; it has 0, 1"):
        draft_search(names, _data(tmp_path, *({**each, label: 8.3} for each in records), count=0))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_one_source_without_a_head_is_named(order, tmp_path):
    """Beside classifiers, wherever it stands; the message says what to do."""
    labelled = [_bert(tmp_path / name, seed, "red", "blue") for seed, name in enumerate(("a", "b"))]
    names = [*labelled, _bert(tmp_path / "plain", 2)]
    data = _data(tmp_path, {"prompt": "w1 w2", "answer": "red"})
    with pytest.raises(
        SearchError, match=r"plain: BertForMaskedLM has no head, .* give it as the base"
    ):
        draft_search([names[at] for at in order], data)


def test_a_revision_is_written():
    """`NAME@REVISION` is a commit of a repository, in the file as well."""
    assert _named("you/model@v2+you/lora@main", None) == SourceRef(
        model="you/model", revision="v2", adapter="you/lora", adapter_revision="main"
    )


def _skill(folder, name, count):
    file = folder / f"{name}.jsonl"
    lines = (f'{{"prompt": "{name} w{i}", "answer": "w{i}"}}' for i in range(count))
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_one_file_for_each_skill(tiny, tmp_path):
    """Every split has some of each skill, and a skill's weight is 1 over the gap that was
    measured."""
    files = [_skill(tmp_path, "sums", 80), _skill(tmp_path, "letters", 600)]
    names = [str(tiny / name) for name in ("a", "b")]
    gaps = {"sums": 8.0, "letters": 0.5}
    draft = draft_search(
        names,
        files,
        base=str(tiny / "base"),
        measure=lambda config: (AnswerForm("", chat=False), gaps, []),
    )
    config = parse_yaml(SearchConfig, draft.text, SearchError)
    assert list(config.data) == ["search", "test"]  # sums has none for validation to spare
    for split, spec in config.data.items():
        assert [each.weight for each in spec.sources.values()] == [0.125, 2.0], split
    examples = Evaluator(config).tasks.examples("search")
    assert {(each.source, each.weight) for each in examples} == {("sums", 0.125), ("letters", 2.0)}
    prompts = [
        each.prompt for split in config.data for each in Evaluator(config).tasks.examples(split)
    ]
    assert len(prompts) == len(set(prompts))


def test_init_takes_a_file_for_each_skill(tiny, tmp_path, monkeypatch):
    """Files behind --data are data, whether the option is repeated or not."""
    monkeypatch.chdir(tmp_path)
    for name in ("sums", "letters"):
        _skill(tmp_path, name, 40)
    models = [str(tiny / name) for name in ("a", "b")]
    words = ["init", *models, "--no-measure", "--data", "sums.jsonl"]
    for number, more in enumerate((["letters.jsonl"], ["--data", "letters.jsonl"])):
        done = CliRunner().invoke(cli.app, [*words, *more, "--out", f"{number}.yaml"])
        assert done.exit_code == 0, done.output
        assert list(SearchConfig.load(f"{number}.yaml").data["search"].sources) == [
            "sums",
            "letters",
        ]

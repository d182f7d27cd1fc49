"""The form of the answers, measured on models that have learnt one: what `init` writes, and what a
dry run warns of."""

import random
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import invoke
from form_pairs import RECORDS, TEMPLATE, TOKENIZERS, make_pair, measured
from refusals import refused
from searches import write_lines
from slowly import slow_beyond
from transformers import LlamaForCausalLM

from hf_evomerge import Scores, SearchConfig, plan_search
from hf_evomerge.errors import FitnessError, SearchError
from hf_evomerge.recipes.strict_yaml import parse_yaml
from hf_evomerge.search import answer_form
from hf_evomerge.search.answer_form import ModelScores, _gaps, _likeliest
from hf_evomerge.search.file.scaffold import AnswerForm, draft_search


@pytest.fixture
def trained(tmp_path):
    """Makes two models that have learnt problems and answers in one form, and a file of these
    problems; returns names."""
    return partial(make_pair, tmp_path)


@pytest.mark.parametrize("separator", ["", " "])
@pytest.mark.parametrize("kind", slow_beyond(["characters", "byte pairs"], TOKENIZERS))
def test_the_form_that_the_models_know_is_written(kind, separator, trained, tmp_path):
    """Whatever the tokenizer: the separator that the models have learnt; where it is no token, the
    usual one."""
    names = trained(separator, kind)
    config, lines = measured(names, tmp_path / "problems.jsonl")
    if kind == "word pieces":
        assert (config.fitness.separator, lines) == (" ", [])
        return
    assert config.fitness.separator == separator
    (line,) = lines
    said = f'over all models right answers are likeliest with separator: "{separator}": -'
    worse = {"", " ", r"\n"} - {separator}
    assert line.startswith(said)
    assert set(re.findall('nats by (?:upper|twice) with separator: "(.*?)"', line)) == worse


def test_a_new_line_before_the_answers_is_measured(trained, tmp_path):
    """Models that write their answers on a line of their own are asked so."""
    config, (line,) = measured(trained("\n", "byte pairs"), tmp_path / "problems.jsonl")
    assert config.fitness.separator == "\n"
    assert line.startswith(r'over all models right answers are likeliest with separator: "\n": -')


@pytest.mark.parametrize("chat", [True, False])
def test_the_chat_template_is_measured(chat, trained, tmp_path):
    """A template that every tokenizer has is written only where the models know the answers in it
    better."""
    names = trained(" ", template=TEMPLATE, chat=chat)
    config, lines = measured(names, tmp_path / "problems.jsonl")
    assert (config.data["search"].chat, config.fitness.separator) == (chat, " ")
    form = f'separator: " ", chat: {str(chat).lower()}'
    assert lines[0].startswith(f"over all models right answers are likeliest with {form}: -")


@pytest.mark.parametrize(("spaced", "separator"), [(len(RECORDS), ""), (1, " ")])
def test_answers_that_begin_with_a_space_get_no_second_one(spaced, separator, trained, tmp_path):
    """Completions as trl has them are not set apart again, with models to measure and without; one
    among many decides nothing."""
    names = trained(" ")
    records = [{**each, "answer": f" {each['answer']}"} for each in RECORDS[:spaced]]
    data = write_lines(tmp_path / "spaced.jsonl", *records, *RECORDS[spaced:])
    guess = parse_yaml(SearchConfig, draft_search(names, data).text, SearchError)
    for config in (measured(names, data)[0], guess):
        assert config.fitness.separator == separator


def test_a_dry_run_warns_of_the_wrong_form(trained, tmp_path):
    """A file that says otherwise than the figures is told so, with both; the right one is not."""
    names = trained("", template=TEMPLATE)
    config, _ = measured(names, tmp_path / "problems.jsonl")
    spaced = config.model_copy(
        update={"fitness": config.fitness.model_copy(update={"separator": " "})}
    )
    chats = {split: spec.model_copy(update={"chat": True}) for split, spec in config.data.items()}
    for search, form in (
        (spaced, 'separator: " ", chat: false'),
        (config.model_copy(update={"data": chats}), 'separator: "", chat: true'),
    ):
        (line,) = (line for line in plan_search(search).warnings if "separator" in line)
        right = 'separator: "", chat: false'
        assert line.startswith(f"right answers are likelier with {right}: -")
        assert line.endswith(f"with {form}; write {right}")
    assert not any("separator" in line for line in plan_search(config).warnings)


def test_a_template_that_fails_is_not_taken(trained, tmp_path):
    """`init` writes no chat template that no model can render, and a dry run says what to write in
    place of it."""
    broken = "{{ raise_exception('two messages, at least') }}"
    config, lines = measured(trained("", template=broken), tmp_path / "problems.jsonl")
    assert not config.data["search"].chat
    assert not any("guess" in line for line in lines)
    chats = {split: spec.model_copy(update={"chat": True}) for split, spec in config.data.items()}
    template = r"the template of .*upper refuses .*: two messages, at least"
    with refused(FitnessError, rf"data.chat: set 'chat: false'; {template}"):
        plan_search(config.model_copy(update={"data": chats}))


def test_a_search_that_cannot_work_does_not_end_in_a_push(trained, tmp_path, monkeypatch):
    """Where no answer is right, dry run and search say so before the search begins, and the next
    step is to look at the answers. Where nothing speaks against it, it is to publish."""
    names = [Path(name).name for name in trained("", "characters")]
    monkeypatch.chdir(tmp_path)
    letters = random.Random(0)
    records = ({**each, "answer": "".join(letters.choices("abcdpqrs", k=8))} for each in RECORDS)
    config, _ = measured(names, write_lines(Path("wrong.jsonl"), *records))
    config.save("search.yaml")
    nothing = "search examples no model answers one right"
    assert any(nothing in line for line in plan_search(config).warnings)
    done = invoke("search", "search.yaml", "--out", "study", "--workers", "0")
    assert done.exit_code == 0, done.output
    assert nothing in done.stderr
    assert "look at what it answers" in done.stderr
    assert done.stdout.endswith("next:   hf-evomerge eval study --show 3\n")


def test_choices_are_measured_too(trained, tmp_path):
    """What stands before a choice is measured as what stands before an answer."""
    names = trained("")
    records = ({**each, "choices": [each["answer"], each["prompt"]]} for each in RECORDS)
    config, _ = measured(names, write_lines(tmp_path / "choices.jsonl", *records))
    assert (config.fitness.task, config.fitness.separator) == ("multiple_choice", "")


def test_a_form_that_cannot_be_measured_is_a_guess(trained, tmp_path, monkeypatch, caplog):
    """Models that do not fit or cannot be scored leave a guess and a line that says why; a large
    one is announced."""
    names = trained("")
    data = tmp_path / "problems.jsonl"
    monkeypatch.setattr(answer_form, "_LARGE", 1.0)
    caplog.set_level("INFO")
    assert measured(names, data)[0].fitness.separator == ""
    assert "`--no-measure` guesses what" in caplog.text
    monkeypatch.setattr(answer_form, "device_memory", lambda device: 9.0)
    config, (line,) = measured(names, data)
    assert config.fitness.separator == " "
    assert line.startswith('warning: separator: " " is a guess (the largest model takes ')
    monkeypatch.undo()
    for name in names:
        weights = LlamaForCausalLM.from_pretrained(name)
        torch.nn.init.constant_(weights.model.norm.weight, float("nan"))
        weights.save_pretrained(name)
    config, (line,) = measured(names, data)
    assert config.fitness.separator == " "
    assert 'warning: separator: " " is a guess (no model can be evaluated: ' in line


def test_the_command_measures_unless_told_not_to(trained, tmp_path, monkeypatch):
    """`init` says the figures on the screen; with --no-measure it reads no weights."""
    names = [Path(name).name for name in trained("")]
    monkeypatch.chdir(tmp_path)
    words = ["init", *names, "--data", "problems.jsonl"]
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    assert "right answers are likeliest" in done.stdout
    assert SearchConfig.load("search.yaml").fitness.separator == ""
    for name in names:
        (tmp_path / name / "model.safetensors").rename(tmp_path / name / "weights.safetensors")
    guessed = invoke(*words, "--no-measure", "--out", "guessed.yaml")
    assert guessed.exit_code == 0, guessed.output
    assert SearchConfig.load("guessed.yaml").fitness.separator == " "


@pytest.mark.parametrize(
    ("with_space", "without", "separator"),
    [
        # nobody knows the answers: one model is a little surer without, another far surer with
        ((-156.4, -58.8, -152.5), (-156.7, -57.6, -165.7), " "),
        # one model knows them, and the others are noise
        ((-150.0, -0.2, -160.0), (-110.0, -12.0, -120.0), " "),
        ((-150.0, -12.0, -160.0), (-160.0, -0.2, -170.0), ""),
    ],
)
def test_every_model_has_a_say(with_space, without, separator):
    """Forms are compared by the geometric mean of all models' nats."""
    forms = {
        AnswerForm(form, False): [ModelScores("", "", Scores([mean])) for mean in means]
        for form, means in (("", without), (" ", with_space))
    }
    assert _likeliest(forms).separator == separator


def test_gaps_of_skills(caplog):
    """A skill's gap is what the best model has more than the base; one that nobody knows has
    none."""
    skills = ["a", "a", "b", "b"]
    models = [
        ModelScores("base", "base", Scores([-9.0, -7.0, -3.0, -3.0])),
        ModelScores("source:0", "first", Scores([-1.0, -1.0, -4.0, -3.0])),
        ModelScores("source:1", "second", Scores([-20.0, -20.0, -3.0, -3.1])),
    ]
    gaps, said = _gaps(models, skills)
    assert gaps == {"a": 7.0}
    assert said == ["warning: no model knows more of b than the base; its weight is 1"]
    assert _gaps(models, ["", "", "", ""]) == ({}, [])
    assert _gaps(models[1:], skills)[0]["a"] == 19.0

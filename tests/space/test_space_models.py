"""The models behind the Space: answers are transformers' own, bounded, stoppable, and nothing
foreign is run."""

import copy
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import edits
import loading
import models
import pytest
import showcase
import torch
import views
from classes import edit_json
from edits import Route
from models import EVOLVED, AnswerJob, Host
from published import PublishedParent
from reading import read
from recipes import merge_of
from refusals import refused
from served import greedy
from showcase import Showcase
from texts import SpaceError, escape
from tiny_adapters import save_adapter
from transformers import AutoModelForCausalLM, StoppingCriteriaList

from hf_evomerge import build_model
from hf_evomerge.record import Data

PROMPT = "t0 w3 w4 5"


def _host(folder, **changes):
    host = Host(replace(read(str(folder)), **changes))
    host.load()
    return host


def _ask(host, key=EVOLVED, tokens=8, *more, prompt=PROMPT, **named):
    """The whole answer of a model."""
    return host.whole_answer(AnswerJob(key, prompt, tokens, *more, **named))


def _slowly(patch, owner, name, seconds):
    """Let a function take its time."""
    plain = getattr(owner, name)

    def slow(*arguments, **named):
        time.sleep(seconds)
        return plain(*arguments, **named)

    patch.setattr(owner, name, slow)


@pytest.fixture(scope="module")
def host(dfs):
    """The model with a path, loaded."""
    return _host(dfs)


def test_an_answer_is_what_transformers_generates(host, dfs):
    """The streamed pieces grow into transformers' own greedy answer, with the number of its
    tokens."""
    *pieces, last = host.answer(AnswerJob(EVOLVED, PROMPT, 8))
    texts = [piece.text for piece in pieces if piece.state == "writing"]
    assert (last.state, last.text) == ("done", greedy(dfs, PROMPT))
    assert last.tokens <= 8
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_a_path_through_absent_layers_is_explained(host):
    """A layer that the checkpoint lacks gives one line, and the next answer is right again."""
    with refused(SpaceError, "path does not work"):
        _ask(host, EVOLVED, 8, ("0:99",), (1.0,))
    assert _ask(host).state == "done"


def test_parents_are_loaded_only_when_asked(dfs, tiny):
    """No parent is in memory until it is asked; then it answers as itself."""
    host = _host(dfs)
    assert not host._parents
    assert _ask(host, "a").text == greedy(tiny / "a", PROMPT)
    assert list(host._parents) == ["a"]
    with refused(SpaceError, "no model 'zzz'"):
        _ask(host, "zzz")


def test_an_adapter_and_its_parents_share_the_base(tiny, tmp_path, monkeypatch):
    """The merged adapter, each parent and the base answer as themselves, in any order, with one
    model in memory."""
    base = {"model": str(tiny / "base")}
    sources = [
        {**base, "adapter": str(save_adapter(tiny / "base", tmp_path / name, seed))}
        for seed, name in enumerate("xy")
    ]
    recipe = merge_of(*sources, method="task_arithmetic", base=base)
    host = _host(build_model(recipe, tmp_path / "out"))
    wholes = {EVOLVED: build_model(recipe, tmp_path / "whole", whole=True), "base": tiny / "base"}
    for name, source in zip("xy", sources, strict=True):
        whole = build_model(merge_of(source), tmp_path / f"whole-{name}", whole=True)
        wholes[f"base+{name}"] = whole
    monkeypatch.setattr(loading, "load", None)
    assert [parent.label for parent in host.published.parents] == ["base+x", "base+y", "base"]
    answers = {key: greedy(folder, PROMPT) for key, folder in wholes.items()}
    assert len(set(answers.values())) == 4
    for key in [*answers, *reversed(answers)]:
        assert _ask(host, key).text == answers[key], key


def test_answers_end_at_the_bounds(host, monkeypatch):
    """Tokens are bounded by what was asked, by the model's positions and by the Space; time by the
    host."""
    endless = Host(host.published)
    endless.max_seconds = 0.0
    endless.load()
    endless.evolved.model.generation_config.eos_token_id = None
    endless.evolved.tokenizer.eos_token = None
    with refused(SpaceError, "Reading the prompt took longer than 0 s"):
        _ask(endless, EVOLVED, 40)
    endless.max_seconds = 1.0
    with monkeypatch.context() as patched:
        _slowly(patched, StoppingCriteriaList, "__call__", 0.1)
        assert 0 < _ask(endless, EVOLVED, 40).tokens < 12
    endless.max_seconds = 60.0
    assert _ask(endless, EVOLVED, 3).tokens == 3
    assert _ask(endless, EVOLVED, 10**9).tokens == 48 - 4  # the positions less the prompt


def test_a_prompt_longer_than_a_space_takes_is_explained(host):
    """However many positions a model has."""
    with refused(SpaceError, "2,500 tokens; here it may have 2,048"):
        _ask(host, prompt="w1 " * 2500)


def test_a_stop_ends_the_answer_and_frees_the_model(host):
    """After a stop the answer ends as stopped, and the next visitor is served."""
    asked = iter((False, True))
    *_, last = host.answer(AnswerJob(EVOLVED, PROMPT, 40), lambda: next(asked, True))
    assert last.state == "stopped"
    assert _ask(host, EVOLVED, 4).state == "done"


def test_a_stop_counts_while_the_prompt_is_read(host, monkeypatch):
    """The first pass over a long path ends between two layers, not with the last of them."""
    layer = next(iter(host.evolved.model.get_decoder().layers))
    _slowly(monkeypatch, type(layer), "forward", 0.3)
    hops = host.published.path * (300 // len(host.published.path))
    job = AnswerJob(EVOLVED, PROMPT, 4, hops, (1.0,) * len(hops))
    begin = time.monotonic()
    *_, last = host.answer(job, lambda: time.monotonic() - begin > 0.5)
    assert (last.state, last.tokens) == ("stopped", 0)
    assert host._pass.acquire(timeout=30), "300 layers would take 90 seconds"
    host._pass.release()


def test_one_pass_at_a_time(host, monkeypatch):
    """However many ask at once, the model runs one answer at a time and each gets their own."""
    inside = []
    most = []
    plain = models._write

    def counted(*arguments, **named):
        inside.append(1)
        most.append(len(inside))
        begun = plain(*arguments, **named)
        inside.pop()
        return begun

    prompts = [f"w{k} w{k + 1} {k}" for k in range(8)]
    wanted = [_ask(host, prompt=prompt).text for prompt in prompts]
    monkeypatch.setattr(models, "_write", counted)
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda prompt: _ask(host, prompt=prompt).text, prompts)
        assert list(answers) == wanted
    assert most == [1] * 8


def test_too_little_memory_is_explained(dfs, monkeypatch):
    """A model that does not fit says how much it needs; a parent makes room for another before
    that."""
    host = _host(dfs)
    _ask(host, "a")
    monkeypatch.setattr(loading, "free_memory", lambda: 0.0 if host._parents else 1e12)
    _ask(host, "b")
    assert list(host._parents) == ["b"]
    monkeypatch.setattr(loading, "free_memory", lambda: 0.0)
    with refused(SpaceError, "GB of memory"):
        _ask(host, "a")
    assert "GB of memory" in _host(dfs).error


def test_a_model_without_safetensors_is_refused(broken, dfs):
    """Weights in other formats are not opened: the page says so, and whoever asks is told."""
    folder = broken()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    host = _host(folder)
    assert "no .safetensors file (only pytorch_model.bin, a pickle" in host.error
    with refused(SpaceError, r"no \.safetensors file"):
        _ask(host)
    state = AutoModelForCausalLM.from_pretrained(dfs).state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model-decoy.safetensors").write_bytes(b"x")
    assert "not a safetensors file, or damaged" in _host(folder).error


def test_no_code_of_a_parent_is_run(dfs, tiny, tmp_path):
    """A parent that brings its own code is refused in one line, and its code does not run."""
    evil = shutil.copytree(tiny / "a", tmp_path / "evil")
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit_json(evil / "config.json", model_type="evil", auto_map=code)
    (evil / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nConfig = Model = None\n")
    host = _host(dfs, parents=(PublishedParent("evil", str(evil)),))
    with refused(SpaceError, "evil cannot be loaded"):
        _ask(host, "evil")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("data", "text", "special"),
    [
        (Data(chat=False), "w1", True),
        (Data(chat=True, system="w2"), "s w2 u w1 w9", False),
        (None, "u w1 w9", False),
    ],
)
def test_a_chat_template_is_used_unless_the_search_did_without(host, data, text, special):
    """With a template the prompt is a chat, without special tokens of the tokenizer's own."""
    tokenizer = copy.deepcopy(host.evolved.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}w9"
    )
    ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    assert models.encode("w1", replace(host.evolved, tokenizer=tokenizer), data).ids == ids


@pytest.fixture(scope="module")
def show(dfs):
    """The model with a path, on show."""
    show = Showcase(str(dfs))
    show.load()
    return show


def test_answers_are_there_before_anybody_asks(show, dfs, tiny):
    """Every model answers the first examples when the page starts; what is on record is taken as it
    is."""
    prompt = show.published.examples[0].prompt
    cards = show.in_advance(prompt)
    folders = {"the merge": dfs, **{name: tiny / name for name in ("a", "b", "base")}}
    texts = {name: greedy(folder, prompt, 64) for name, folder in folders.items()}
    assert {card.name: card.text for card in cards} == texts
    roles = ["evolved", "parent", "parent", ""]  # a base called base is so once
    assert [card.role for card in cards] == roles
    assert {card.state for card in cards} == {"known"}
    assert cards[0].right
    others = show.in_advance("another prompt")
    assert {card.state for card in others} == {"unasked"}
    assert cards[0].solved is not None
    assert cards[0].solved == others[0].solved
    *_, answers = show.ask(prompt, ["b"], 64, "me")
    states = [card.state for card in answers]
    assert states == ["done", "unasked", "done", "unasked"], "the comparison stays"


def test_the_first_edit_to_try_changes_the_answer(show):
    """The page offers first an edit after which the example that is shown is no longer solved."""
    prompt = show.published.examples[0].prompt
    assert show.verdict((prompt, ()), show.in_advance(prompt)[0].text)
    telling = show.telling
    piece = show.host.whole_answer(AnswerJob(EVOLVED, prompt, 64, telling.hops, telling.scales))
    assert not show.verdict((prompt, ()), piece.text)
    said = views.dare(show.published, telling)
    first, other = (escape(way.link) for way in (telling, edits.ideas(show.published)[0]))
    assert said.index(first) < said.index(other)


def test_a_changed_model_is_scored_as_the_search_scores(dfs, show, monkeypatch):
    """The examples are judged by the search's own task: as each answer by itself is, for the
    published and a changed path."""
    monkeypatch.setattr(showcase, "_AT_ONCE", 2)
    own = Route.of(show.published)
    examples = show.published.examples

    def right(way):
        ran = (64, list(way.hops), list(way.scales))
        return [show.published.judge(greedy(dfs, each.prompt, *ran), each) for each in examples]

    wanted = right(own)
    changed = right(own.drop())
    assert wanted[0]
    scored = list(show.score(own.drop(), "me"))
    assert scored == [(done, sum(changed[:done]), sum(wanted[:done])) for done in (2, 3)]

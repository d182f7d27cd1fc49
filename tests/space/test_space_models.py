"""The models behind the Space: answers are transformers' own, bounded, stoppable, and nothing
foreign is run."""

import copy
import json
import shutil
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import loading
import mixing
import models
import pytest
import showcase
import torch
import views
from edits import Route, changed_recipe
from models import EVOLVED, AnswerJob, Host
from reading import read
from recipes import merge_of
from served import greedy
from showcase import Edit, Showcase
from texts import SpaceError, escape
from tiny_adapters import save_adapter
from transformers import AutoModelForCausalLM, StoppingCriteriaList

from hf_evomerge.building.build import build_model
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.record import Data

PROMPT = "t0 w3 w4 5"


def _host(folder, **changes):
    host = Host(replace(read(str(folder)), **changes))
    host.load()
    return host


@pytest.fixture(scope="module")
def host(dfs):
    """The model with a path, loaded."""
    return _host(dfs)


def test_an_answer_is_what_transformers_generates(host, dfs):
    """The streamed pieces grow into transformers' own greedy answer, with the number of its
    tokens."""
    pieces = list(host.answer(AnswerJob(EVOLVED, PROMPT, 8)))
    texts = [piece.text for piece in pieces if piece.state == "writing"]
    assert pieces[-1].state == "done"
    assert pieces[-1].text == greedy(dfs, PROMPT)
    assert pieces[-1].tokens <= 8
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_a_changed_path_is_what_with_path_generates(host, dfs):
    """Another path gives the answer of the same model with that path, and leaves the published one
    as it was."""
    before = host.whole_answer(AnswerJob(EVOLVED, PROMPT, 8)).text
    layers = list(dict.fromkeys(host.published.path))
    path = [*layers, *reversed(layers)]
    scales = [0.5 + k / 4 for k in range(2 * len(layers))]
    changed = host.whole_answer(AnswerJob(EVOLVED, PROMPT, 8, tuple(path), tuple(scales))).text
    assert changed == greedy(dfs, PROMPT, path=path, scales=scales)
    assert host.whole_answer(AnswerJob(EVOLVED, PROMPT, 8)).text == before


def test_a_path_through_absent_layers_is_explained(host):
    """A layer that the checkpoint lacks gives one line, and the next answer is right again."""
    with pytest.raises(SpaceError, match="path does not work"):
        host.whole_answer(AnswerJob(EVOLVED, PROMPT, 8, ("0:99",), (1.0,)))
    assert host.whole_answer(AnswerJob(EVOLVED, PROMPT, 8)).state == "done"


def test_parents_are_loaded_only_when_asked(dfs, tiny):
    """No parent is in memory until it is asked; then it answers as itself."""
    host = _host(dfs)
    assert not host._parents
    assert host.whole_answer(AnswerJob("a", PROMPT, 8)).text == greedy(tiny / "a", PROMPT)
    assert list(host._parents) == ["a"]
    with pytest.raises(SpaceError, match="no model 'zzz'"):
        host.whole_answer(AnswerJob("zzz", PROMPT, 8))


def test_an_adapter_and_its_parents_share_the_base(tiny, tmp_path, monkeypatch):
    """The merged adapter, each parent and the base answer as themselves, in any order, with one
    model in memory."""
    wholes = {}
    base = {"model": str(tiny / "base")}
    sources = [
        {**base, "adapter": str(save_adapter(tiny / "base", tmp_path / name, seed))}
        for seed, name in enumerate("xy")
    ]
    recipe = merge_of(*sources, method="task_arithmetic", base=base)
    published = build_model(recipe, tmp_path / "out")
    wholes[EVOLVED] = build_model(recipe, tmp_path / "whole", whole=True)
    for name, source in zip("xy", recipe.sources, strict=True):
        alone = merge_of(source.model_dump(exclude_none=True))
        wholes[f"base+{name}"] = build_model(alone, tmp_path / f"whole-{name}", whole=True)
    wholes["base"] = tiny / "base"
    host = _host(published)
    monkeypatch.setattr(loading, "load", None)
    assert [parent.label for parent in host.published.parents] == ["base+x", "base+y", "base"]
    assert host.published.mixes == 0
    answers = {key: greedy(folder, PROMPT) for key, folder in wholes.items()}
    assert len(set(answers.values())) == 4
    for key in [*answers, *reversed(answers)]:
        assert host.whole_answer(AnswerJob(key, PROMPT, 8)).text == answers[key], key


def test_answers_end_at_the_bounds(host, monkeypatch):
    """Tokens are bounded by what was asked, by the model's positions and by the Space; time by the
    host."""
    plain = StoppingCriteriaList.__call__

    def slow(self, *arguments, **named):
        time.sleep(0.1)
        return plain(self, *arguments, **named)

    endless = Host(host.published)
    endless.max_seconds = 0.0
    endless.load()
    endless.evolved.model.generation_config.eos_token_id = None
    endless.evolved.tokenizer.eos_token = None
    with pytest.raises(SpaceError, match="Reading the prompt took longer than 0 s"):
        endless.whole_answer(AnswerJob(EVOLVED, PROMPT, 40))
    endless.max_seconds = 1.0
    with monkeypatch.context() as patched:
        patched.setattr(StoppingCriteriaList, "__call__", slow)
        assert 0 < endless.whole_answer(AnswerJob(EVOLVED, PROMPT, 40)).tokens < 12
    endless.max_seconds = 60.0
    assert endless.whole_answer(AnswerJob(EVOLVED, PROMPT, 3)).tokens == 3
    assert (
        endless.whole_answer(AnswerJob(EVOLVED, PROMPT, 10**9)).tokens == 48 - 4
    )  # the model's positions less the prompt


def test_a_prompt_longer_than_the_model_is_explained(host):
    """More tokens than the model has positions is one line with both numbers."""
    with pytest.raises(SpaceError, match=r"60 tokens; this model reads 48"):
        host.whole_answer(AnswerJob(EVOLVED, "w1 " * 60, 8))
    with pytest.raises(SpaceError, match=r"2,500 tokens; here it may have 2,048"):
        host.whole_answer(AnswerJob(EVOLVED, "w1 " * 2500, 8))


def test_a_stop_ends_the_answer_and_frees_the_model(host):
    """After a stop the answer ends as stopped, and the next visitor is served."""
    asked = []

    def stopped():
        asked.append(1)
        return len(asked) > 1

    pieces = list(host.answer(AnswerJob(EVOLVED, PROMPT, 40), stopped))
    assert pieces[-1].state == "stopped"
    begin = time.monotonic()
    assert host.whole_answer(AnswerJob(EVOLVED, PROMPT, 4)).state == "done"
    assert time.monotonic() - begin < 10


def test_a_stop_counts_while_the_prompt_is_read(host, monkeypatch):
    """The first pass over a long path ends between two layers, not with the last of them."""
    layer = next(iter(host.evolved.model.get_decoder().layers))
    plain = type(layer).forward

    def slow(self, *arguments, **named):
        time.sleep(0.3)
        return plain(self, *arguments, **named)

    monkeypatch.setattr(type(layer), "forward", slow)
    hops = host.published.path * (300 // len(host.published.path))
    begin = time.monotonic()
    pieces = list(
        host.answer(
            AnswerJob(EVOLVED, PROMPT, 4, hops, (1.0,) * len(hops)),
            lambda: time.monotonic() - begin > 0.5,
        )
    )
    assert (pieces[-1].state, pieces[-1].tokens) == ("stopped", 0)
    assert host._pass.acquire(timeout=30), "300 layers would take 90 seconds"
    host._pass.release()


def test_one_pass_at_a_time(host, monkeypatch):
    """However many ask at once, the model runs one answer at a time and each gets their own."""
    inside = 0
    most = 0
    lock = threading.Lock()
    plain = models._write

    def counted(*arguments, **named):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        begun = plain(*arguments, **named)
        with lock:
            inside -= 1
        return begun

    prompts = [f"w{k} w{k + 1} {k}" for k in range(8)]
    wanted = [host.whole_answer(AnswerJob(EVOLVED, prompt, 6)).text for prompt in prompts]
    monkeypatch.setattr(models, "_write", counted)
    got = {}

    def ask(k):
        got[k] = host.whole_answer(AnswerJob(EVOLVED, prompts[k], 6)).text

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[k] for k in range(8)] == wanted
    assert most == 1


def test_too_little_memory_is_explained(dfs, monkeypatch):
    """A model that does not fit says how much it needs; a parent makes room for another before
    that."""
    host = _host(dfs)
    host.whole_answer(AnswerJob("a", PROMPT, 2))
    room = [0.0]
    monkeypatch.setattr(loading, "free_memory", lambda: room[0] if host._parents else 1e12)
    host.whole_answer(AnswerJob("b", PROMPT, 2))
    assert list(host._parents) == ["b"]
    monkeypatch.setattr(loading, "free_memory", lambda: 0.0)
    with pytest.raises(SpaceError, match="GB of memory"):
        host.whole_answer(AnswerJob("a", PROMPT, 2))
    assert "GB of memory" in _host(dfs).error


def test_a_model_without_safetensors_is_refused(broken, dfs):
    """Weights in other formats are not opened: the page says so, and whoever asks is told."""
    folder = broken()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    host = _host(folder)
    assert "no .safetensors file (only pytorch_model.bin, a pickle" in host.error
    with pytest.raises(SpaceError, match=r"no .safetensors file"):
        host.whole_answer(AnswerJob(EVOLVED, PROMPT, 2))
    state = AutoModelForCausalLM.from_pretrained(dfs).state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model-decoy.safetensors").write_bytes(b"x")
    assert "not a safetensors file, or damaged" in _host(folder).error


def test_no_code_of_a_parent_is_run(dfs, tiny, tmp_path):
    """A parent that brings its own code is refused in one line, and its code does not run."""
    evil = tmp_path / "evil"
    shutil.copytree(tiny / "a", evil)
    config = json.loads((evil / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (evil / "config.json").write_text(json.dumps(config))
    (evil / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nConfig = Model = None\n")
    host = Host(read(str(dfs)))
    host.load()
    parent = replace(host.published.parents[0], label="evil", model=str(evil))
    host.published = replace(host.published, parents=(parent,))
    with pytest.raises(SpaceError, match="evil cannot be loaded"):
        host.whole_answer(AnswerJob("evil", PROMPT, 2))
    assert not (tmp_path / "ran").exists()


def test_a_chat_template_is_used_unless_the_search_did_without(host):
    """With a template the prompt is a chat, without special tokens of the tokenizer's own."""
    loaded = copy.copy(host.evolved)
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}w9"
    )
    loaded = replace(loaded, tokenizer=tokenizer)
    plain = tokenizer("w1", add_special_tokens=True)["input_ids"]
    assert models.encode("w1", loaded, Data(chat=False)).ids == plain
    chat = tokenizer("s w2 u w1 w9", add_special_tokens=False)["input_ids"]
    assert models.encode("w1", loaded, Data(chat=True, system="w2")).ids == chat
    assert (
        models.encode("w1", loaded, None).ids
        == tokenizer("u w1 w9", add_special_tokens=False)["input_ids"]
    )


def test_weights_of_a_merge_are_turned_down_and_put_back(ps, tmp_path):
    """With a parent's weight at 0 the answer is that of the merge without it; afterwards every bit
    is as it was."""
    host = _host(ps)
    before = {name: tensor.clone() for name, tensor in host.evolved.model.state_dict().items()}
    published = host.whole_answer(AnswerJob(EVOLVED, PROMPT, 8)).text
    recipe = Recipe.load(ps / "recipe.yaml").model_dump(exclude_none=True, exclude={"built"})
    for weights in recipe["merge"]["parameters"][0].values():
        weights.update(dict.fromkeys(weights, 0.0))
    without = build_model(Recipe.model_validate(recipe), tmp_path / "without")
    answer = host.whole_answer(
        AnswerJob(EVOLVED, PROMPT, 8, factors=((mixing.ALL, (0.0, 1.0)),))
    ).text
    assert answer == greedy(Path(without), PROMPT) != published
    assert host.whole_answer(AnswerJob(EVOLVED, PROMPT, 8)).text == published
    assert all(
        tensor.equal(before[name]) for name, tensor in host.evolved.model.state_dict().items()
    )


@pytest.mark.parametrize("weight", [0.75, [0.0, 1.0]], ids=["number", "over the layers"])
def test_any_merge_with_weights_is_turned_down_to_the_bit(tiny, tmp_path, weight):
    """With a parent turned down a model holds what the changed recipe builds, also of a merge that
    drops elements; afterwards every bit is as it was."""
    fields = {"sources": [{"model": str(tiny / name)} for name in "ab"], "seed": 3}
    fields |= {"base": {"model": str(tiny / "base")}}
    merge = {"method": "dare_ties", "parameters": [{"weight": weight, "density": 0.5}] * 2}
    recipe = Recipe.model_validate({**fields, "merge": merge})
    published = read(str(build_model(recipe, tmp_path / "model")))
    factors = ((mixing.ALL, (0.5, 1.0)), ("layer 1", (0.0, 2.0)))
    changed = changed_recipe(published, None, mixing.edited(published.merge, factors, 2))
    built = build_model(changed, tmp_path / "changed")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode(), mixing.mixed(model, changed):
        for name, tensor in AutoModelForCausalLM.from_pretrained(built).state_dict().items():
            assert tensor.equal(model.state_dict()[name]), name
        assert any(not tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_a_merge_without_weights_is_not_turned(tiny, tmp_path):
    """slerp has no weight of each parent; the page says so."""
    fields = {"sources": [{"model": str(tiny / name)} for name in "ab"]}
    merge = {"method": "slerp", "options": {"t": 0.5}}
    recipe = Recipe.model_validate({**fields, "merge": merge})
    host = _host(build_model(recipe, tmp_path / "model"))
    with pytest.raises(SpaceError, match="no weights of its parents"):
        host.whole_answer(AnswerJob(EVOLVED, PROMPT, 8, factors=((mixing.ALL, (0.0, 1.0)),)))


def test_the_answer_is_seen_to_come_about(host, ps):
    """A row per hop, or per layer; the last row is the answer itself."""
    for shown, rows in ((host, len(host.published.path)), (_host(ps), 2)):
        written, liked = shown.lens(AnswerJob(EVOLVED, PROMPT))
        assert len(liked) == rows
        assert liked[-1] == written


def test_answers_are_there_before_anybody_asks(dfs, tiny):
    """Every model answers the first examples when the page starts; what is on record is taken as it
    is."""
    show = Showcase(str(dfs))
    show.load()
    prompt = show.published.examples[0].prompt
    cards = show.in_advance(prompt)
    assert [card.name for card in cards] == ["the merge", "a", "b", "base"]
    assert [card.text for card in cards] == [
        greedy(folder, prompt, 64) for folder in (dfs, tiny / "a", tiny / "b", tiny / "base")
    ]
    assert [card.role for card in cards] == ["evolved", "parent", "parent", ""], (
        "a base called base is so once"
    )
    assert {card.state for card in cards} == {"known"}
    assert cards[0].right
    assert {card.state for card in show.in_advance("another prompt")} == {"unasked"}
    assert cards[0].solved == show.in_advance("another prompt")[0].solved != None  # noqa: E711
    (asked,) = [
        [card.state for card in answers] for answers in list(show.ask(prompt, ["b"], 64, "me"))[-1:]
    ]
    assert asked == ["done", "unasked", "done", "unasked"], "the comparison stays"


def test_the_first_edit_to_try_changes_the_answer(dfs):
    """The page offers first an edit after which the example that is shown is no longer solved."""
    show = Showcase(str(dfs))
    show.load()
    example = show.published.examples[0]
    assert show.verdict((example.prompt, ()), show.in_advance(example.prompt)[0].text)
    piece = show.host.whole_answer(show.telling.job(example.prompt, 64))
    assert not show.verdict((example.prompt, ()), piece.text)
    said = views.dare(show.published, show.telling)
    assert said.index(escape(show.telling.link)) < said.index(
        escape(Edit.ideas(show.published)[0].link)
    )


def test_a_changed_model_is_scored_as_the_search_scores(dfs, monkeypatch):
    """The examples are judged by the search's own task: as each answer by itself is, for the
    published and a changed path."""
    monkeypatch.setattr(showcase, "_AT_ONCE", 2)
    show = Showcase(str(dfs))
    show.load()
    published = show.published
    changed = Edit.of(published).way.drop()
    wanted = {}
    for name, way in (("own", Edit.of(published).way), ("changed", changed)):
        texts = [
            greedy(dfs, each.prompt, 64, list(way.hops), list(way.scales))
            for each in published.examples
        ]
        wanted[name] = [
            published.judge(text, each)
            for text, each in zip(texts, published.examples, strict=True)
        ]
    assert wanted["own"][0]
    scored = list(show.score(Edit(changed), "me"))
    assert scored == [
        (done, sum(wanted["changed"][:done]), sum(wanted["own"][:done])) for done in (2, 3)
    ]
    with pytest.raises(SpaceError, match="does not work"):
        list(show.score(Edit(Route(("0:99",), (1.0,))), "me"))

"""The named API as strangers use it: what each endpoint answers, hostile calls, and twenty visitors
at once."""

import threading

import httpx
import pytest
from edits import Route
from gradio_client.exceptions import AppError
from refusals import refused
from served import greedy

from hf_evomerge.record import MADE_WITH

PROMPT = "t0 w3 w4 5"


@pytest.fixture(scope="module")
def client(served):
    """One visitor."""
    return served.client()


def test_the_api_is_named_and_described(client):
    """The public endpoints are the two named ones, each with description and parameters; the page's
    events are not."""
    info = client.view_api(return_format="dict", print_info=False)
    assert set(info["named_endpoints"]) == {"/answer", "/about"}
    assert not info["unnamed_endpoints"]
    described = httpx.get(f"{client.src}gradio_api/info").json()["named_endpoints"]
    assert all(endpoint["description"] for endpoint in described.values())
    parameters = info["named_endpoints"]["/answer"]["parameters"]
    names = [parameter["parameter_name"] for parameter in parameters]
    assert names == ["prompt", "model", "max_tokens", "pictures", "path", "scales"]


def _answer(client, prompt=PROMPT, model="evolved", tokens=8, *more):
    return client.predict(prompt, model, tokens, *more, api_name="/answer")


def test_answers_are_the_models(client, dfs, tiny):
    """The evolved model, a parent and a changed path each give their own greedy answer."""
    assert _answer(client)["text"] == greedy(dfs, PROMPT)
    assert _answer(client, PROMPT, "b")["text"] == greedy(tiny / "b", PROMPT)
    path = client.predict(api_name="/about")["path"][::-1]
    scales = [0.7] * len(path)
    changed = _answer(client, PROMPT, "evolved", 8, None, path, scales)
    assert changed["text"] == greedy(dfs, PROMPT, path=path, scales=scales)
    assert _answer(client)["text"] == greedy(dfs, PROMPT), "the published path is as it was"
    assert 0 < changed["tokens"] <= 8


HOSTILE = [
    (["", "evolved", 8], "prompt is empty"),
    (["x" * 100_000, "evolved", 8], "100,000 characters"),
    (["w1 " * 60, "evolved", 8], "60 tokens; this model reads 48"),
    ([5, "evolved", 8], "must be text, not int"),
    (["w1", "../../etc/passwd", 8], "no model '../../etc/passwd'"),
    (["w1", "b", 8, None, ["0:0"]], "no path to change"),
    (["w1", "evolved", "many"], "whole number from 1 to 256"),
    (["w1", "evolved", 8, None, "0:0"], "must be a list of hops"),
    (["w1", "evolved", 8, None, ["7:7"]], "not part of this model"),
    (["w1", "evolved", 8, None, ["0:0"] * 5000], "at most|may have 512"),
    (["w1", "evolved", 8, None, ["<img src=x onerror=alert(1)>"]], "cannot read"),
]


@pytest.mark.parametrize(("arguments", "said"), HOSTILE)
def test_hostile_calls_get_a_friendly_line(client, arguments, said):
    """Wrong types, endless and empty input, unknown models and layers: one line that says what is
    wrong, and no trace."""
    with refused(AppError, said) as caught:
        _answer(client, *arguments)
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value)) < 400


def _call(served, name, data, session):
    """Call one of the page's own functions past the queue, as no page would."""
    number = _number(served, name)
    body = {"data": data, "fn_index": number, "session_hash": session}
    httpx.post(f"{served.url}gradio_api/run/predict", json=body, timeout=60)


def _number(served, name):
    return next(number for number, each in served.blocks.fns.items() if each.api_name == name)


def test_what_visitors_sent_and_saw_is_not_kept(served):
    """Each visitor's state has their edit, and no words of theirs: a thousand long ones would fill
    the memory."""
    _call(served, "gloss", ["a very long prompt " * 10_000], "long")
    kept = served.blocks.state_holder["long"]
    assert len(str([part.get("props", {}).get("value") for part in kept.components])) < 100_000


def test_what_is_asked_beside_an_edit_is_not_kept(served):
    """Neither a prompt nor its pictures are kept."""
    prompt = "w3 w1 w4 w1 5 9"
    *_, answers = served.show.ask_changed(prompt, Route.of(served.show.published), 4, "visitor")
    assert answers[0].state == "done"
    assert prompt not in repr(vars(served.show))


def test_the_state_of_few_visitors_is_kept(serve, monkeypatch):
    """The last visitors have a state, however many there were: each is a copy of the page, which
    Gradio keeps."""
    import app

    monkeypatch.setattr(app, "SESSIONS", 3)
    served = serve("")
    for number in range(5):
        _call(served, "state", [], f"visitor {number}")
    assert [*served.blocks.state_holder.session_data] == ["visitor 2", "visitor 3", "visitor 4"]


def test_a_visitor_who_was_forgotten_edits_the_published_path(served):
    """A page whose state is gone changes what was published; it said that the model has no path."""
    _call(served, "fill", [], "another")
    inputs = served.blocks.fns[_number(served, "partial_1")].inputs
    values = [1.0 if part.get_block_name() == "slider" else None for part in inputs]
    _call(served, "partial_1", values, "gone")
    way = served.blocks.state_holder["gone"][inputs[0]._id]
    assert len(way) == len(served.show.published.path) + 1


@pytest.mark.parametrize("value", [None, 1.5, "x", [0], {"a": 1}, 10**30, -1, True])
def test_what_no_page_sends_leaves_no_trace(served, capfd, value):
    """The page's own functions refuse what is no problem, prompt, parent or number in words, and
    not in the log."""
    for name in ("take_sample", "gloss", "turn"):
        _call(served, name, [value], "strange")
    _call(served, "answer_1", [PROMPT, None, value, 8], "strange")
    _call(served, "answer_1", [PROMPT, None, [], value], "strange")
    assert "Traceback" not in capfd.readouterr().err


def test_a_visitor_who_was_forgotten_asks_the_parents(served, capfd):
    """A page whose state is gone may have chosen parents, of which the page that Gradio begins with
    knows none."""
    _call(served, "answer_1", [PROMPT, None, ["b"], 8], "forgotten")
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_queue_turns_visitors_away(served, dfs, monkeypatch):
    """Beyond the limit of the queue a call is refused at once in words, and those who wait are
    served."""
    import models

    plain = models._write
    gate = threading.Event()

    def held(*arguments, **named):
        gate.wait(60)
        return plain(*arguments, **named)

    monkeypatch.setattr(models, "_write", held)
    waiting = served.client().submit(PROMPT, "evolved", 8, api_name="/answer")
    full = served.fill_queue()
    gate.set()
    assert full.status_code == 503
    assert "full" in full.text.lower()
    assert waiting.result(timeout=60)["text"] == greedy(dfs, PROMPT)


def test_without_a_model_the_page_explains(serve):
    """A Space whose owner has set no model comes up and says what to set."""
    client = serve("").client()
    with refused(AppError, "EVOMERGE_MODEL"):
        client.predict(api_name="/about")


def test_the_page_says_what_made_it(served):
    """A line at its end names the project and the command that makes one's own."""
    said = [str(part.value) for part in served.blocks.blocks.values() if part.elem_id == "ev-made"]
    assert said == [MADE_WITH]

"""The named API as strangers use it: what each endpoint answers, hostile calls, and twenty visitors
at once."""

import json
import threading
import urllib.error
import urllib.request
from contextlib import suppress

import pytest
from gradio_client.exceptions import AppError
from served import greedy
from showcase import Edit

from hf_evomerge.record import MADE_WITH

PROMPT = "t0 w3 w4 5"
NAMES = {"/answer", "/about"}


@pytest.fixture(scope="module")
def client(served):
    """One visitor."""
    return served.client()


def test_the_api_is_named_and_described(client):
    """The public endpoints are the two named ones, each with description and parameters; the page's
    events are not."""
    info = client.view_api(return_format="dict", print_info=False)
    assert set(info["named_endpoints"]) == NAMES
    assert not info["unnamed_endpoints"]
    described = json.loads(urllib.request.urlopen(f"{client.src}gradio_api/info").read())
    for name in NAMES:
        assert described["named_endpoints"][name]["description"], name
    parameters = info["named_endpoints"]["/answer"]["parameters"]
    names = [parameter["parameter_name"] for parameter in parameters]
    assert names == ["prompt", "model", "max_tokens", "pictures", "path", "scales"]


def test_answers_are_the_models(client, dfs, tiny):
    """The evolved model, a parent and a changed path each give their own greedy answer."""
    assert client.predict(PROMPT, "evolved", 8, api_name="/answer")["text"] == greedy(dfs, PROMPT)
    assert client.predict(PROMPT, "b", 8, api_name="/answer")["text"] == greedy(tiny / "b", PROMPT)
    about = client.predict(api_name="/about")
    path = about["path"][::-1]
    scales = [0.7] * len(about["path"])
    changed = client.predict(PROMPT, "evolved", 8, None, path, scales, api_name="/answer")
    assert changed["text"] == greedy(dfs, PROMPT, path=path, scales=scales)
    assert 0 < changed["tokens"] <= 8


def test_known_answers_are_judged(client):
    """An example's answer is marked right or wrong, any other prompt's is not."""
    first, second, *_ = client.predict(api_name="/about")["examples"]
    assert client.predict(first["prompt"], "evolved", 64, api_name="/answer")["right"] is True
    assert client.predict(second["prompt"], "evolved", 64, api_name="/answer")["right"] is False
    assert client.predict(PROMPT, "evolved", 8, api_name="/answer")["right"] is None


HOSTILE = [
    ("/answer", ["", "evolved", 8], "prompt is empty"),
    ("/answer", ["x" * 100_000, "evolved", 8], "100,000 characters"),
    ("/answer", ["w1 " * 60, "evolved", 8], "60 tokens; this model reads 48"),
    ("/answer", [5, "evolved", 8], "must be text, not int"),
    ("/answer", ["w1", "no/such-model", 8], "no model 'no/such-model'"),
    ("/answer", ["w1", "../../etc/passwd", 8], "no model"),
    ("/answer", ["w1", "b", 8, None, ["0:0"]], "no path to change"),
    ("/answer", ["w1", "evolved", "many"], "whole number from 1 to 256"),
    ("/answer", ["w1", "evolved", 8, None, "0:0"], "must be a list of hops"),
    ("/answer", ["w1", "evolved", 8, None, ["7:7"]], "not part of this model"),
    ("/answer", ["w1", "evolved", 8, None, ["0:0"] * 5000], "at most|may have 512"),
    ("/answer", ["w1", "evolved", 8, None, ["<img src=x onerror=alert(1)>"]], "cannot read"),
]


@pytest.mark.parametrize(("name", "arguments", "said"), HOSTILE)
def test_hostile_calls_get_a_friendly_line(client, name, arguments, said):
    """Wrong types, endless and empty input, unknown models and layers: one line that says what is
    wrong, and no trace."""
    with pytest.raises(AppError, match=said) as caught:
        client.predict(*arguments, api_name=name)
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value)) < 400


def _call(served, name, data, session):
    """Call one of the page's own functions past the queue, as no page would."""
    number = next(number for number, each in served.blocks.fns.items() if each.api_name == name)
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session}).encode()
    call = urllib.request.Request(
        f"{served.url}gradio_api/run/predict", body, {"Content-Type": "application/json"}
    )
    with suppress(urllib.error.HTTPError):
        urllib.request.urlopen(call, timeout=60).close()


def test_what_visitors_sent_and_saw_is_not_kept(served):
    """Each visitor's state has their edit, and no words of theirs: a thousand long ones would fill
    the memory."""
    _call(served, "gloss", ["a very long prompt " * 10_000], "long")
    kept = served.blocks.state_holder["long"]
    assert len(str([part.get("props", {}).get("value") for part in kept.components])) < 100_000


def test_what_is_asked_beside_an_edit_is_not_kept(served):
    """Neither a prompt nor its pictures are kept."""
    prompt = "w3 w1 w4 w1 5 9"
    *_, answers = served.show.ask_changed(prompt, Edit.of(served.show.published), 4, "visitor")
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
    number = next(
        number for number, each in served.blocks.fns.items() if each.api_name == "partial_1"
    )
    edit = served.blocks.fns[number].inputs[0]
    values = [
        1.0 if part.get_block_name() == "slider" else None
        for part in served.blocks.fns[number].inputs
    ]
    _call(served, "partial_1", values, "gone")
    assert (
        len(served.blocks.state_holder["gone"][edit._id].way) == len(served.show.published.path) + 1
    )


@pytest.mark.parametrize("value", [None, 1.5, "x", [0], {"a": 1}, 10**30, -1, True])
def test_what_no_page_sends_leaves_no_trace(served, capfd, value):
    """The page's own functions refuse what is no problem, prompt, parent or number in words, and
    not in the log."""
    for name, data in (
        ("take_sample", [value]),
        ("gloss", [value]),
        ("answer_1", [PROMPT, None, value, 8]),
        ("answer_1", [PROMPT, None, [], value]),
        ("turn", [value]),
    ):
        _call(served, name, data, "strange")
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
    refused = served.fill_queue()
    gate.set()
    assert refused.code == 503
    assert "full" in refused.read().decode().lower()
    assert waiting.result(timeout=60)["text"] == greedy(dfs, PROMPT)


def test_without_a_model_the_page_explains(serve):
    """A Space whose owner has set no model comes up and says what to set."""
    client = serve("").client()
    with pytest.raises(AppError, match="EVOMERGE_MODEL"):
        client.predict(api_name="/about")


def test_the_page_says_what_made_it(served):
    """A line at its end names the project and the command that makes one's own."""
    said = [str(part.value) for part in served.blocks.blocks.values() if part.elem_id == "ev-made"]
    assert said == [MADE_WITH]

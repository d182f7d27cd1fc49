"""Chat templates are programs of strangers: what they write is transformers' own text, and what
goes on and on is ended."""

import copy
import json
import shutil
import subprocess
import sys
import time

import pytest
from refused import refused
from slowly import slow_beyond
from transformers import AutoTokenizer

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness.text import chat
from hf_evomerge.fitness.text.chat import ChatError, render_chat
from hf_evomerge.search.run import run_search

CHAT = [
    {"role": "system", "content": "be\nbrief"},
    {"role": "user", "content": 'é "日本" <bos> \ud83d'},
]
LONG = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{{% set n = namespace(x='a') %}}{{% for i in range({0}) %}}{{% set n.x = n.x ~ n.x %}}{{% "
    "endfor %}}{{{{ n.x }}}}"
)


@pytest.fixture
def tokenizer(tiny):
    """A tokenizer that a test may give any template."""
    return AutoTokenizer.from_pretrained(tiny / "a")


TEMPLATES = [
    (
        "{{ bos_token }}{% for m in messages %}\n  {{ m['role'] | upper }}: {{ m.content }}{{ "
        "eos_token }}\n{% endfor %}"
    ),
    (
        "{%- for m in messages -%}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson "
        "}}{%- endfor -%}"
    ),
    "{% if add_generation_prompt %}assistant{% endif %}{{ tools is none }}{{ undefined_name }}",
    (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ "
        "[1, 2] | tojson(indent=2) }}"
    ),
]


@pytest.mark.parametrize("template", slow_beyond(TEMPLATES[:1], TEMPLATES))
def test_the_text_is_that_of_transformers(tokenizer, template):
    """A template that passes its trial writes, letter by letter, what the tokenizer itself
    writes."""
    tokenizer.chat_template = template
    assert render_chat(tokenizer, CHAT) == tokenizer.apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=True
    )


ENDLESS = [
    ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    (LONG, "takes more than 1 s or 2 GiB"),
    ("{{ ('a' * 99999999).replace('a', 'a' * 99999999) }}", "takes more than"),
    (DOUBLED.format(60), "takes more than"),
    (DOUBLED.format(23), "writes more than 4194304 characters"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ("{{ raise_exception('no\nsystem') }}", "no system"),
    ("{% for", "unexpected"),
    ("{{ messages.__class__.__mro__ }}", "unsafe"),
    ("x" * 300_000, "has 300000 characters; at most 262144 are read"),
    ({"a": "x", "b": "y"}, "multiple chat templates"),
]


@pytest.mark.parametrize(
    ("template", "message"), slow_beyond([ENDLESS[1], ENDLESS[3], *ENDLESS[8:]], ENDLESS)
)
def test_what_goes_on_without_end_is_ended(tokenizer, monkeypatch, template, message):
    """A template that loops, doubles, recurses or refuses is one error that says so, and the next
    chat is rendered as ever."""
    monkeypatch.setattr(chat, "CPU_SECONDS", 1 if message.startswith("takes more") else 10)
    broken = copy.deepcopy(tokenizer)
    broken.chat_template = template
    with pytest.raises(ChatError) as caught:
        render_chat(broken, CHAT)
    assert message in " ".join(str(caught.value).split())
    tokenizer.chat_template = "{{ messages[0].role }}"
    monkeypatch.setattr(chat, "CPU_SECONDS", 10)  # a process begins slowly where many run
    assert render_chat(tokenizer, CHAT) == "system"


def test_a_search_with_an_endless_template_ends(
    tiny, tmp_path, search_settings, search_config, monkeypatch
):
    """A search whose first source has a template without end ends with one line that says whose and
    why."""
    monkeypatch.setattr(chat, "CPU_SECONDS", 1)
    folder = shutil.copytree(tiny / "a", tmp_path / "a")
    (folder / "chat_template.jinja").write_text(LONG)
    config = search_config(
        sources=[{"model": str(folder)}, {"model": str(tiny / "b")}],
        data={"search": {**search_settings()["data"]["search"], "chat": True}},
    )
    begin = time.process_time()
    with refused(r"a: data\.chat: .* chat template refuses .*: takes more than 1 s", FitnessError):
        run_search(config, tmp_path / "out")
    assert time.process_time() - begin < 30


def test_the_space_brings_the_file_that_it_needs():
    """The Space's repository holds the file that renders templates, and that file runs by
    itself."""
    from hf_evomerge.hub.space import space_files

    file = space_files("u/m")["hf_evomerge/fitness/text/chat.py"]
    asked = """{"template": "{{ messages[0].content }}", "messages": [{"content": "\u00e9"}],
        "special": {}, "open_ended": true, "seconds": 5}"""
    done = subprocess.run(
        [sys.executable, "-P", str(file)], input=asked, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ""

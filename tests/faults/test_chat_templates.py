"""Chat templates are programs of strangers, which transformers runs in a sandbox."""

import pytest
from refused import refused
from slowly import slow_beyond
from transformers import AutoTokenizer

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import Example
from hf_evomerge.fitness.text.encoding import render_chat, render_prompt

CHAT = [
    {"role": "system", "content": "be\nbrief"},
    {"role": "user", "content": 'é "日本" <bos> \ud83d'},
]


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
    """A template writes, letter by letter, what the tokenizer itself writes."""
    tokenizer.chat_template = template
    assert render_chat(tokenizer, CHAT) == tokenizer.apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=True
    )


BROKEN = [
    ("{{ raise_exception('no\nsystem') }}", "no system"),
    ("{% for", "unexpected"),
    ("{{ messages.__class__.__mro__ }}", "unsafe"),
    ({"a": "x", "b": "y"}, "multiple chat templates"),
]


@pytest.mark.parametrize(("template", "message"), BROKEN)
def test_a_template_that_fails_is_one_line(tokenizer, template, message):
    """A template that refuses, is broken, or reaches for what the sandbox keeps from it is one
    error that says so."""
    tokenizer.chat_template = template
    with refused(
        f"data.chat: set 'chat: false'; the template of .* refuses x: .*{message}", FitnessError
    ):
        render_prompt(Example("hi", "", "x", chat=True), tokenizer)

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import AgreementSpec, AgreementTask, Example
from hf_evomerge.fitness.tasks.agreement import Reference

from .conftest import SIZES, check_gradient, refused


def make(parent, tokenizer, examples, **settings):
    """A prepared task that compares with one source, called ``parent``."""
    task = AgreementTask(AgreementSpec(**{"separator": " ", **settings}))
    task.references = {"parent": Reference("parent", lambda: tokenizer, lambda: parent)}
    task.prepare(examples, tokenizer)
    return task


@pytest.fixture
def parent(model):
    """Another random model."""
    torch.manual_seed(7)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


@pytest.fixture
def owned(examples):
    """Examples of the parent."""
    return [replace(example, source="parent") for example in examples]


def plain(parent, model, ids, first, temperature):
    """The definition: -T^2 KL over the whole vocabulary, the mean over the positions from `first`
    on."""
    with torch.no_grad():
        wanted, found = (
            each(torch.tensor([ids])).logits[0, first:] / temperature for each in (parent, model)
        )
    divergence = torch.nn.functional.kl_div(
        found.log_softmax(1), wanted.log_softmax(1), reduction="none", log_target=True
    )
    return -(temperature**2) * float(divergence.sum(1).mean())


def test_is_the_divergence_at_every_position_of_the_answer(model, parent, owned, tokenizer):
    """The score is -T^2 KL, the mean over the answer's positions and its end, in any padding; a
    source scores 0."""
    scores = make(parent, tokenizer, owned, batch_size=5, temperature=2.0).evaluate(model)
    for value, example in zip(scores.values, owned, strict=True):
        prompt, answer = (tokenizer(text)["input_ids"] for text in (example.prompt, example.answer))
        assert value == pytest.approx(
            plain(parent, model, prompt + answer, len(prompt) - 1, 2.0), rel=1e-4
        )
    assert scores.correct is None
    assert make(parent, tokenizer, owned).evaluate(parent).values == pytest.approx(0, abs=1e-5)


def test_keeps_the_most_probable_tokens_and_the_mass_of_the_others(tokenizer):
    """Of a large vocabulary the 64 most probable tokens are told apart, and the others count
    together."""
    large = {**SIZES, "vocab_size": 400}
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(LlamaForCausalLM(LlamaConfig(**large)).eval())
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>", pad_token="<pad>"
    )
    words.add_tokens([f"word{number}" for number in range(400 - len(words))])
    example = Example("one two word9", "word7", "e", source="parent")
    found = make(models[0], words, [example]).evaluate(models[1]).values[0]
    ids = [*words("one two word9")["input_ids"], *words("word7")["input_ids"]]
    with torch.no_grad():
        wanted, given = (
            (model(torch.tensor([ids])).logits[0, 2:] / 3).softmax(1) for model in models
        )
    expected = 0.0
    for row, other in zip(wanted, given, strict=True):
        top = row.topk(64).indices
        p, q = ([*each[top].tolist(), 1 - float(each[top].sum())] for each in (row, other))
        expected -= (
            9
            * sum(a * (torch.tensor(a / b).log().item()) for a, b in zip(p, q, strict=True))
            / len(wanted)
        )
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_source_writes_what_the_data_lacks(model, parent, tokenizer):
    """Without an answer the source's own greedy one is compared, and where it ended."""
    example = Example("one two three", "", "e", source="parent")
    task = make(parent, tokenizer, [example], max_new_tokens=5)
    value = task.evaluate(model).values[0]
    prompt = tokenizer(example.prompt)["input_ids"]
    with torch.no_grad():
        written = parent.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=5)[
            0
        ].tolist()
    written = written[:-1] if written[-1] == tokenizer.eos_token_id else written
    assert value == pytest.approx(plain(parent, model, written, len(prompt) - 1, 3.0), rel=1e-4)


def test_a_source_runs_once_for_all_models(model, parent, owned, tokenizer):
    """The source is loaded for examples that it has not seen, and for no others."""
    loaded = []
    task = make(parent, tokenizer, owned[:4])
    task.references["parent"].model = lambda: loaded.append("parent") or parent
    first = task.evaluate(model)
    assert task.evaluate(model) == first
    task.prepare(owned[2:4], tokenizer)
    assert task.evaluate(model).values == pytest.approx(first.values[2:], rel=1e-5)
    assert loaded == ["parent"]


def test_gradient(model, parent, owned, tokenizer):
    """The backward pass gives the slope of the mean score in every direction."""
    model = model.double()
    parent = parent.double()
    try:
        task = make(parent, tokenizer, owned, batch_size=4)
        scores = check_gradient(
            task, model, model.model.layers[1].mlp.down_proj.weight, step=3e-3, rel=5e-3
        )
        assert scores.mean == pytest.approx(task.evaluate(model).mean)
    finally:
        model.float()
        model.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("example", "settings", "message"),
    [
        (
            Example("one", "two", "e1"),
            {},
            "e1: belongs to no source; there are parent: write sources: {NAME: ...} under data",
        ),
        (
            Example("one", "two", "e1", source="x"),
            {},
            "e1: belongs to the source 'x'; there are parent",
        ),
        (
            Example("one", "two", "e1"),
            {"source": "y"},
            "e1: belongs to the source 'y'; there are parent",
        ),
        (
            Example("one", "two", "e1", chat=True),
            {"source": "parent"},
            "agreement: parent: data.chat: the tokenizer has no",
        ),
    ],
)
def test_refuses_examples(example, settings, message, parent, tokenizer):
    """An example belongs to a source that there is, and that can be given a chat if it is one."""
    with pytest.raises(FitnessError) as caught:
        make(parent, tokenizer, [example], **settings)
    assert str(caught.value).startswith(message)


def test_refuses_sources(parent, broken_model, tokenizer):
    """Models of other tokens are not compared, and a source whose logits are no numbers is
    named."""
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>")
    other.add_tokens(["more"])
    task = AgreementTask(AgreementSpec(source="parent"))
    task.references = {"parent": Reference("parent", lambda: other, lambda: parent)}
    with refused("agreement: parent has other tokens than the models that are scored"):
        task.prepare([Example("one", "two", "e")], tokenizer)
    task = make(broken_model, tokenizer, [Example("one", "two", "e", source="parent")])
    with refused("agreement: parent: the model's logits are not finite: e"):
        task.evaluate(broken_model)

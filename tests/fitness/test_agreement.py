import copy
import re
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_evomerge.fitness import Example
from hf_evomerge.fitness.tasks.agreement import Reference

from .conftest import SIZES, check_gradient, prepared, refused


def make(parent, tokenizer, examples, own=None, **settings):
    """A prepared task that compares with one source, called ``parent``, of a tokenizer of its
    own."""
    reference = Reference("parent", lambda: own or tokenizer, lambda: parent)
    settings = {"separator": " ", **settings}
    return prepared(
        "agreement", examples, tokenizer, {"references": {"parent": reference}}, **settings
    )


def random_llama(seed, **changes):
    """A random model."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval()


@pytest.fixture
def parent():
    """Another random model."""
    return random_llama(7)


def with_tokens(tokenizer, *words):
    """A tokenizer with further words."""
    inner = tokenizer.backend_tokenizer
    wider = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")
    wider.add_tokens(list(words))
    return wider


@pytest.fixture
def owned(examples):
    """Examples of the parent."""
    return [replace(example, source="parent") for example in examples]


def softened(model, ids, first, temperature):
    """Logits over the temperature, at the positions from `first` on."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, first:] / temperature


def plain(parent, model, ids, first, temperature):
    """The definition: -T^2 KL over the whole vocabulary, the mean over the positions from `first`
    on."""
    wanted, found = (
        softened(each, ids, first, temperature).log_softmax(1) for each in (parent, model)
    )
    divergence = torch.nn.functional.kl_div(found, wanted, reduction="none", log_target=True)
    return -(temperature**2) * float(divergence.sum(1).mean())


def test_is_the_divergence_at_every_position_of_the_answer(model, parent, owned, tokenizer):
    """The score is -T^2 KL, the mean over the answer's positions and its end, in any padding; a
    source scores 0."""
    scores = make(parent, tokenizer, owned, batch_size=5, temperature=2.0).evaluate(model)
    for value, example in zip(scores.values, owned, strict=True):
        prompt, answer = (tokenizer(text)["input_ids"] for text in (example.prompt, example.answer))
        expected = plain(parent, model, prompt + answer, len(prompt) - 1, 2.0)
        assert value == pytest.approx(expected, rel=1e-4)
    assert not scores.correct.any()
    own = make(parent, tokenizer, owned).evaluate(parent)
    assert own.values == pytest.approx(0, abs=1e-5)
    assert own.correct.all()
    # a distance to one source says nothing of right and wrong
    assert make(parent, tokenizer, owned, source="parent").evaluate(parent).correct is None


def test_keeps_the_most_probable_tokens_and_the_mass_of_the_others(tokenizer):
    """Of a large vocabulary the 64 most probable tokens are told apart, and the others count
    together."""
    models = [random_llama(seed, vocab_size=400) for seed in (1, 2)]
    words = with_tokens(tokenizer, *(f"word{number}" for number in range(400 - len(tokenizer))))
    example = Example("one two word9", "word7", "e", source="parent")
    found = make(models[0], words, [example]).evaluate(models[1]).values[0]
    ids = words("one two word9 word7")["input_ids"]
    wanted, given = (softened(model, ids, 2, 3).softmax(1) for model in models)
    top = wanted.topk(64).indices
    p, q = (
        torch.cat([each.gather(1, top), 1 - each.gather(1, top).sum(1, keepdim=True)], 1)
        for each in (wanted, given)
    )
    assert found == pytest.approx(-9 * float((p * (p / q).log()).sum(1).mean()), rel=1e-3)


def test_the_source_writes_what_the_data_lacks(model, parent, tokenizer):
    """Without an answer the source's own greedy one is compared, and where it ended."""
    example = Example("one two three", "", "e", source="parent")
    task = make(parent, tokenizer, [example], max_new_tokens=5)
    value = task.evaluate(model).values[0]
    prompt = tokenizer(example.prompt, return_tensors="pt").input_ids
    written = parent.generate(prompt, do_sample=False, max_new_tokens=5)[0].tolist()
    written = written[:-1] if written[-1] == tokenizer.eos_token_id else written
    expected = plain(parent, model, written, prompt.shape[1] - 1, 3.0)
    assert value == pytest.approx(expected, rel=1e-4)


def test_an_answer_is_as_long_as_the_model_has_positions(model, parent, tokenizer):
    """An answer's tokens, and its end, have positions after its own prompt, whatever others are
    asked; a prompt that leaves none is refused."""
    example = Example("one two three", "", "e", source="parent")
    prompt = tokenizer(example.prompt, return_tensors="pt").input_ids
    written = parent.generate(prompt, do_sample=False, max_new_tokens=3)[0].tolist()
    assert tokenizer.eos_token_id not in written
    small = copy.deepcopy(parent)
    small.config.max_position_embeddings = len(written) + 1
    scored = copy.deepcopy(model)
    scored.config.max_position_embeddings = len(written) + 1
    longer = Example("one two three four", "", "longer", source="parent")
    value, _ = make(small, tokenizer, [example, longer]).evaluate(scored).values
    expected = plain(parent, model, written, prompt.shape[1] - 1, 3.0)
    assert value == pytest.approx(expected, rel=1e-4)
    small.config.max_position_embeddings = prompt.shape[1]
    with refused(r"the model has \d+ positions; shorten it, or leave it out"):
        make(small, tokenizer, [example]).evaluate(scored)


def test_right_is_what_the_source_writes(model, parent, owned, tokenizer):
    """A model is right where it writes, greedily, what the source writes: here where the two are
    mixed little."""
    examples = [replace(example, answer="") for example in owned]
    model = copy.deepcopy(model)
    with torch.no_grad():
        for mixed, own in zip(model.parameters(), parent.parameters(), strict=True):
            mixed.copy_(0.15 * mixed + 0.85 * own)
    scores = make(parent, tokenizer, examples, max_new_tokens=3).evaluate(model)

    def writes(writer, prompt):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        return writer.generate(ids, do_sample=False, max_new_tokens=4)[0].tolist()

    prompts = [example.prompt for example in examples]
    same = [writes(model, prompt) == writes(parent, prompt) for prompt in prompts]
    assert 0 < sum(same) < len(same)
    assert scores.correct.tolist() == same


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
    try:
        task = make(parent.double(), tokenizer, owned, batch_size=4)
        weight = model.double().model.layers[1].mlp.down_proj.weight
        scores = check_gradient(task, model, weight, step=3e-3, rel=5e-3)
        assert scores.mean == pytest.approx(task.evaluate(model).mean)
    finally:
        model.float()
        model.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        (
            {},
            {},
            "e1: belongs to no source; there are parent: write sources: {NAME: ...} under data",
        ),
        ({"source": "x"}, {}, "e1: belongs to the source 'x'; there are parent"),
        ({}, {"source": "y"}, "e1: belongs to the source 'y'; there are parent"),
        (
            {"chat": True},
            {"source": "parent"},
            "agreement: parent: data.chat: the tokenizer has no",
        ),
    ],
)
def test_refuses_examples(fields, settings, message, parent, tokenizer):
    """An example belongs to a source that there is, and that can be given a chat if it is one."""
    with refused(f"^{re.escape(message)}"):
        make(parent, tokenizer, [Example("one", "two", "e1", **fields)], **settings)


def test_refuses_sources(parent, broken_model, tokenizer):
    """Models of other tokens are not compared, and a source whose logits are no numbers is
    named."""
    example = Example("one", "two", "e", source="parent")
    with refused("agreement: parent has other tokens than the models that are scored"):
        make(parent, tokenizer, [example], with_tokens(tokenizer, "more"))
    task = make(broken_model, tokenizer, [example])
    with refused("agreement: parent: the model's logits are not finite: e"):
        task.evaluate(broken_model)

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MixtralConfig,
)
from transformers.models.auto import AutoModelForCausalLM

from hf_evomerge.fitness import Example
from hf_evomerge.fitness.data.shots import with_shots

from .conftest import SIZES, as_text, check_gradient, counted, prepared, refused

SHARED = "one two three four five six seven eight " * 2
GPT2_SIZES = {
    k: SIZES[k]
    for k in ("vocab_size", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id")
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    # A low cap, and a window shorter than the prompts, so that getting either wrong shows.
    "gemma2": Gemma2Config(
        **SIZES,
        head_dim=8,
        final_logit_softcapping=2.0,
        attn_logit_softcapping=2.0,
        sliding_window=4,
    ),
    "granite": GraniteConfig(**SIZES, logits_scaling=3.0),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "gpt2": GPT2Config(**GPT2_SIZES, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "bloom": BloomConfig(**GPT2_SIZES, hidden_size=32, n_layer=2, n_head=4),
    "mamba": MambaConfig(**GPT2_SIZES, hidden_size=32, num_hidden_layers=2, state_size=4),
}


def score(model, examples, tokenizer, **keys):
    """Scores with a space between prompt and answer, unless asked otherwise."""
    return prepared("likelihood", examples, tokenizer, **{"separator": " ", **keys}).evaluate(model)


def plain(model, examples, tokenizer):
    """The definition, one example at a time, from all logits."""
    values = []
    for example in examples:
        prompt = tokenizer(example.prompt)["input_ids"]
        answer = [*tokenizer(example.answer)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
        predicted = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        values.append(sum(row[token].item() for row, token in zip(predicted, answer, strict=True)))
    return values


@pytest.fixture
def other_model(request):
    """A random model of an architecture."""
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()


@pytest.mark.parametrize("other_model", CONFIGS, indirect=True)
def test_equals_a_plain_forward(other_model, examples, tokenizer):
    """Padded micro-batches without a mask and with a sliced head give each example's own
    log-probability."""
    values = score(other_model, examples, tokenizer, batch_size=7).values
    assert values == pytest.approx(plain(other_model, examples, tokenizer), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("by", ["shots", "words"])
@pytest.mark.parametrize("other_model", CONFIGS, indirect=True)
def test_a_shared_prefix_changes_no_score(other_model, by, examples, tokenizer):
    """Shots, and words that all prompts begin with, give the scores of plain forward passes, the
    same bits every time; they are run once for all where the cache holds keys and values alone."""
    asked = [replace(each, prompt=SHARED + each.prompt) for each in examples]
    if by == "shots":
        asked = with_shots(examples, examples[:3], 2, separator=" ", end="<eos>")
    whole = as_text(asked, tokenizer)
    expected = plain(other_model, whole, tokenizer)
    runs = []
    for _ in range(2):
        with counted(other_model) as count:
            runs.append((score(other_model, asked, tokenizer, batch_size=7), *count))
    (scores, tokens), again = runs
    assert scores.values == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert again == (scores, tokens)
    has_states = other_model.config.model_type in ("gemma2", "mamba")  # of a window, a recurrence
    everything = sum(len(tokenizer(f"{each.prompt} {each.answer}")["input_ids"]) for each in whole)
    assert (tokens > 0.7 * everything) == has_states


def test_model_without_logits_to_keep(model, examples, tokenizer):
    """A model that ignores ``logits_to_keep`` and returns every position scores the same."""

    class Stubborn(torch.nn.Module):
        config = model.config

        def forward(self, input_ids, **ignored):
            return SimpleNamespace(logits=self.inner(input_ids=input_ids).logits)

    stubborn = Stubborn()
    stubborn.inner = model
    found = score(stubborn, examples, tokenizer).values
    assert found == pytest.approx(score(model, examples, tokenizer).values, abs=1e-5)


def test_normalize_and_eos(model, examples, tokenizer):
    """``token`` divides by the answer's tokens, and leaving out the end-of-text token leaves out
    its probability."""
    total = score(model, examples, tokenizer).values
    mean = score(model, examples, tokenizer, normalize="token").values
    counts = [len(example.answer.split()) + 1 for example in examples]
    assert mean * counts == pytest.approx(total, abs=1e-5)
    without = score(model, examples, tokenizer, append_eos=False).values
    assert (total < without).all()
    assert (without <= 0).all()


def written(model, tokenizer, prompt, count):
    """The tokens that a model goes on with."""
    ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    tokens = model.generate(**ids, do_sample=False, max_new_tokens=count)
    return tokens[0, ids["input_ids"].shape[1] :].tolist()


def test_correct_is_greedy_exact_match(model, examples, tokenizer):
    """An answer is correct exactly where greedy decoding writes it and then ends."""
    asked = []
    expected = []
    for example in examples:
        tokens = written(model, tokenizer, example.prompt, 12)
        # beginnings of what is written, of which only the whole is an exact match
        for length in (2, 4, 11):
            words = tokens[: min(length, len(tokens) - 1)]
            if words and min(words) >= tokenizer.vocab["zero"]:
                asked.append(Example(example.prompt, tokenizer.decode(words)))
                expected.append(tokens[len(words)] == tokenizer.eos_token_id)
    assert min(expected.count(True), expected.count(False)) >= 3
    assert score(model, asked, tokenizer).correct.tolist() == expected


def test_leaves_the_model_as_it_was(model, examples, tokenizer):
    """A model in training mode is scored without dropout and is in training mode afterwards."""
    dropping = LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.5))
    dropping.load_state_dict(model.state_dict())
    dropping.train()
    found = score(dropping, examples, tokenizer).values
    assert found == pytest.approx(score(model, examples, tokenizer).values, abs=1e-5)
    assert dropping.training
    assert torch.is_grad_enabled()


def test_refusals(model, broken_model, examples, tokenizer):
    """No examples, too long an example, a tokenizer that cannot end an answer and logits that are
    no numbers are refused."""
    with refused(r"^the model's logits are not finite: e\d+ has log-probability nan$"):
        score(broken_model, examples, tokenizer)
    with refused("no examples"):
        score(model, [], tokenizer)
    longest = [Example("one " * count, "two", f"e{count}") for count in (1, 65, 2)]
    with refused(r"^e65: the longest example takes 66 tokens; the model has 64 positions"):
        score(model, longest, tokenizer)
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with refused("append_eos"):
        score(model, examples, endless)


@pytest.mark.parametrize("shared", ["", SHARED])
@pytest.mark.parametrize("keys", [{}, {"normalize": "token", "batch_size": 2}])
def test_backward_is_the_gradient_of_the_mean(keys, shared, examples, tokenizer):
    """The scores are those of `evaluate`, and the gradients those of their mean, for any size of
    micro-batches, and where prompts begin with the same words."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIGS["llama"])
    examples = [replace(each, prompt=shared + each.prompt) for each in examples]
    task = prepared("likelihood", examples, tokenizer, separator=" ", **keys)
    scores = check_gradient(task, model, model.model.layers[0].mlp.down_proj.weight)
    assert scores.values == pytest.approx(task.evaluate(model).values, rel=1e-4)


def test_a_greedy_response_is_judged_as_its_tokens_are(model, examples, tokenizer):
    """`judge` says of what a model writes greedily what `correct` says of the answer's tokens,
    whichever answer is right."""
    prompt = examples[0].prompt
    said = tokenizer.decode(written(model, tokenizer, prompt, 3))
    for answer in (said, said.split()[0], "one two"):
        example = Example(prompt, answer)
        task = prepared("likelihood", [example], tokenizer, separator=" ", append_eos=False)
        right = task.evaluate(model).correct[0]
        assert right == task.judge(said, example) == (answer != "one two")
    assert not task.judge(said, Example(prompt, f"{said} one"))
    ended = prepared("likelihood", [example], tokenizer)
    assert not ended.judge(f"{said} one", Example("", said)), "the end is scored too"

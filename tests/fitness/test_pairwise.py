from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import Example, PairwiseTask, Scores


def judged(judge: Any, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, answers: list[str]) -> Scores:
    """What a model scores against these answers."""
    task = PairwiseTask(judge, max_new_tokens=4, batch_size=2)
    task.prepare([Example("one two", answer, f"e{i}") for i, answer in enumerate(answers)], tokenizer)
    return task.evaluate(model)


def test_both_orders(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """A judge of length is right in both orders; one that likes what comes first, or finds no difference, prefers nobody."""
    seen = []

    def shorter(prompts: list[str], responses: list[list[str]]) -> list[int]:
        seen.append((prompts, responses))
        return [-1 if len(a) == len(b) else int(len(b) < len(a)) for a, b in responses]

    (written,) = judged(shorter, model, tokenizer, ["x"]).outputs
    scores = judged(shorter, model, tokenizer, ["x", written + " and more", written])
    assert scores.values.tolist() == [0.0, 1.0, 0.5]
    prompts, responses = seen[-1]
    assert prompts == ["one two"] * 3
    assert responses == [["x", written], [written + " and more", written], [written, written]]
    assert judged(lambda prompts, responses: [0] * len(prompts), model, tokenizer, ["x", "y"]).values.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("found", [[0], [0, 2], [0.4, 0], ["0", "1"], None, 1])
def test_refuses_what_is_no_choice(found: Any, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """A judge returns -1, 0 or 1 for every prompt."""
    with pytest.raises(FitnessError, match="judge <lambda>: expected -1, 0 or 1 for each of 2 prompts"):
        judged(lambda prompts, responses: found, model, tokenizer, ["x", "y"])

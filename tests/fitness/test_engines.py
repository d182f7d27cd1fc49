"""Engines: vLLM is given every tensor of every candidate, and writes what the model itself writes."""

from __future__ import annotations

import sys
from typing import Any

import fake_vllm
import pytest
import torch
from tiny_models import tiny_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_evomerge.errors import FitnessError
from hf_evomerge.fitness import Example, GenerationSpec, GenerationTask
from hf_evomerge.fitness.example import Picture
from hf_evomerge.fitness.vllm_engine import checkpoint_tensors, vllm_engine
from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.routing.pool import LayerPool


def _task(examples: list[Example], tokenizer: PreTrainedTokenizerFast, **keys: Any) -> GenerationTask:
    task = GenerationTask(GenerationSpec(extract="all", **({"max_new_tokens": 8} | keys)))
    task.prepare(examples, tokenizer)
    return task


def test_vllm_writes_what_the_model_writes(
    model: LlamaForCausalLM,
    broken_model: LlamaForCausalLM,
    examples: list[Example],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One engine takes the weights of one model after the other, and is started anew for longer texts or another shape."""
    started = fake_vllm.install(monkeypatch)
    torch.manual_seed(5)
    settings = model.config.to_dict()
    other, tied = (LlamaForCausalLM(LlamaConfig(**{**settings, "tie_word_embeddings": tie})).eval() for tie in (False, True))
    keys = {"stop": ["six", "答え"]}
    examples = examples[:8]
    plain, task = (_task(examples, tokenizer, engine=engine, **keys) for engine in ("transformers", "vllm"))
    expected = [plain.evaluate(each) for each in (model, other)]
    assert expected[0].outputs != expected[1].outputs
    assert [task.evaluate(each) for each in (model, other, model)] == [*expected, expected[0]]
    assert len(started) == 1
    assert started[0].options["gpu_memory_utilization"] == 0.5
    assert set(expected[0].truncated) == {True, False}
    with pytest.raises(FitnessError, match=r"^the model's logits are not finite$"):
        task.evaluate(broken_model)
    longer = _task(examples, tokenizer, max_new_tokens=9, engine="vllm")
    assert longer.evaluate(model) == _task(examples, tokenizer, max_new_tokens=9).evaluate(model)
    assert task.evaluate(tied) == plain.evaluate(tied)
    assert len(started) == 3


def test_tensors_have_the_names_of_the_checkpoint() -> None:
    """A mixture of experts has each expert's weights, as its files have them, and not what transformers joins in memory."""
    names = checkpoint_tensors(tiny_model("qwen3_moe", layers=2))
    assert names["model.layers.0.mlp.experts.3.down_proj.weight"].shape == (32, 16)
    assert not any("gate_up_proj" in name for name in names)
    assert "lm_head.weight" in names
    assert "lm_head.weight" not in checkpoint_tensors(tiny_model("qwen2"))


def test_what_vllm_cannot_do(
    model: LlamaForCausalLM, examples: list[Example], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one line where vLLM is not installed or too old, where there is no GPU, and for pictures and paths."""
    with pytest.raises(FitnessError, match=r'fitness.engine: vLLM is not installed; pip install "hf-evomerge\[vllm\]"'):
        _task(examples, tokenizer, engine="vllm")
    fake_vllm.install(monkeypatch, cuda=False)
    with pytest.raises(FitnessError, match=r"vllm takes over weights on a GPU alone \(device: cpu\)"):
        _task(examples, tokenizer, engine="vllm").evaluate(model)
    fake_vllm.install(monkeypatch)
    path = LayerPool([model, model]).model(LayerPath.parse("0:0, 1:1"))
    with pytest.raises(FitnessError, match=r"vllm runs plain models, and this one is a path; fold it"):
        vllm_engine(0.5).load(path, tokenizer, 10)
    monkeypatch.delitem(sys.modules, "vllm.distributed.weight_transfer.ipc_engine")
    with pytest.raises(FitnessError, match=r"this vLLM has no weight transfer \(.*\); pip install"):
        vllm_engine(0.5).load(model, tokenizer, 10)
    seeing = Example("one", "two", pictures=(Picture(data=b"", where="cat.png"),))
    with pytest.raises(FitnessError, match=r"vllm is given no pictures"):
        GenerationTask(GenerationSpec(extract="all", engine="vllm")).prepare([seeing], tokenizer)

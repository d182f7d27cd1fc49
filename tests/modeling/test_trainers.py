"""Fine-tuning of a path: TRL's trainers, heads, adapters."""

import itertools

import pytest
import torch
import transformers
from slowly import slow_beyond
from tiny_models import logits_of, tiny_model, token_ids
from transformers import AutoModelForCausalLM
from vlms import TEMPLATE, tokenizer

from hf_evomerge import fold
from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.routing.pool import LayerPool

PATH = LayerPath.parse("0:0, 1:1, 0:1, 0:1, 1:2", [1, 0.9, 1.1, 0.8, 1])
DATA = {
    "SFT": [
        {"prompt": "what is red ", "completion": "w1 w2"},
        {"prompt": "what is blue ", "completion": "w3 w4 w5"},
    ],
    "DPO": [{"prompt": "what is red ", "chosen": "w1 w2", "rejected": "w3"}] * 2,
    "GRPO": [{"prompt": "what is red "}, {"prompt": "what is blue "}],
}


def _path(folder, architecture="llama"):
    """A path with repeats and scales, saved with a tokenizer."""
    sources = [tiny_model(architecture), tiny_model(architecture, seed=1)]
    LayerPool(sources).model(PATH).save_pretrained(folder / "path")
    words = tokenizer()
    words.chat_template = TEMPLATE
    words.save_pretrained(folder / "path")
    return folder / "path"


def _distinct(completions, **_):
    """More for later completions, so that no group of them is worth the same."""
    return [float(number) for number, _ in enumerate(completions)]


def _trainer(kind, model, out):
    trl = pytest.importorskip("trl", reason="the extra train is not installed")
    datasets = pytest.importorskip("datasets")
    settings = {
        "output_dir": str(out),
        "max_steps": 1,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "learning_rate": 0.01,
        "save_strategy": "no",
        "model_init_kwargs": {"dtype": "float32"},
    }
    rewards = {}
    if kind == "GRPO":
        settings |= {"per_device_train_batch_size": 4, "num_generations": 4}
        settings |= {"max_completion_length": 5}
        rewards = {"reward_funcs": _distinct}
    return getattr(trl, f"{kind}Trainer")(
        model=str(model),
        args=getattr(trl, f"{kind}Config")(**settings),
        train_dataset=datasets.Dataset.from_list(DATA[kind]),
        **rewards,
    )


@pytest.mark.parametrize("kind", DATA)
def test_a_step_of_a_trainer_is_the_plain_models(kind, tmp_path):
    """A step of TRL's trainer has the loss and the likelihoods of the folded path, and what it
    saves loads to the same bits."""
    model = _path(tmp_path)
    plain = tmp_path / "plain"
    fold(model, plain)
    logs = []
    for name in (model, plain):
        trainer = _trainer(kind, name, tmp_path / "out")
        trainer.train()
        logs.append(trainer.state.log_history[0])
        if name == model:
            trainer.save_model(tmp_path / "trained")
            trained = logits_of(trainer.model.eval())
            assert (
                trainer.model.layers[2].mlp.up_proj.weight
                is trainer.model.layers[3].mlp.up_proj.weight
            )
    ours, theirs = logs
    for key in ("loss", "entropy", *(["logps/chosen", "logps/rejected"] if kind == "DPO" else [])):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "trained", dtype=torch.float32)
    assert torch.equal(logits_of(again), trained)
    before = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert not torch.equal(logits_of(before), trained)


HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering")
ARCHITECTURES = ("llama", "gpt2", "qwen2")
DIAGONAL = list(zip(HEADS, ARCHITECTURES, strict=True))


@pytest.mark.parametrize(
    ("head", "architecture"), slow_beyond(DIAGONAL, itertools.product(HEADS, ARCHITECTURES))
)
def test_a_head_on_a_path(head, architecture, tmp_path):
    """A head begins on the path's own layers, has a gradient for its labels, and is loaded again to
    the bit."""
    folder = _path(tmp_path, architecture)
    kind = getattr(transformers, f"AutoModelFor{head}")
    spans = head == "QuestionAnswering"
    model, info = kind.from_pretrained(
        folder, output_loading_info=True, **({} if spans else {"num_labels": 5})
    )
    assert all(
        "score" in name or "classifier" in name or "qa_outputs" in name
        for name in info["missing_keys"]
    )
    state = transformers.AutoModel.from_pretrained(folder).eval()(token_ids()).last_hidden_state
    assert torch.equal(model.eval().base_model(token_ids()).last_hidden_state, state)
    places = torch.tensor([1, 4])
    labels = {
        "SequenceClassification": {"labels": places},
        "TokenClassification": {"labels": places[:, None].repeat(1, 9)},
    }
    output = model(
        token_ids(), **labels.get(head, {"start_positions": places, "end_positions": places})
    )
    output.loss.backward()
    assert all(p.grad is not None for p in model.layers[0].parameters())
    assert model.config.text_config.num_labels == (2 if spans else 5)
    model.save_pretrained(tmp_path / "trained")
    again = kind.from_pretrained(tmp_path / "trained")(token_ids())
    assert torch.equal(again[0], output[1])
    if head == "SequenceClassification":
        fold(tmp_path / "trained", tmp_path / "plain")
        plain = kind.from_pretrained(tmp_path / "plain")
        assert type(plain).__module__.startswith("transformers.")
        assert torch.allclose(logits_of(plain), output.logits, atol=1e-5)

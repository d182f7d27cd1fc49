from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, tiny_model, token_ids
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from hf_evomerge.cli import app
from hf_evomerge.errors import EvoMergeError, PathError, SourceError
from hf_evomerge.fold import fold
from hf_evomerge.modeling import MLP_BRANCH, EvoMergedForCausalLM
from hf_evomerge.modeling.fold_layouts import LAYOUTS
from hf_evomerge.path import Path as LayerPath
from hf_evomerge.routing.pool import LayerPool

HOPS = "0:0, 1:1, 1:3, 0:1, 1:2, 0:0, 1:3, 0:2"  # 0:0 and 1:3 run twice
SCALES = [0.8, 0.9, 1.1, 1.0, -1.2, 1.0, -0.8, -1.3]  # the last product is negative
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}
# Beside the architectures of the other tests, and variants of them that are built differently.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, "decoder_sparse_step": 1}),
    "qwen3_next": ("qwen3_next", {**ARCHITECTURES["qwen3_5_text"], **EXPERTS, "decoder_sparse_step": 1}),
    "olmo3": ("olmo3", {"sliding_window": 4, "layer_types": ARCHITECTURES["exaone4"]["layer_types"]}),
    "cohere": ("cohere", {"use_qk_norm": True}),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "olmo2 with biases": ("olmo2", {"attention_bias": True}),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "stablelm, side by side": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "falcon, old": ("falcon", {"new_decoder_architecture": False, "parallel_attn": True, "bias": True}),
    "falcon, one after the other": ("falcon", {"new_decoder_architecture": False, "parallel_attn": False, "alibi": True}),
    "gemma2, untied": ("gemma2", {**ARCHITECTURES["gemma2"], "tie_word_embeddings": False}),
}
CASES = {**{name: (name, {}) for name in ARCHITECTURES}, **VARIANTS}
# OPT's epsilon cannot be set; the state of linear attention amplifies rounding
TOLERANCE = {"opt": 2e-3, "qwen3_5_text": 1e-3, "qwen3_next": 1e-3}
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")


@pytest.fixture(scope="module", autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def pool_of(architecture: str, **fields: Any) -> LayerPool:
    """A source of three layers and one of four, whose norms have hardly any epsilon."""
    known = vars(CONFIG_MAPPING[architecture]())
    fields = {**{name: 1e-12 for name in EPSILONS if name in known}, **fields}
    return LayerPool([tiny_model(architecture, 3, **fields), tiny_model(architecture, 4, seed=1, **fields)])


def folded(model: EvoMergedForCausalLM, folder: Path, **options: Any) -> PreTrainedModel:
    """Save, fold and load; nothing may be missing or left over."""
    model.save_pretrained(folder / "merged")
    fold(folder / "merged", folder / "plain", progress=False, **options)
    plain, info = AutoModelForCausalLM.from_pretrained(folder / "plain", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return plain


def greedy(model: PreTrainedModel) -> torch.Tensor:
    """Six greedy tokens after two prompts."""
    return model.generate(token_ids(), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A merged Llama in a folder."""
    pool_of("llama").model(LayerPath.parse(HOPS, SCALES)).save_pretrained(tmp_path / "merged")
    return tmp_path / "merged"


@pytest.mark.parametrize("scale_target", ["stream", "mlp_delta"])
@pytest.mark.parametrize("case", CASES)
def test_the_folded_model_computes_the_same(case: str, scale_target: str, tmp_path: Path) -> None:
    """The folded checkpoint loads as the source architecture's own class and gives the merged model's logits and tokens."""
    architecture, fields = CASES[case]
    pool = pool_of(architecture, **fields)
    scales = SCALES if architecture in MLP_BRANCH or scale_target == "stream" else [-0.5] + [1.0] * 7
    model = pool.model(LayerPath.parse(HOPS, scales), scale_target)
    plain = folded(model, tmp_path)
    assert type(plain) is type(pool.models[0])
    assert plain.config.num_hidden_layers == len(SCALES)
    assert getattr(plain.config, "layer_types", None) == getattr(model.config.text_config, "layer_types", None)
    wanted, given = model(token_ids()).logits, plain(token_ids()).logits
    assert (wanted - given).abs().max() <= TOLERANCE.get(architecture, 5e-5)
    assert torch.equal(greedy(plain), greedy(model))
    unscaled = pool.model(LayerPath.parse(HOPS))(token_ids()).logits
    assert (wanted - unscaled).abs().max() > 0.05


def test_every_layout_is_tested() -> None:
    """The table of layouts has no architecture that the test above leaves out."""
    assert LAYOUTS.keys() == {architecture for architecture, _ in CASES.values()}


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_without_scales_the_tensors_are_copies(architecture: str, tmp_path: Path) -> None:
    """Where all scales are 1 the folded model gives the merged model's logits, to the bit."""
    model = pool_of(architecture).model(LayerPath.parse(HOPS))
    assert torch.equal(folded(model, tmp_path)(token_ids()).logits, model(token_ids()).logits)


def test_only_scales_need_a_known_architecture(tmp_path: Path) -> None:
    """A path without scales is exported for any architecture; with scales an unknown one is refused by name."""
    pool = pool_of("persimmon")
    model = pool.model(LayerPath.parse(HOPS))
    assert torch.equal(folded(model, tmp_path)(token_ids()).logits, model(token_ids()).logits)
    pool.model(LayerPath.parse(HOPS, SCALES)).save_pretrained(tmp_path / "scaled")
    with pytest.raises(SourceError, match="'persimmon' cannot be folded; known are llama"):
        fold(tmp_path / "scaled", tmp_path / "out", progress=False)


@pytest.mark.parametrize(("scale_target", "tied"), [("stream", True), ("mlp_delta", False)])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "gpt2"])
def test_scaled_embeddings_leave_the_head(architecture: str, scale_target: str, tied: bool, tmp_path: Path) -> None:
    """Embeddings that are scaled are no longer the head's; in the stream they are not scaled and stay tied."""
    model = pool_of(architecture, tie_word_embeddings=True).model(LayerPath.parse(HOPS, SCALES), scale_target)
    plain = folded(model, tmp_path)
    assert plain.config.tie_word_embeddings is tied
    embeddings, head = plain.get_input_embeddings().weight, plain.get_output_embeddings().weight
    assert (embeddings is head) is tied
    assert torch.equal(head, model.get_output_embeddings().weight)


def test_a_zero_in_mlp_delta_drops_the_mlp(tmp_path: Path) -> None:
    """With mlp_delta a scale of zero is exact: that MLP writes nothing."""
    model = pool_of("gemma3_text").model(LayerPath.parse("0:0, 0:1, 0:2", [1, 0, 1]), "mlp_delta")
    plain = folded(model, tmp_path)
    assert torch.allclose(plain(token_ids()).logits, model(token_ids()).logits, atol=5e-5)


@pytest.mark.parametrize(
    ("hops", "scales", "message"),
    [
        (["0:0", "0:1*0.5 + 1:1*0.5"], [1, 1], "path[1]: '0:1*0.5 + 1:1*0.5' sums 2 layers"),
        (["0:0", "0:1*0.5"], [1, 1], "path[1]: '0:1*0.5' has a weight other than 1"),
        (["0:0", "0:1"], [1, 0], "scales[1]: 0 wipes out the stream"),
        (["0:0", "0:1"], [1e-200, 1e-200], "scales[1]: the product of the scales up to this one is 0.0"),
    ],
)
def test_what_no_plain_model_computes_is_refused(hops: list[str], scales: list[float], message: str, tmp_path: Path) -> None:
    """A path without a plain equal is refused in one line, and nothing is left behind."""
    pool_of("llama").model(LayerPath.parse(hops, scales)).save_pretrained(tmp_path / "merged")
    with pytest.raises(PathError, match=re.escape(message)) as caught:
        fold(tmp_path / "merged", tmp_path / "out", progress=False)
    assert "\n" not in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("opt", {"do_layer_norm_before": False}, "text_config.do_layer_norm_before: False"),
        ("opt", {"layer_norm_elementwise_affine": False}, "no model.decoder.final_layer_norm.weight"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "text_config.apply_residual_connection_post_layernorm"),
    ],
)
def test_variants_that_are_built_otherwise_are_refused(
    architecture: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """A known architecture is refused where its configuration changes what reads or writes the residual stream."""
    pool_of(architecture, **fields).model(LayerPath.parse(HOPS, SCALES)).save_pretrained(tmp_path / "merged")
    with pytest.raises(SourceError, match=re.escape(message)):
        fold(tmp_path / "merged", tmp_path / "out", progress=False)


def test_a_layer_without_its_writer_is_noticed() -> None:
    """A layer whose tensors have other names than the table says lacks something, and what it lacks is named."""
    layer = ["self_attn.o_proj.weight", "mlp.fc2.weight", "input_layernorm.weight"]
    assert list(LAYOUTS["llama"].missing(layer)) == ["mlp.down_proj.*"]
    assert not list(LAYOUTS["llama"].missing([*layer, "mlp.down_proj.weight"]))


def test_a_plain_model_is_refused(tmp_path: Path) -> None:
    """A checkpoint that is no merged model has nothing to fold."""
    tiny_model("llama").save_pretrained(tmp_path / "plain")
    with pytest.raises(SourceError, match="a plain 'llama', not a merged model"):
        fold(tmp_path / "plain", tmp_path / "out", progress=False)


def test_a_missing_tensor_is_named(saved: Path, tmp_path: Path) -> None:
    """A merged checkpoint that lacks a tensor is refused before anything is written."""
    tensors = load_file(saved / "model.safetensors")
    del tensors["model.model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"no tensor called model\.model\.layers\.1\.mlp\.down_proj\.weight"):
        fold(saved, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_shards_and_file_modes(saved: Path, tmp_path: Path) -> None:
    """A small shard size gives an index and several files, all of them readable by others, and the same tensors."""
    fold(saved, tmp_path / "whole", progress=False)
    fold(saved, tmp_path / "cut", max_shard_size="20KB", progress=False)
    shards = sorted((tmp_path / "cut").glob("*.safetensors"))
    assert len(shards) > 3
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in (tmp_path / "cut").iterdir())
    together = {name: tensor for file in shards for name, tensor in load_file(file).items()}
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert together.keys() == whole.keys()
    assert all(torch.equal(together[name], whole[name]) for name in whole)


def test_a_dtype_can_be_asked_for(saved: Path, tmp_path: Path) -> None:
    """The factor is applied before the weights are rounded to the dtype that is asked for, and config.json says it."""
    exact, plain = (
        load_file(fold(saved, tmp_path / name, dtype=name, progress=False) / "model.safetensors")
        for name in ("float32", "bfloat16")
    )
    assert all(torch.equal(plain[name], exact[name].bfloat16()) for name in exact)
    assert json.loads((tmp_path / "bfloat16" / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(EvoMergeError, match="dtype: 'int8' is unknown; there are float32"):
        fold(saved, tmp_path / "out", dtype="int8", progress=False)


def test_a_weight_that_overflows_is_an_error(tmp_path: Path) -> None:
    """A weight that does not fit into the dtype once it is scaled is refused, and nothing is left behind."""
    pool_of("llama").model(LayerPath.parse("0:0, 0:1", [1, 1e-7])).save_pretrained(tmp_path / "merged")
    with pytest.raises(EvoMergeError, match=r"layers\.1\.\S+: does not fit into torch\.float16"):
        fold(tmp_path / "merged", tmp_path / "out", dtype="float16", progress=False)
    assert [item.name for item in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize("adds", [True, False])
def test_the_tokenizer_says_whether_it_adds_bos(saved: Path, adds: bool, tmp_path: Path) -> None:
    """The tokenizer comes along, encodes as before, and says explicitly whether it puts a BOS in front."""
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="b"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(saved)
    (saved / "chat_template.jinja").write_text("{{ messages }}")
    out = fold(saved, tmp_path / "out", progress=False)
    assert json.loads((out / "tokenizer_config.json").read_text())["add_bos_token"] is adds
    assert AutoTokenizer.from_pretrained(out)("a b")["input_ids"] == [0] * adds + [2, 3]
    assert (out / "chat_template.jinja").is_file()
    assert (out / "generation_config.json").is_file()


def test_a_rearranged_window_pattern_is_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A path that breaks the architecture's order of layer kinds is folded with a warning, and one that keeps it without."""
    pool = pool_of("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    pool.model(LayerPath.parse("0:0, 0:1, 0:2, 1:3")).save_pretrained(tmp_path / "kept")
    pool.model(LayerPath.parse("0:0, 0:1, 0:0, 1:3")).save_pretrained(tmp_path / "broken")
    fold(tmp_path / "kept", tmp_path / "one", progress=False)
    assert not caplog.records
    fold(tmp_path / "broken", tmp_path / "two", progress=False)
    assert "layer_types: the path does not keep the order" in caplog.text


def test_the_command_line_folds(saved: Path, tmp_path: Path) -> None:
    """`hf-evomerge fold` writes the plain model, and ends with one line where it cannot."""
    done = CliRunner().invoke(app, ["fold", str(saved), "--out", str(tmp_path / "out"), "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    again = CliRunner().invoke(app, ["fold", str(saved), "--out", str(tmp_path / "out")])
    assert again.exit_code == 1
    assert "is there already" in again.output

import re

import pytest
import torch
import yaml
from classes import edited, read_json, tensors_of
from commands import invoke
from fold_cases import HOPS, SCALES, VARIANTS, fold_error, folded, pool_of
from refused import refused
from slowly import slow_beyond
from tiny_models import logits_of, path_model, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from vlms import TEXT, VISION

from hf_evomerge import fold
from hf_evomerge.errors import EvoMergeError, PathError
from hf_evomerge.recipes.layer_path import LayerPath


@pytest.fixture(scope="module", autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def saved(tmp_path):
    """A merged Llama in a folder."""
    pool_of("llama").model(LayerPath.parse(HOPS, SCALES)).save_pretrained(tmp_path / "merged")
    return tmp_path / "merged"


@pytest.mark.parametrize("scale_target", ["stream", "mlp_delta"])
@pytest.mark.parametrize("variant", slow_beyond(["qwen3_next", "gemma2, untied"], VARIANTS))
def test_variants_fold_too(variant, scale_target, tmp_path):
    """Variants of the architectures, built differently, fold to a plain model of the same logits
    and tokens."""
    architecture, fields = VARIANTS[variant]
    fold_error(architecture, fields, scale_target, tmp_path)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "openai-gpt"])
def test_without_scales_the_tensors_are_copies(architecture, tmp_path):
    """Where all scales are 1 the folded model gives the merged model's logits, to the bit."""
    model = pool_of(architecture).model(LayerPath.parse(HOPS))
    assert torch.equal(logits_of(folded(model, tmp_path)), logits_of(model))


@pytest.mark.parametrize(("scale_target", "tied"), [("stream", True), ("mlp_delta", False)])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "gpt2"])
def test_scaled_embeddings_leave_the_head(architecture, scale_target, tied, tmp_path):
    """Embeddings that are scaled are no longer the head's; in the stream they are not scaled and
    stay tied."""
    model = pool_of(architecture, tie_word_embeddings=True).model(
        LayerPath.parse(HOPS, SCALES), scale_target
    )
    plain = folded(model, tmp_path)
    assert plain.config.tie_word_embeddings is tied
    embeddings = plain.get_input_embeddings().weight
    head = plain.get_output_embeddings().weight
    assert (embeddings is head) is tied
    assert torch.equal(head, model.get_output_embeddings().weight)


@pytest.mark.parametrize("architecture", ["gemma3_text", "llama"])
def test_a_zero_in_mlp_delta_drops_the_mlp(architecture, tmp_path):
    """With mlp_delta a scale of zero is exact: that MLP writes nothing."""
    model = pool_of(architecture).model(LayerPath.parse("0:0, 0:1, 0:2", [1, 0, 1]), "mlp_delta")
    plain = folded(model, tmp_path)
    assert torch.allclose(logits_of(plain), logits_of(model), atol=5e-5)


@pytest.mark.parametrize(
    ("hops", "scales", "message"),
    [
        ("0:0, 0:1*0.5 + 1:1*0.5", [1, 1], "path[1]: '0:1*0.5 + 1:1*0.5' sums 2 layers"),
        ("0:0, 0:1*0.5", [1, 1], "path[1]: '0:1*0.5' has a weight other than 1"),
        ("0:0, 0:1", [1, 0], "scales[1]: 0 wipes out the stream"),
        ("0:0, 0:1", [1e-200] * 2, "scales[1]: the product of the scales up to this one is 0.0"),
    ],
)
def test_what_no_plain_model_computes_is_refused(hops, scales, message, tmp_path):
    """A path without a plain equal is refused in one line, and nothing is left behind."""
    pool_of("llama").model(LayerPath.parse(hops, scales)).save_pretrained(tmp_path / "merged")
    with refused(re.escape(message), PathError):
        fold(tmp_path / "merged", tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("openai-gpt", "{}", "'openai-gpt' cannot be folded with these scales"),
        ("opt", "do_layer_norm_before: false", "'opt' cannot be folded with these scales"),
        (
            "opt",
            "layer_norm_elementwise_affine: false",
            "final_layer_norm has no weight that could be negated",
        ),
        (
            "bloom",
            "apply_residual_connection_post_layernorm: true",
            "'bloom' cannot be folded with these scales; something is done to the stream",
        ),
    ],
)
def test_variants_that_are_built_otherwise_are_refused(architecture, fields, message, tmp_path):
    """Scales are refused where norms stand in the stream, or a known architecture's configuration
    changes what reads or writes it."""
    pool = pool_of(architecture, **yaml.safe_load(fields))
    pool.model(LayerPath.parse(HOPS, SCALES)).save_pretrained(tmp_path / "merged")
    with refused(re.escape(message)):
        fold(tmp_path / "merged", tmp_path / "out")


def test_a_plain_model_is_refused(tmp_path):
    """A checkpoint without a path has nothing to fold."""
    tiny_model("llama").save_pretrained(tmp_path / "plain")
    with refused("a plain 'llama' already, with no path to fold"):
        fold(tmp_path / "plain", tmp_path / "out")


def test_a_missing_tensor_is_named(saved, tmp_path):
    """A merged checkpoint that lacks a tensor is refused before anything is written."""
    with edited(saved) as tensors:
        del tensors["model.model.layers.1.mlp.down_proj.weight"]
    with refused(r"no tensor called model\.model\.layers\.1\.mlp\.down_proj\.weight"):
        fold(saved, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dtype_can_be_asked_for(saved, tmp_path):
    """The factor is applied before the weights are rounded to the dtype that is asked for, and
    config.json says it."""
    exact, plain = (
        tensors_of(fold(saved, tmp_path / name, dtype=name)) for name in ("float32", "bfloat16")
    )
    assert all(torch.equal(plain[name], exact[name].bfloat16()) for name in exact)
    assert read_json(tmp_path / "bfloat16" / "config.json")["dtype"] == "bfloat16"
    with refused("dtype: 'int8' is unknown; there are float32", EvoMergeError):
        fold(saved, tmp_path / "out", dtype="int8")


def test_a_weight_that_overflows_is_an_error(tmp_path):
    """A weight that does not fit into the dtype once it is scaled is refused, and nothing is left
    behind."""
    pool_of("llama").model(LayerPath.parse("0:0, 0:1", [1, 1e-7])).save_pretrained(
        tmp_path / "merged"
    )
    with refused(r"layers\.1\.\S+: its numbers become too large for F16", EvoMergeError):
        fold(tmp_path / "merged", tmp_path / "out", dtype="float16")
    assert [item.name for item in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize("adds", [True, False])
def test_the_tokenizer_says_whether_it_adds_bos(saved, adds, tmp_path):
    """The tokenizer comes along, encodes as before, and says explicitly whether it puts a BOS in
    front."""
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="b"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(saved)
    (saved / "chat_template.jinja").write_text("{{ messages }}")
    out = fold(saved, tmp_path / "out")
    assert read_json(out / "tokenizer_config.json")["add_bos_token"] is adds
    assert AutoTokenizer.from_pretrained(out)("a b")["input_ids"] == [0] * adds + [2, 3]
    assert (out / "chat_template.jinja").is_file()
    assert (out / "generation_config.json").is_file()


def test_a_rearranged_window_pattern_is_mentioned(tmp_path, caplog):
    """A path that breaks the architecture's order of layer kinds is folded with a warning, and one
    that keeps it without."""
    pool = pool_of("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    pool.model(LayerPath.parse("0:0, 0:1, 0:2, 1:3")).save_pretrained(tmp_path / "kept")
    pool.model(LayerPath.parse("0:0, 0:1, 0:0, 1:3")).save_pretrained(tmp_path / "broken")
    fold(tmp_path / "kept", tmp_path / "one")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    fold(tmp_path / "broken", tmp_path / "two")
    assert "layer_types: the path does not keep the order" in caplog.text


@pytest.mark.parametrize(("scales", "warns"), [([1.0, 0.9, 1.1], False), ([1.0, -0.5, 0.3], True)])
def test_scales_that_the_epsilon_of_norms_sees_are_told(scales, warns, tmp_path, caplog):
    """A fold is exact but for the norms' epsilon, which a warning names where the stream becomes
    much smaller."""
    model = pool_of("llama").model(LayerPath.parse(["0:0", "0:1", "0:0"], scales))
    model.save_pretrained(tmp_path / "merged")
    fold(tmp_path / "merged", tmp_path / "plain")
    assert ("the epsilon of the norms counts" in caplog.text) is warns


def test_the_command_line_folds(saved, tmp_path):
    """`hf-evomerge fold` writes the plain model, and ends with one line where it cannot."""
    out = tmp_path / "out"
    words = ["fold", saved, "--out", out, "--dtype", "bfloat16"]
    assert invoke(*words).exit_code == 0
    assert read_json(out / "config.json")["dtype"] == "bfloat16"
    again = invoke(*words)
    assert (again.exit_code, "exists already" in again.output) == (1, True)


def test_a_type_without_the_field_of_tied_heads_is_folded(tmp_path):
    """The config of a Mllama does not say whether its head is tied: it is not."""
    sight = """{attention_heads: 2, num_global_layers: 1, vision_output_dim: 32, image_size: 8,
        intermediate_layers_indices: [0], patch_size: 4}"""
    config = MllamaConfig(
        text_config={**TEXT, "head_dim": None, "cross_attention_layers": [1]},
        vision_config={**VISION, **yaml.safe_load(sight)},
        image_token_index=12,
    )
    model = path_model([MllamaForConditionalGeneration(config).eval()], "0:0, 0:1, 0:0")
    model.save_pretrained(tmp_path / "path")
    plain = MllamaForConditionalGeneration.from_pretrained(
        fold(tmp_path / "path", tmp_path / "plain")
    )
    assert torch.equal(logits_of(plain), logits_of(model))

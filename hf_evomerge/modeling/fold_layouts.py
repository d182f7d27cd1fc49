"""Tensors of an architecture that write to the residual stream or read it: what folding a scale has to know.

Knows names, no tensors. The scales of an architecture that is not in the table are not folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple


class Change(NamedTuple):
    """Change of a weight w: ``(w + offset) * factor - offset``; the offset is 1 where a norm multiplies by 1 + w."""

    factor: float
    offset: float = 0.0


@dataclass(frozen=True)
class FoldLayout:
    """The tensors of one architecture that meet the residual stream, as patterns of their names in the checkpoint.

    Attributes:
        final_norm: The norm in front of the head.
        attention: Tensors of a layer whose output the attention (or what stands in its place) adds to the stream.
        mlp: The same of the MLP; where a norm follows the MLP, its weight; of every expert.
        norms: Weights of a layer's norms that read the stream. They ignore the size of their input, but not its sign.
        readers: Weights of a layer that read the stream without a norm in front.
        embeddings: Tensors that add up to the first hidden state; by default the token embeddings.
        one_plus: Whether the norms named here multiply by 1 + w.
        required: Fields of the configuration that must have these values (or be absent) for the above to be true.
    """

    final_norm: str
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    norms: tuple[str, ...]
    readers: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    one_plus: bool = False
    required: Mapping[str, Any] = field(default_factory=dict)

    def change(self, name: str, *, attention: float, mlp: float, sign: float, reader: float) -> Change | None:
        """Return the change of one tensor of a layer; None where it stays as it is.

        Args:
            name: Its name within the layer.
            attention: The factor of what the attention writes.
            mlp: The factor of what the MLP writes.
            sign: The factor of the norms that read: 1 or -1.
            reader: The factor of the weights that read without a norm.
        """
        groups = ((self.attention, attention), (self.mlp, mlp), (self.norms, sign), (self.readers, reader))
        for patterns, factor in groups:
            if factor != 1 and matches(name, patterns):
                return Change(factor, self.offset(name))
        return None

    def offset(self, name: str) -> float:
        """The offset of the change of a tensor."""
        return 1.0 if self.one_plus and "norm" in name else 0.0

    def missing(self, names: Iterable[str]) -> Iterator[str]:
        """Yield what a layer with tensors of these names lacks: it is built in a way that the layout does not describe."""
        present = list(names)
        for patterns in (self.attention, self.mlp, self.norms + self.readers):
            if patterns and not any(matches(name, patterns) for name in present):
                yield " or ".join(patterns)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a name fits one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def layout_of(config: Any) -> FoldLayout:
    """The layout of an architecture.

    Raises:
        ValueError: The architecture, or a setting of it, is not one whose scales can be folded.
    """
    kind = config.model_type
    if kind not in LAYOUTS:
        raise ValueError(f"text_config.model_type: {kind!r} cannot be folded; known are {', '.join(LAYOUTS)}")
    layout = LAYOUTS[kind]
    for name, value in layout.required.items():
        if getattr(config, name, value) != value:
            raise ValueError(f"text_config.{name}: {getattr(config, name)!r}; {kind!r} can be folded with {value!r} only")
    return layout


_LLAMA = FoldLayout(
    final_norm="model.norm",
    attention=("self_attn.o_proj.*",),
    mlp=("mlp.down_proj.*",),
    norms=("input_layernorm.weight", "post_attention_layernorm.weight"),
)
_EXPERTS = ("mlp.down_proj.*", "mlp.experts.*.down_proj.*", "mlp.experts.down_proj*", "mlp.shared_expert.down_proj.*")
_QWEN_HYBRID = replace(_LLAMA, attention=("self_attn.o_proj.*", "linear_attn.out_proj.*"), mlp=_EXPERTS, one_plus=True)
_GEMMA2 = FoldLayout(
    final_norm="model.norm",
    attention=("post_attention_layernorm.weight",),
    mlp=("post_feedforward_layernorm.weight",),
    norms=("input_layernorm.weight", "pre_feedforward_layernorm.weight"),
    one_plus=True,
)
# attention and MLP read the stream as it is; a norm follows each of them
_OLMO2 = FoldLayout(
    final_norm="model.norm",
    attention=("post_attention_layernorm.weight",),
    mlp=("post_feedforward_layernorm.weight",),
    norms=(),
    readers=tuple(f"{name}.weight" for name in ("self_attn.[qkv]_proj", "mlp.gate_proj", "mlp.up_proj")),
)
_GPT2 = FoldLayout(
    final_norm="transformer.ln_f",
    attention=("attn.c_proj.*", "attn.attention.out_proj.*"),
    mlp=("mlp.c_proj.*",),
    norms=("ln_1.weight", "ln_2.weight"),
    embeddings=("transformer.wte.weight", "transformer.wpe.weight"),
    required={"add_cross_attention": False},
)
_FALCON = FoldLayout(
    final_norm="transformer.ln_f",
    attention=("self_attention.dense.*",),
    mlp=("mlp.dense_4h_to_h.*",),
    norms=("input_layernorm.weight", "post_attention_layernorm.weight", "ln_attn.weight", "ln_mlp.weight"),
)

LAYOUTS: dict[str, FoldLayout] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "smollm3", "cohere", "cohere2", "stablelm"), _LLAMA
    ),
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text"), _LLAMA),
    "gemma": replace(_LLAMA, one_plus=True),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA2),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe"), replace(_LLAMA, mlp=_EXPERTS)),
    "mixtral": replace(_LLAMA, mlp=("block_sparse_moe.experts.*.w2.weight",)),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text"), _QWEN_HYBRID),
    **dict.fromkeys(("olmo2", "olmo3", "exaone4"), _OLMO2),
    "glm4": replace(_LLAMA, attention=("post_self_attn_layernorm.weight",), mlp=("post_mlp_layernorm.weight",)),
    "lfm2": FoldLayout(
        final_norm="model.embedding_norm",
        attention=("self_attn.out_proj.*", "conv.out_proj.*"),
        mlp=("feed_forward.w2.*",),
        norms=("operator_norm.weight", "ffn_norm.weight"),
    ),
    "starcoder2": replace(_LLAMA, mlp=("mlp.c_proj.*",)),
    "phi": replace(_LLAMA, final_norm="model.final_layernorm", attention=("self_attn.dense.*",), mlp=("mlp.fc2.*",)),
    **dict.fromkeys(("gpt2", "gpt_neo"), _GPT2),
    "gpt_neox": replace(
        _LLAMA, final_norm="gpt_neox.final_layer_norm", attention=("attention.dense.*",), mlp=("mlp.dense_4h_to_h.*",)
    ),
    "falcon": _FALCON,
    "bloom": replace(
        _FALCON,
        embeddings=("transformer.word_embeddings_layernorm.*",),
        required={"apply_residual_connection_post_layernorm": False},
    ),
    "opt": FoldLayout(
        final_norm="model.decoder.final_layer_norm",
        attention=("self_attn.out_proj.*",),
        mlp=("fc2.*",),
        norms=("self_attn_layer_norm.weight", "final_layer_norm.weight"),
        embeddings=("model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"),
        required={"do_layer_norm_before": True, "_remove_final_layer_norm": False},
    ),
    "mamba": FoldLayout(final_norm="backbone.norm_f", attention=("mixer.out_proj.*",), mlp=(), norms=("norm.weight",)),
}

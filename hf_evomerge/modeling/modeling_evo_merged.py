"""A model whose layers are a path through the layers of several source models of one architecture.

The source architecture's own class does the work: it is built with one decoder layer per cache
slot, and slots that run the same source layer share their parameters. This file adds the scales,
the weighted sums, and the sharing.

This file travels to the Hub beside the weights: it imports nothing but torch, transformers and the
configuration beside it.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from .blocks_evo_merged import check_scale_target, layouts_of
from .configuration_evo_merged import EvoMergedConfig
from .layers_evo_merged import (
    HopList,
    ScaleInput,
    ScaleOutput,
    SumTerms,
    copy_structure,
    decoder_layers,
    find_layers,
    known_arguments,
    source_class,
)

_ABILITIES = (
    "_supports_sdpa",
    "_supports_flash_attn",
    "_supports_flex_attn",
    "_supports_attention_backend",
    "_is_stateful",
    "_can_compile_fullgraph",
    "supports_gradient_checkpointing",
    "_supports_context_parallel",
)


# What `generate` asks of the model on the way, and vision-language models do in ways of their own.
_GENERATION_STEPS = (
    "_prepare_position_ids_for_generation",
    "_expand_inputs_for_generation",
    "_expand_multimodal_outputs",
    "_update_model_kwargs_for_generation",
)


class EvoMergedPreTrainedModel(PreTrainedModel):
    """What the merged model with and without head have in common: sharing, scales, sums; all else
    is the source class's."""

    config_class = EvoMergedConfig
    config: EvoMergedConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # which of the source architecture's classes does the work; None: the one that generates
    _classes: Any = auto.MODEL_MAPPING

    def __init__(self, config: EvoMergedConfig, inner: PreTrainedModel | None = None) -> None:
        """Build the model; `inner` is the source architecture's model where its layers are made and
        shared already."""
        # it may have been changed since it was made, also by from_pretrained's arguments
        config.validate_path()
        check_scale_target(config)
        if inner is None:
            config.check_places()
            for name in (
                config.text_config.sub_configs if config.has_parts else ()
            ):  # from_pretrained sets `text_config`'s only
                getattr(config.text_config, name).dtype = config.text_config.dtype
        super().__init__(config)
        self.model_tags = ["merge", "evomerge"]  # for the card that push_to_hub writes
        self._assembled = inner is not None
        if self._classes is None and not isinstance(self, merged_class(config)):
            raise ValueError(
                f"text_config: {config.text_config.model_type!r} sees; load it with "
                "AutoModelForImageTextToText"
            )
        if inner is None:
            inner = self._new_inner()
        self._inner_name = (
            "model"
            if self._classes is not auto.MODEL_MAPPING
            else (inner.base_model_prefix or "model")
        )
        setattr(self, self._inner_name, inner)
        self._known_arguments = frozenset(inspect.signature(type(inner).forward).parameters)
        self._layers_name = f"{self._inner_name}.{find_layers(inner, len(config.slots))}"
        layers = self.get_submodule(self._layers_name)
        self._tied_weights_keys = self._share(list(layers.children()))
        self._install(list(layers.children()))
        if any(len(group) > 1 for group in config.hop_slots):
            parent, _, name = self._layers_name.rpartition(".")
            setattr(
                self.get_submodule(parent), name, HopList(list(layers.children()), len(config.path))
            )
        # what the source class can do, its instance says
        for flag in _ABILITIES:
            setattr(self, flag, getattr(inner, flag, False))
        config._attn_implementation_internal = config.text_config._attn_implementation
        config._experts_implementation_internal = getattr(
            config.text_config, "_experts_implementation", None
        )
        self.post_init()

    def _new_inner(self) -> PreTrainedModel:
        """The source architecture's model, with random weights."""
        config: Any = self.config.text_config
        if isinstance(self, _WithLabels):
            for name in ("id2label", "label2id", "problem_type"):
                setattr(config, name, getattr(self.config, name))
        inner = source_class(config, self._classes)(config)
        usual = source_class(config).base_model_prefix
        if (
            self._classes is not auto.MODEL_MAPPING and inner.base_model_prefix != usual
        ):  # older names, of questions about a text
            setattr(inner, usual, inner._modules.pop(inner.base_model_prefix))
            inner.base_model_prefix = usual
        return inner

    @property
    def inner(self) -> Any:
        """The source architecture's own model that does the work."""
        return getattr(self, self._inner_name)

    @property
    def base_model(self) -> nn.Module:
        """The source architecture's model without head, which ends in the last hidden state;
        trainers call it by itself."""
        return self.inner.base_model

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, one per cache slot."""
        return list(self.get_submodule(self._layers_name)._modules.values())  # type: ignore[arg-type]

    def _share(self, layers: Sequence[nn.Module]) -> dict[str, str]:
        """Let slots of the same source layer share its parameters and persistent buffers; returns
        the tied names."""
        prefix = self._layers_name
        tied = {}
        for slot, owner in enumerate(self.config.owners):
            if slot == owner:
                continue
            # The names are patterns to transformers. Sharing tensors rather than modules keeps one
            # module per slot, with a cache index and hooks of its own.
            tied[f"{prefix}.{slot}.".replace(".", r"\.")] = f"{prefix}.{owner}."
            for mine, its in zip(layers[slot].modules(), layers[owner].modules(), strict=True):
                mine._parameters.update(its._parameters)
                mine._buffers.update(
                    {
                        k: v
                        for k, v in its._buffers.items()
                        if k not in its._non_persistent_buffers_set
                    }
                )
        return tied

    def _install(self, layers: Sequence[nn.Module]) -> None:
        """Hang the scales and the sums on the layers, as hooks that hold numbers only."""
        config = self.config
        hops = config.hops
        groups = config.hop_slots
        scales = config.scales
        in_mlps = config.scale_target == "mlp_delta" and any(scale != 1 for scale in scales[1:])
        blocks = layouts_of(config.decoder_config).blocks if in_mlps else []
        for position, (hop, group) in enumerate(zip(hops, groups, strict=True)):
            # stream: x_k = beta_k h_{k-1}, a factor on what enters the hop. mlp_delta: x_k =
            # r_{k-1} + beta_k MLP_{k-1}, a factor on the last branch of every term of the hop
            # before (released EvoLLM models compute this); the first hop has no hop before it, so
            # its scale is on the embeddings in both.
            if scales[position] != 1 and (config.scale_target == "stream" or position == 0):
                layers[position].register_forward_pre_hook(
                    ScaleInput(float(scales[position])), with_kwargs=True
                )
            elif scales[position] != 1:
                for slot in groups[position - 1]:
                    branch = layers[slot].get_submodule(blocks[slot].branch)
                    branch.register_forward_hook(ScaleOutput(float(scales[position])))
            weights = [weight for _, _, weight in hop]
            if weights != [1]:
                others = [layers[slot] for slot in group[1:]]
                layers[position].register_forward_hook(SumTerms(weights, others), with_kwargs=True)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Tie the slots of a layer; of quantised linear maps, which keep more than a weight, they
        share the whole module."""
        super().tie_weights(*args, **kwargs)
        for slot, name, module in self._shared_quantised():
            parent, _, leaf = name.rpartition(".")
            setattr(self.layers[slot].get_submodule(parent), leaf, module)

    def _shared_quantised(self) -> Iterator[tuple[int, str, nn.Module]]:
        """The quantised linear maps of layers that run again: the slot that runs it again, its name
        there, the owner's."""
        layers = self.layers if getattr(self, "is_quantized", False) else []
        for slot, owner in enumerate(self.config.owners if layers else []):
            for name, module in list(layers[owner].named_modules()) if slot != owner else ():
                # bitsandbytes puts another class in the place of a linear map, torchao another kind
                # of tensor into it
                if isinstance(module, nn.Linear) and (type(module), type(module.weight.data)) != (
                    nn.Linear,
                    torch.Tensor,
                ):
                    yield slot, name, module

    @classmethod
    def _load_pretrained_model(cls, model: Any, *args: Any, **kwargs: Any) -> Any:
        # of tensors that are converted when they are read (experts), accelerate would look for a
        # copy per slot on disk
        result = super()._load_pretrained_model(model, *args, **kwargs)
        if isinstance(result, tuple) and isinstance(index := result[-1], dict):
            index.update(
                {
                    name: index[owner]
                    for name, owner in model.all_tied_weights_keys.items()
                    if owner in index
                }
            )
        return result

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save as the base class does, every layer once; but refuse what could not be loaded
        again."""
        if any(self._shared_quantised()):
            raise ValueError(
                "model: quantised layers that run more than once cannot be saved; save it "
                "before, or fold it"
            )
        if hasattr(self, "hf_device_map") and kwargs.get("state_dict") is None and len(args) < 3:
            # tensors that are on disk do not look shared
            kwargs["state_dict"] = {
                k: v for k, v in self.state_dict().items() if k not in self.all_tied_weights_keys
            }
        return super().save_pretrained(*args, **kwargs)

    def unshare(self) -> None:
        """Give every slot tensors of its own, in place; the path then names the layers anew, as
        those of one source.

        For whatever changes the weights of single hops, such as merging the LoRA adapters of a
        layer that runs twice.

        Raises:
            ValueError: Layers that run more than once are quantised.
        """
        if any(self._shared_quantised()):
            raise ValueError("model: quantised layers that run more than once cannot be separated")
        taken: set[int] = set()
        for layer in self.layers:
            places: list[Any] = [
                place
                for module in layer.modules()
                for place in (module._parameters, module._buffers)
            ]
            for tensors in places:
                tensors.update(
                    {
                        name: copy.deepcopy(tensor)
                        for name, tensor in tensors.items()
                        if id(tensor) in taken
                    }
                )
            taken.update(
                id(tensor)
                for tensors in places
                for tensor in tensors.values()
                if tensor is not None
            )
        self.config.separate()
        self._tied_weights_keys = {}
        inside = f"{self._layers_name}."
        self.all_tied_weights_keys = {
            k: v for k, v in self.all_tied_weights_keys.items() if not k.startswith(inside)
        }

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """The tied tensors of the slots, whether or not the embeddings are tied too."""
        if all_submodels:
            return super().get_expanded_tied_weights_keys(all_submodels=True)
        prefix = self._layers_name
        layers = self.layers
        tied = {}
        names = {
            owner: list(layers[owner].state_dict(keep_vars=True))
            for owner in set(self.config.owners)
        }
        for slot, owner in enumerate(self.config.owners):
            if slot != owner:
                tied.update(
                    {f"{prefix}.{slot}.{name}": f"{prefix}.{owner}.{name}" for name in names[owner]}
                )
        return tied

    def mark_tied_weights_as_initialized(self, loading_info: Any) -> None:
        """Mark tied buffers as well as tied parameters, but nothing that the checkpoint lacks
        altogether.

        A slot and its owner are one tensor until the weights are loaded: a mark would hide that the
        owner's are missing.
        """
        tied = self.all_tied_weights_keys
        there = {
            name: owner for name, owner in tied.items() if owner not in loading_info.missing_keys
        }
        buffers = {name for name, _ in self.named_buffers(remove_duplicate=False)} & there.keys()
        missing = buffers & set(loading_info.missing_keys)
        for name in buffers:
            setattr(self.get_buffer(name), "_is_hf_initialized", True)  # noqa: B010 (transformers' mark on a tensor)
        self.all_tied_weights_keys = {
            name: owner for name, owner in there.items() if name not in buffers
        }
        try:
            super().mark_tied_weights_as_initialized(loading_info)
        finally:
            self.all_tied_weights_keys = tied
            loading_info.missing_keys = {*loading_info.missing_keys, *missing}

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize embeddings and head as the base class does, for the source class too: some compute
        the loss with its size."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if hasattr(self.inner, "vocab_size"):
            self.inner.vocab_size = embeddings.weight.shape[0]
        return embeddings

    def _adjust_bias(self, output_embeddings: nn.Module, input_embeddings: Any) -> None:
        # the inherited tying cuts biases to the size of a vocabulary, which is right for a head
        # only
        if output_embeddings is self.get_output_embeddings():
            super()._adjust_bias(output_embeddings, input_embeddings)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # the source class decides

    def init_weights(self) -> None:
        """Initialise and tie, unless the weights are another model's."""
        if not self._assembled:
            super().init_weights()

    def initialize_weights(self) -> None:
        """Let the source class initialise what the checkpoint lacks, in the further terms of sums
        as well."""
        layers = self.get_submodule(self._layers_name)
        with layers.whole() if isinstance(layers, HopList) else nullcontext():
            super().initialize_weights()

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: the modules are transformers' own, and initialise only tensors that were not
        loaded.

        Of custom code, transformers skips modules without tensors of their own; some of these fill
        the buffers of their layers.
        """
        return False

    def get_input_embeddings(self) -> nn.Module:
        """The source class's token embeddings."""
        return self.inner.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.inner.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run the path; arguments and output are those of the source architecture's class."""
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "cache": cache,
            "inputs_embeds": inputs_embeds,
            "past_key_values": past_key_values,
        }
        return self.inner(
            **known_arguments(self.config, self._known_arguments, {**given, **kwargs})
        )


class EvoMergedModel(EvoMergedPreTrainedModel):
    """The merged model without head: its output is the last hidden state.

    Example:
        >>> type(EvoMergedModel.from_pretrained("my-search/model").config).__name__
        'EvoMergedConfig'
    """


class _WithLabels(EvoMergedPreTrainedModel):
    """The merged model with the source architecture's own head for labels, which begins random
    where it is not stored."""

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        labels: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run the path and the head; arguments and output are those of the source architecture's
        class."""
        return super().forward(input_ids, attention_mask, labels=labels, **kwargs)


class EvoMergedForSequenceClassification(_WithLabels):
    """The merged model with a head that labels texts."""

    _classes = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


class EvoMergedForTokenClassification(_WithLabels):
    """The merged model with a head that labels tokens."""

    _classes = auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING


class EvoMergedForQuestionAnswering(EvoMergedPreTrainedModel):
    """The merged model with a head that marks where in a text the answer begins and ends."""

    _classes = auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        start_positions: Any = None,
        end_positions: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run the path and the head; arguments and output are those of the source architecture's
        class."""
        return super().forward(
            input_ids,
            attention_mask,
            start_positions=start_positions,
            end_positions=end_positions,
            **kwargs,
        )


class EvoMergedForCausalLM(EvoMergedPreTrainedModel, GenerationMixin):
    """The merged model: an ordinary causal language model whose layers are the path.

    Example:
        >>> model = EvoMergedForCausalLM.from_pretrained("my-search/model")
        >>> len(model.config.scales) == len(model.config.path)
        True
    """

    _classes = None
    model: PreTrainedModel

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run the path; arguments and output are those of the source architecture's causal language
        model."""
        kwargs |= {
            "labels": labels,
            "logits_to_keep": logits_to_keep,
            "past_key_values": past_key_values,
        }
        return super().forward(
            input_ids, attention_mask, position_ids, cache, inputs_embeds, **kwargs
        )

    def get_output_embeddings(self) -> nn.Module | None:
        """The source class's head."""
        return self.inner.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the head."""
        self.inner.set_output_embeddings(value)

    def get_decoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The source class's model without head."""
        return self.inner.get_decoder(*args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        *args: Any,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare one step of generation as the source class does."""
        # generate() asks for `inputs_embeds` by name; a source class that does not know it would go
        # on without it
        if inputs_embeds is not None:
            kwargs["inputs_embeds"] = inputs_embeds
            if (
                "inputs_embeds"
                not in inspect.signature(self.inner.prepare_inputs_for_generation).parameters
            ):
                raise ValueError(
                    f"inputs_embeds: {type(self.inner).__name__} cannot generate from "
                    "embeddings; give input_ids"
                )
        return self.inner.prepare_inputs_for_generation(input_ids, *args, **kwargs)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        self.inner._validate_model_kwargs(model_kwargs)

    def _supports_default_dynamic_cache(self) -> bool:  # type: ignore[override]
        return type(self.inner)._supports_default_dynamic_cache()

    def with_path(
        self, path: Any, scales: Sequence[float] | None = None, *, scale_target: str | None = None
    ) -> "EvoMergedForCausalLM":
        """A model that takes another path through the same parameters; nothing is copied.

        Args:
            path: One string per hop, such as `["0:0", "0:1*0.5 + 1:1*0.5"]`, through layers that
                are part of this model. One string with commas between the hops, and an object with
                `as_text()` and `scales`, do as well.
            scales: One number per hop; all 1 by default.
            scale_target: `"stream"` or `"mlp_delta"`; this model's by default.

        Raises:
            ValueError: The path cannot be read, or runs a layer that is not part of this model.
        """
        if hasattr(path, "as_text"):
            scales = path.scales if scales is None else scales
            path = path.as_text()
        hops = [hop.strip() for hop in path.split(",")] if isinstance(path, str) else list(path)
        config = self.config.rerouted(hops, scales, scale_target=scale_target)
        model = assemble(self.inner, dict(zip(self.config.slots, self.layers, strict=True)), config)
        for name in {"is_quantized", "quantization_method", "hf_quantizer"} & vars(self).keys():
            setattr(model, name, getattr(self, name))
        return model


class EvoMergedForImageTextToText(EvoMergedForCausalLM):
    """A vision-language model the layers of whose language model are the path; all else is that
    model's.

    Example:
        >>> model = EvoMergedForImageTextToText.from_pretrained("my-search/model")
        >>> # layers of its language model
        >>> len(model.layers) == model.get_decoder().config.num_hidden_layers
        True
    """

    def __getattr__(self, name: str) -> Any:
        """What only the source class can, such as `get_image_features`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "_inner_name" not in vars(self):
                raise
            return getattr(self.inner, name)

    def get_encoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The source class's vision tower, or what else it has beside the language model."""
        return self.inner.get_encoder(*args, **kwargs)


def _as_inside(name: str) -> Any:
    def step(self: EvoMergedForImageTextToText, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.inner, name)(*args, **kwargs)

    return step


for _name in _GENERATION_STEPS:
    if hasattr(GenerationMixin, _name):
        setattr(EvoMergedForImageTextToText, _name, _as_inside(_name))


def merged_class(config: EvoMergedConfig) -> type[EvoMergedForCausalLM]:
    """The class of a merged model with a head."""
    return EvoMergedForImageTextToText if config.has_parts else EvoMergedForCausalLM


def assemble(
    shell: PreTrainedModel, layers: Mapping[tuple[int, int], nn.Module], config: EvoMergedConfig
) -> EvoMergedForCausalLM:
    """Make a merged model over the parameters of other models; nothing is copied.

    Args:
        shell: The source architecture's causal language model that gives embeddings, final norm and
            head.
        layers: The resident layer of each `(source, layer)` of the path.
        config: The configuration of the merged model.
    """
    text_config = config.text_config
    slots = nn.ModuleList(
        [
            copy_structure(layers[layer], text_config, slot, {})
            for slot, layer in enumerate(config.slots)
        ]
    )
    inner = copy_structure(shell, text_config, None, {id(decoder_layers(shell)): slots})
    model = merged_class(config)(config, inner=inner)  # type: ignore[arg-type]
    model.generation_config = copy.deepcopy(shell.generation_config)
    return model.train(shell.training)


CLASSES: tuple[type[EvoMergedPreTrainedModel], ...] = (
    EvoMergedModel,
    EvoMergedForCausalLM,
    EvoMergedForImageTextToText,
    EvoMergedForSequenceClassification,
    EvoMergedForTokenClassification,
    EvoMergedForQuestionAnswering,
)
for _class in CLASSES:
    _class._auto_class = _class.__name__.replace(
        "EvoMerged", "Auto" if _class is EvoMergedModel else "AutoModel"
    )

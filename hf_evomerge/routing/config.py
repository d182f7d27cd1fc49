"""The config of a path over checkpoints, and whether there is one: every refusal of sources or path
is made here.

Used before a search, by the pool of resident layers, and by what is built on disk, so that all
three refuse alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..checkpoints.compatibility import HAS_A_PATH
from ..checkpoints.quantized import check_quantization
from ..errors import PathError, SourceError, told
from ..recipes.recipe import FlowPart

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ..modeling import EvoMergedConfig


def check_configs(
    configs: Sequence[PretrainedConfig],
    embedding_source: int = 0,
    *,
    names: Sequence[object] | None = None,
    anywhere: bool = False,
) -> None:
    """Raise `SourceError` unless layers of these models can run in one model.

    Args:
        configs: The config of each source.
        embedding_source: The source of the embeddings, the final norm and the head. Where it is a
            vision-language model, so is the result, and others may be plain language models.
        names: What to call the sources in the message; their numbers where absent.
        anywhere: Whether each layer must compute the same in any place of a path, since a search
            tries them all.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    from ..modeling import check_alike
    from ..modeling.modeling_evo_merged import source_class
    from ..modeling.origins import check_rearrangeable
    from ..modeling.sources_evo_merged import decoder_of

    # `check_alike` refuses another
    first = configs[embedding_source] if 0 <= embedding_source < len(configs) else configs[0]
    sees = decoder_of(first) is not first  # then its class runs the layers of all
    for number, config in enumerate(configs):
        called = f"source {number}" if names is None else str(names[number])
        if config.model_type == "evo_merged":
            raise SourceError(f"{called}: {HAS_A_PATH}")
        if (
            getattr(config, "is_decoder", None) is False
            and type(config) in MODEL_FOR_MASKED_LM_MAPPING
        ):
            raise SourceError(
                f"{called}: {config.model_type!r} is an encoder (is_decoder is false), whose "
                "layers see a whole text at once; "
                "a path needs layers that see what came before"
            )
        check_quantization(config, called, "rearranged")
        with told(SourceError, ValueError, f"{called}: "):
            source_class(first if sees else config)
    with told(SourceError, ValueError):
        check_alike(configs, embedding_source)
        if anywhere:
            check_rearrangeable(
                [config for config in configs if not sees or decoder_of(config) is not config]
            )


def path_config(
    configs: Sequence[PretrainedConfig],
    flow: FlowPart,
    *,
    sources: Sequence[dict[str, Any]] | None = None,
    anywhere: bool = False,
) -> EvoMergedConfig:
    """The config of the model that takes a path; the sources have passed `check_configs`.

    Args:
        configs: The config of each source.
        flow: The path, its scales and what they multiply, and the source of the embeddings.
        sources: What the result's config says of each source, such as its ``model``.
        anywhere: It is known that every layer computes the same in any place; otherwise this path
            is checked.

    Raises:
        PathError: The path names a layer that is not there, or cannot run as asked.
    """
    from ..modeling import EvoMergedConfig
    from ..modeling.blocks_evo_merged import check_scale_target

    path = flow.to_path()
    with told(PathError, ValueError):
        config = EvoMergedConfig.from_sources(
            configs,
            path.as_text(),
            path.scales,
            scale_target=flow.scale_target,
            embedding_source=flow.embedding_source,
            sources=sources,
            checked=anywhere,
        )
        check_scale_target(config)
    return config

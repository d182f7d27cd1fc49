"""The resident layers of all sources, and merged models made over them in milliseconds without
copying a weight.

Knows modules. Does not know where a path comes from; what a path computes is in
``hf_evomerge/modeling``.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from ..errors import PathError, SourceError, told
from ..modeling import EvoMergedForCausalLM, EvoMergedPreTrainedModel
from ..modeling.layers_evo_merged import decoder_layers
from ..modeling.modeling_evo_merged import assemble
from ..recipes.layer_path import LayerPath
from ..recipes.recipe import FlowPart, ScaleTarget
from .config import check_configs, path_config


# A path is evaluated without copying a weight: a merged model is a thin module per hop over the
# sources' own parameters. What is checked once here need not be checked for each path: that the
# models are of one class, dtype and device, and that no forward is replaced, as a wrapper of one
# model would run for another's layers. Where every layer computes the same in any place, paths are
# not checked either (`anywhere`).
class LayerPool:
    """The layers of several resident models of one class, from which merged models are made.

    Merged models refer to the sources' own parameters: a change made in place to a source is seen
    by all of them.

    Args:
        models: The sources, plain causal or vision-language models; their numbers of layers may
            differ. Numbered in this order.
        embedding_source: The source of the embeddings, the final norm and the head.

    Raises:
        SourceError: The layers of these models cannot run in one model.

    Example:
        >>> pool = LayerPool([japanese, maths])
        >>> merged = pool.model(LayerPath.parse("0:0-15, 1:8-23, 0:24-31"))
    """

    def __init__(self, models: Sequence[PreTrainedModel], embedding_source: int = 0) -> None:
        self.models = list(models)
        self.embedding_source = embedding_source
        for position, model in enumerate(self.models):
            if isinstance(model, EvoMergedPreTrainedModel) or not isinstance(
                model, PreTrainedModel
            ):
                raise SourceError(
                    f"source {position}: {type(model).__name__} is not a plain language model"
                )
        check_configs([model.config for model in self.models], embedding_source)
        with told(SourceError, ValueError):
            self._layers = {
                (source, index): layer
                for source, model in enumerate(self.models)
                for index, layer in enumerate(decoder_layers(model).children())
            }
        self._anywhere = self._may_stand_anywhere()
        first = self.models[embedding_source]
        for position, model in enumerate(self.models):
            if (
                type(model) is not type(first)
                or model.dtype != first.dtype
                or model.device != first.device
            ):
                raise SourceError(
                    f"source {position}: {type(model).__name__} in {model.dtype} on "
                    f"{model.device}, but source "
                    f"{embedding_source} is {type(first).__name__} in {first.dtype} on "
                    f"{first.device}; load all sources alike"
                )

    def _may_stand_anywhere(self) -> bool:
        """Tell whether every layer computes the same in any place, so that no path needs to be
        checked."""
        try:
            check_configs(
                [model.config for model in self.models], self.embedding_source, anywhere=True
            )
        except SourceError:
            return False
        return True

    def model(self, path: LayerPath, scale_target: ScaleTarget = "stream") -> EvoMergedForCausalLM:
        """The merged model that takes this path, in eval mode.

        Args:
            path: Which layers run, with their scales.
            scale_target: What a scale multiplies, as in `EvoMergedConfig`.

        Raises:
            PathError: The path names a layer that is not there, or cannot run as asked.
        """
        flow = FlowPart(
            path=path.as_text(),
            scales=path.scales,
            scale_target=scale_target,
            embedding_source=self.embedding_source,
        )
        names = [{"model": model.config.name_or_path} for model in self.models]
        config = path_config(
            [model.config for model in self.models], flow, sources=names, anywhere=self._anywhere
        )
        with told(PathError, ValueError):
            return assemble(self.models[self.embedding_source], self._layers, config).eval()

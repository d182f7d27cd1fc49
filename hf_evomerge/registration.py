"""Makes transformers' Auto classes know the merged model, without importing transformers or the
model before they are used.

`AutoConfig` looks model types up in `CONFIG_MAPPING`; there stands a class that fetches the real
one, and with it the model classes, when the first configuration is made. If transformers is not
imported yet, this waits for its import, by a finder in `sys.meta_path`. Nothing plainer does:
importing transformers here takes seconds, transformers reads no entry points, and
`importlib.util.LazyLoader` delays an import but tells nobody when it has happened.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AUTO_CONFIG = "transformers.models.auto.configuration_auto"
MODEL_TYPE = "evo_merged"


class EvoMergedConfig:
    """Stands for the configuration class of this name until the first configuration is made."""

    model_type = MODEL_TYPE

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        """Make a configuration of the real class."""
        return _real()(*arguments, **keywords)

    @classmethod
    def from_dict(cls, *arguments: Any, **keywords: Any) -> Any:
        """Make a configuration of the real class, as `AutoConfig.from_pretrained` does."""
        return _real().from_dict(*arguments, **keywords)


def register_lazily() -> None:
    """Register the stand-in: now if transformers' `AutoConfig` is imported, otherwise as soon as it
    is."""
    if AUTO_CONFIG in sys.modules:
        _register(
            import_module(AUTO_CONFIG)
        )  # waits where another thread is half-way through importing it
    else:
        sys.meta_path.insert(0, _WhenImported())


def _real() -> Any:
    from . import modeling  # importing it registers the real classes

    return modeling.EvoMergedConfig


def _register(auto_config: ModuleType) -> None:
    if MODEL_TYPE not in auto_config.CONFIG_MAPPING:
        auto_config.CONFIG_MAPPING.register(MODEL_TYPE, EvoMergedConfig)


class _WhenImported:
    """A finder for `sys.meta_path`: finds one module as the other finders do, and registers after
    it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO_CONFIG:
            return None
        found = (
            finder.find_spec(fullname, path, target)
            for finder in sys.meta_path
            if finder is not self
        )
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            usual = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                usual(module)
                _register(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

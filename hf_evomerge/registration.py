"""Registers the merged model with transformers' Auto classes at the moment these are first used, and not before.

``import hf_evomerge`` is to take milliseconds, transformers and torch take seconds. So the imports of the two modules that hold
the Auto classes are watched: the model is registered right after the one with the model classes, and where only `AutoConfig` is
imported, when it is first asked for a configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

AUTO_CLASSES = "transformers.models.auto.modeling_auto"
AUTO_CONFIG = "transformers.models.auto.configuration_auto"


def register_when_imported() -> None:
    """Register now where the Auto classes are imported already, otherwise when they are."""
    if AUTO_CLASSES in sys.modules:
        _register()
        return
    if AUTO_CONFIG in sys.modules:
        _register_when_asked(sys.modules[AUTO_CONFIG])
    sys.meta_path.insert(0, _Watcher())


def _register() -> None:
    from . import modeling  # noqa: F401 - importing it registers


def _register_when_asked(module: ModuleType) -> None:
    """Let `AutoConfig.from_pretrained` register before it works for the first time.

    Registering as soon as `AutoConfig` is imported would not do: transformers imports it while its model classes, which ours
    needs, are half imported.
    """
    auto_config: Any = module.AutoConfig
    usual = vars(auto_config)["from_pretrained"]

    @wraps(usual.__func__)
    def from_pretrained(cls: Any, *arguments: Any, **keywords: Any) -> Any:
        auto_config.from_pretrained = usual
        _register()
        return cls.from_pretrained(*arguments, **keywords)

    auto_config.from_pretrained = classmethod(from_pretrained)


class _Watcher(MetaPathFinder):
    """Hands out the usual modules, with a loader that sees to the registration after it."""

    def __init__(self) -> None:
        self._looking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in (AUTO_CLASSES, AUTO_CONFIG) or self._looking:
            return None
        self._looking = True
        try:
            spec = find_spec(fullname)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    """Loads with another loader, then registers."""

    def __init__(self, usual: Loader) -> None:
        self._usual = usual

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._usual.exec_module(module)
        if module.__name__ == AUTO_CONFIG:
            _register_when_asked(module)
        else:
            sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Watcher)]
            _register()

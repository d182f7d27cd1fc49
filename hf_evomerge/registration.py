"""Registers the merged model with transformers' Auto classes at the moment these are first imported, and not before.

``import hf_evomerge`` is to take milliseconds, transformers and torch take seconds. So the import of the module that holds the
Auto classes is watched, and the model is registered right after it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

AUTO_CLASSES = "transformers.models.auto.modeling_auto"


def register_when_imported() -> None:
    """Register now where the Auto classes are imported already, otherwise when they are."""
    if AUTO_CLASSES in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Watcher())


def _register() -> None:
    from . import modeling  # noqa: F401 - importing it registers


class _Watcher(MetaPathFinder):
    """Hands out the usual module, with a loader that registers after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO_CLASSES:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
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
        _register()

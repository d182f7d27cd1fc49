"""The names that ``import hf_evomerge`` offers: all there, all described, all found by tab
completion and type checkers."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import hf_evomerge
from hf_evomerge import merging


def _imports_for_type_checkers():
    """The (module, name) pairs that the package imports under TYPE_CHECKING, each exported under
    its own name."""
    tree = ast.parse(Path(hf_evomerge.__file__).read_text(encoding="utf-8"))
    guarded = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    found = set()
    for node in guarded.body:
        for alias in node.names:
            assert alias.asname == alias.name, "for type checkers only `import A as A` is public"
            found.add((node.module, alias.name))
    return found


def test_one_list_of_names():
    """Tab completion, ``import *``, type checkers and the lazy imports know the same names."""
    lazy = {(home, name) for home, names in hf_evomerge._HOMES.items() for name in names}
    assert _imports_for_type_checkers() == lazy
    assert hf_evomerge.__all__ == sorted(name for _, name in lazy)
    assert dir(hf_evomerge) == sorted([*hf_evomerge.__all__, "__version__", "merging"])


def test_the_merge_methods_are_an_attribute():
    """`hf_evomerge.merging` needs no import of its own, and shows the methods and what else is
    public, and no module inside."""
    code = "import hf_evomerge; print(hf_evomerge.merging.ties.__name__, *dir(hf_evomerge.merging))"
    shown = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert shown == ["ties", *sorted(merging.__all__)]
    assert "register_method" in shown
    assert not {"annotations", "functions", "registry", "methods", "TYPE_CHECKING"} & set(shown)


@pytest.mark.parametrize("name", hf_evomerge.__all__)
def test_every_public_name_is_described(name):
    """A public name is what it is called, and says more than one line: arguments, attributes,
    fields or an example."""
    value = getattr(hf_evomerge, name)
    assert value.__name__ == name
    text = inspect.getdoc(value) or ""
    if fields := getattr(value, "model_fields", None):
        assert all(field.description for field in fields.values()), fields
    elif not (inspect.isclass(value) and issubclass(value, Exception)):
        assert any(f"{part}:" in text for part in ("Args", "Attributes", "Example")), text


def test_an_unknown_name_is_an_attribute_error():
    """A name that is not offered is an AttributeError that names it."""
    with pytest.raises(AttributeError, match="no attribute 'evolve'"):
        hf_evomerge.evolve  # noqa: B018

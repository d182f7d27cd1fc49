"""Adapters of the tiny family's base, for searches over them."""

import pytest
from tiny_adapters import save_adapter


@pytest.fixture(scope="session")
def adapters(tiny, made_once):
    """Sources and base of a search over two adapters of the tiny base."""
    ranks = {"ja": 2, "maths": 3}
    base = tiny / "base"
    folder = made_once(
        "adapters",
        lambda out: [save_adapter(base, out / name, rank, r=rank) for name, rank in ranks.items()],
    )
    sources = [{"model": str(base), "adapter": str(folder / name)} for name in ranks]
    return {"sources": sources, "base": {"model": str(base)}}

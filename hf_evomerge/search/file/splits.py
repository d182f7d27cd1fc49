"""Names of splits: the search's own, ``retain:NAME`` of retained data, ``objective:NAME:SPLIT`` of
an objective's own."""

SPLITS = ("search", "validation", "test")
RETAINED = "retain:"


def objective_split(name: str, split: str) -> str:
    """The split that holds an objective's own examples in place of one of the search's."""
    return f"objective:{name}:{split}"


def objective_of(split: str) -> str:
    """The name of the objective whose examples a split holds; empty for other splits."""
    return split.split(":")[1] if split.startswith("objective:") else ""

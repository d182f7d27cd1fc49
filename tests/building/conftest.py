"""The tiny parents of the merge tests."""

from merge_fixtures import built, family, half_family, load, make_recipe, open_all  # noqa: F401

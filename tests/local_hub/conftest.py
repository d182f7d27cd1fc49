"""A hub on loopback for each test that asks for one."""

from hub_fixtures import connect, hub, waits  # noqa: F401
from hub_fixtures import lfs_api as api  # noqa: F401

"""A hub on loopback for each test that asks for one."""

from hub_fixtures import connect, hub, lfs_api, no_waiting, program  # noqa: F401
from merge_fixtures import built  # noqa: F401

"""A hub on loopback for each test that asks for one."""

from hub_fixtures import api, connect, hub, lfs_api, program, visitor, waits  # noqa: F401

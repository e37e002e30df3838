"""A group over TCP that remote clients ask, and what cuts them off from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ondisk import Cluster, RemoteClient, TcpNetwork, connect
from ondisk.net.addresses import format_address
from tests.tcp import SECRET, free_addresses


class Group:
    """Three replicas in this process, which are asked over TCP only."""

    def __init__(self, directory: Path) -> None:
        addresses = free_addresses(3)
        self.endpoints = {member: format_address(address) for member, address in addresses.items()}
        self.addresses = addresses
        self.cluster = Cluster(directory, network=TcpNetwork(addresses, secret=SECRET))
        self.cluster.wait_for_leader()
        with self.connect() as client:  # from now on the replicas have all their threads
            for member in addresses:
                client.get("k", via=member, timeout=20)

    def connect(self, *members: int) -> RemoteClient:
        """A client of all replicas, or of these."""
        return connect([self.endpoints[member] for member in members or (1, 2, 3)], secret=SECRET)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """One for all tests of a file: each uses keys of its own."""
    group = Group(tmp_path_factory.mktemp("group"))
    yield group
    group.cluster.close()


@pytest.fixture
def client(group: Group) -> Iterator[RemoteClient]:
    """A client of all three."""
    with group.connect() as client:
        yield client

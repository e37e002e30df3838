"""What a person may do to the directories of a cluster, and what the next ``Cluster`` makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from ondisk import Cluster, import_snapshot
from ondisk.errors import ConfigurationError, Corrupt, NoLeader, Rejected, ReplicaStopped, StorageError
from ondisk.net.endpoint import Endpoint
from ondisk.net.tcp import TcpNetwork
from tests.proxy import Proxy
from tests.tcp import free_addresses
from tests.waiting import wait_until


def fill(cluster: Cluster, count: int = 5, value: str = "v") -> None:
    for number in range(count):
        cluster.put(f"k{number}", value, timeout=10)
    wait_until(lambda: len({status.applied_index for status in cluster.status().values()}) == 1)


@pytest.mark.parametrize("others", [[1], [1, 2], [2, 3, 4], [1, 2, 3, 4]])
def test_other_members_than_the_directories_know_are_refused_with_both_lists(
    make_cluster: Callable[..., Cluster], others: list[int]
) -> None:
    fill(make_cluster())
    make_cluster().close()
    with pytest.raises(ConfigurationError) as caught:
        make_cluster(members=others)
    assert str(others) in str(caught.value) and "[1, 2, 3]" in str(caught.value)
    fill(make_cluster(members=[3, 2, 1]), value="w")


def test_members_that_have_no_directory_are_not_opened_beside_a_group(
    make_cluster: Callable[..., Cluster],
) -> None:
    fill(make_cluster())
    make_cluster().close()
    with pytest.raises(ConfigurationError, match=r"holds replicas \[1, 2, 3\]"):
        make_cluster(members=[7, 8, 9])


def test_the_directories_know_the_members_also_when_all_the_first_ones_are_gone(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """Three were added, the first three removed, and their directories deleted."""
    cluster = make_cluster()
    fill(cluster)
    for member in (4, 5, 6):
        cluster.add_replica(member)
    for member in (1, 2, 3):
        cluster.remove_replica(member)
    cluster.put("b", "2")
    cluster.close()
    for member in (1, 2, 3):
        shutil.rmtree(tmp_path / "data" / f"replica-{member}")
    again = make_cluster()
    assert again.members == (4, 5, 6)
    assert again.get("b", timeout=10) == b"2"
    assert sorted(folder.name for folder in (tmp_path / "data").iterdir()) == [
        "replica-4",
        "replica-5",
        "replica-6",
    ]


def test_a_directory_that_was_put_in_from_another_group_is_not_served(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """Its status names both groups; the others serve; and it can be rebuilt."""
    for name in "AB":
        cluster = make_cluster(name)
        fill(cluster, value=name)
        cluster.close()
    shutil.rmtree(tmp_path / "A" / "replica-3")
    shutil.copytree(tmp_path / "B" / "replica-3", tmp_path / "A" / "replica-3")
    cluster = make_cluster("A")
    cluster.put("new", "1", timeout=10)
    assert cluster.status()[3].role == "failed"
    error = cluster.status()[3].error or ""
    assert cluster.status()[1].group[:8] in error and "[3]" in error
    with pytest.raises(ReplicaStopped):
        cluster.stale_get("k1", via=3)
    assert [cluster.get("k1", via=via) for via in (1, 2)] == [b"A", b"A"]
    cluster.rebuild(3)
    assert cluster.get("k1", via=3) == b"A"


def test_swapped_directories_are_refused_and_good_again_when_swapped_back(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    fill(make_cluster())
    make_cluster().close()
    data = tmp_path / "data"

    def swap() -> None:
        (data / "replica-1").rename(data / "aside")
        (data / "replica-2").rename(data / "replica-1")
        (data / "aside").rename(data / "replica-2")

    swap()
    with pytest.raises(ConfigurationError, match=r"belongs to replica 2 .* opened for replica 1"):
        make_cluster()
    swap()
    assert make_cluster().get("k1", timeout=10) == b"v"


@pytest.mark.parametrize("lost", [(1,), (3,), (1, 2), (2, 3)])
def test_lost_directories_found_no_group_beside_what_is_left(
    make_cluster: Callable[..., Cluster], tmp_path: Path, lost: tuple[int, ...]
) -> None:
    """One of three: it catches up. Two of three: nobody may decide, and what is left is not overwritten."""
    cluster = make_cluster()
    fill(cluster)
    group = cluster.status()[1].group
    cluster.close()
    for member in lost:
        shutil.rmtree(tmp_path / "data" / f"replica-{member}")
    cluster = make_cluster()
    assert cluster.members == (1, 2, 3)
    if len(lost) == 1:
        wait_until(lambda: {status.group for status in cluster.status().values()} == {group}, 30)
        assert [cluster.get("k1", via=via, timeout=10) for via in (1, 2, 3)] == [b"v"] * 3
        return
    with pytest.raises(NoLeader):
        cluster.get("k1", timeout=5)
    (left,) = {1, 2, 3} - {*lost}
    assert cluster.stale_get("k1", via=left) == b"v"
    assert all("is disk" in (cluster.status()[member].error or "") for member in lost)
    backup = cluster.export_snapshot(left, tmp_path / "backup")
    cluster.close()
    import_snapshot(backup.path, tmp_path / "data")  # a person decides
    assert make_cluster().get("k1", timeout=10) == b"v"


@pytest.mark.parametrize("file", ["state/current", "log/rocksdb/CURRENT"])
def test_a_cluster_opens_with_one_damaged_replica_which_can_be_rebuilt(
    make_cluster: Callable[..., Cluster], tmp_path: Path, file: str
) -> None:
    fill(make_cluster())
    make_cluster().close()
    (tmp_path / "data" / "replica-3" / file).write_bytes(b"")
    cluster = make_cluster()
    assert cluster.get("k1", timeout=10) == b"v"
    failed = cluster.status()[3]
    assert failed.role == "failed" and failed.error is not None
    assert "replica-3" in failed.error and "What to do: cluster.rebuild(3)" in failed.error
    cluster.rebuild(3)
    assert cluster.get("k1", via=3) == b"v"
    assert cluster.status()[3].voters == (1, 2, 3)


def test_a_cluster_of_which_nothing_can_be_opened_says_so(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    fill(make_cluster())
    make_cluster().close()
    for member in (1, 2, 3):
        (tmp_path / "data" / f"replica-{member}" / "state" / "current").write_bytes(b"")
    with pytest.raises(Corrupt):
        make_cluster()


def test_rebuilding_the_only_member_deletes_nothing(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster(members=[1])
    fill(cluster)
    with pytest.raises(ConfigurationError, match="Nothing was deleted"):
        cluster.rebuild(1)
    assert cluster.get("k1") == b"v"


def test_rebuilding_asks_the_others_first_and_deletes_nothing_without_a_majority_of_them(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """Another one is down: without it and the one to be rebuilt nobody could lead."""
    cluster = make_cluster()
    fill(cluster)
    leader = cluster.wait_for_leader()
    down, victim = (member for member in (1, 2, 3) if member != leader)
    cluster.stop(down)
    with pytest.raises(Rejected, match=f"{down}.* did not answer"):
        cluster.rebuild(victim)
    assert cluster.get("k1", via=victim, timeout=10) == b"v"
    cluster.put("on", "1", timeout=10)
    cluster.start(down)
    cluster.rebuild(victim)
    assert cluster.get("k1", via=victim) == b"v"


@pytest.mark.parametrize("runs", [True, False], ids=["it runs", "it is stopped"])
@pytest.mark.parametrize("cut", ["both ways", "there", "back"])
def test_rebuilding_a_replica_that_is_cut_off_deletes_nothing(
    make_cluster: Callable[..., Cluster], cut: str, runs: bool
) -> None:
    """The others are there and would agree, but it could not catch up from them."""
    cluster = make_cluster()
    fill(cluster)
    leader = cluster.wait_for_leader()
    victim = leader % 3 + 1
    before = cluster.status()[victim].disk
    pairs = {(victim, other) for other in {1, 2, 3} - {victim}} if cut != "back" else set()
    if cut != "there":
        pairs |= {(other, victim) for other in {1, 2, 3} - {victim}}
    cluster.network.cut(*pairs)
    if not runs:
        cluster.stop(victim)
    with pytest.raises(Rejected, match="Nothing was deleted"):
        cluster.rebuild(victim, timeout=1)
    assert victim in cluster.status()[leader].voters
    cluster.network.heal()
    cluster.start(victim)
    assert cluster.get("k1", via=victim, timeout=10) == b"v"
    assert cluster.status()[victim].disk == before
    cluster.rebuild(victim)
    assert cluster.get("k1", via=victim) == b"v"
    assert cluster.status()[victim].disk != before


def test_rebuilding_a_leader_that_has_just_been_cut_off_deletes_nothing(
    make_cluster: Callable[..., Cluster],
) -> None:
    """It takes itself for the leader still, and the others will elect another one meanwhile."""
    cluster = make_cluster()
    fill(cluster)
    victim = cluster.wait_for_leader()
    before = cluster.status()[victim].disk
    cluster.network.isolate(victim)
    with pytest.raises(Rejected, match="Nothing was deleted"):
        cluster.rebuild(victim, timeout=1)
    cluster.network.heal()
    assert cluster.get("k1", via=victim, timeout=10) == b"v"
    assert cluster.status()[victim].disk == before


def test_a_directory_that_was_imported_into_by_mistake_is_rebuilt_while_it_runs(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """It is in no group and has nothing to read: it is asked like one that is stopped."""
    cluster = make_cluster()
    fill(cluster)
    victim = cluster.wait_for_leader() % 3 + 1
    backup = cluster.export_snapshot(victim, tmp_path / "backup")
    cluster.stop(victim)
    import_snapshot(backup.path, tmp_path / "data", replica_ids=[victim])
    cluster.start(victim)
    cluster.network.isolate(victim)
    with pytest.raises(Rejected, match="Nothing was deleted"):
        cluster.rebuild(victim, timeout=1)
    assert cluster.status()[victim].running
    cluster.network.heal()
    cluster.rebuild(victim)
    assert cluster.get("k1", via=victim) == b"v"


class Proxied:
    """A network over TCP on which each replica calls each other one through a line of its own."""

    def __init__(self, stack: ExitStack) -> None:
        addresses = free_addresses(3)
        self.lines = {
            (caller, called): stack.enter_context(Proxy(addresses[called]))
            for caller in addresses
            for called in addresses
            if caller != called
        }
        self._networks = {
            replica: TcpNetwork(
                {
                    other: addresses[other] if other == replica else self.lines[replica, other].address
                    for other in addresses
                }
            )
            for replica in addresses
        }

    def attach(self, replica_id: int) -> Endpoint:
        return self._networks[replica_id].attach(replica_id)

    def cut(self, replica_id: int, *, off: bool = True) -> None:
        for pair, line in self.lines.items():
            if replica_id in pair:
                line.there.cut = line.back.cut = off
                if not off:
                    line.heal()


@pytest.mark.parametrize("runs", [True, False], ids=["it runs", "it is stopped"])
@pytest.mark.parametrize("victim", [1, 3], ids=["who is called", "who calls"])
def test_rebuilding_a_replica_that_is_cut_off_on_tcp_deletes_nothing(
    make_cluster: Callable[..., Cluster], victim: int, runs: bool
) -> None:
    with ExitStack() as stack:
        network = Proxied(stack)
        cluster = make_cluster(network=network)
        stack.callback(cluster.close)
        fill(cluster)
        cluster.transfer_leadership(2, timeout=10)
        before = cluster.status()[victim].disk
        network.cut(victim)
        if not runs:
            cluster.stop(victim)
        with pytest.raises(Rejected, match="Nothing was deleted"):
            cluster.rebuild(victim, timeout=1)
        network.cut(victim, off=False)
        cluster.start(victim)
        assert cluster.get("k1", via=victim, timeout=20) == b"v"
        assert cluster.status()[victim].disk == before
        if not runs:
            cluster.stop(victim)
        cluster.rebuild(victim)
        assert cluster.get("k1", via=victim, timeout=10) == b"v"
        assert cluster.status()[victim].disk != before


def test_who_was_left_out_of_an_import_is_a_stranger_to_it(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """Whatever it holds: its directory is neither opened beside the import nor taken in."""
    cluster = make_cluster()
    fill(cluster)
    cluster.export_snapshot(cluster.wait_for_leader(), tmp_path / "backup")
    fill(cluster, value="rolled back")
    cluster.close()
    import_snapshot(tmp_path / "backup", tmp_path / "data", members=[1])
    with pytest.raises(ConfigurationError, match=r"replicas \[1\] hold an import"):
        make_cluster()
    alone = make_cluster(members=[1])
    alone.put("after", "v", timeout=10)
    with pytest.raises(ConfigurationError, match="belongs to group"):
        alone.add_replica(2)
    assert alone.get("k1") == b"v"
    shutil.rmtree(tmp_path / "data" / "replica-2")
    alone.add_replica(2)
    assert alone.get("k1", via=2) == b"v"


def test_an_import_for_one_is_not_opened_as_three(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """Its directory knows that it is alone, though a cluster has three members by default."""
    cluster = make_cluster()
    fill(cluster)
    cluster.export_snapshot(cluster.wait_for_leader(), tmp_path / "backup")
    cluster.close()
    import_snapshot(tmp_path / "backup", tmp_path / "one", members=[1])
    alone = make_cluster("one")
    assert alone.members == (1,)
    alone.put("new", "1", timeout=10)
    assert alone.get("k0") == b"v"


def test_an_old_directory_that_is_put_back_is_refused(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """It was copied while the cluster was closed, and has forgotten what came after."""
    fill(make_cluster())
    make_cluster().close()
    copy = shutil.copytree(tmp_path / "data" / "replica-2", tmp_path / "copy")
    cluster = make_cluster()
    fill(cluster, value="newer")
    cluster.stop(2)
    shutil.rmtree(tmp_path / "data" / "replica-2")
    shutil.copytree(copy, tmp_path / "data" / "replica-2")
    cluster.start(2)
    wait_until(lambda: cluster.status()[2].role == "failed")
    assert "copy" in (cluster.status()[2].error or "")
    cluster.rebuild(2)
    assert cluster.get("k1", via=2) == b"newer"


def test_an_import_into_a_symlink_is_refused_before_anything_is_changed(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """It would replace the link, and the data would be somewhere else from then on."""
    cluster = make_cluster(members=[1])
    fill(cluster)
    cluster.export_snapshot(1, tmp_path / "backup")
    cluster.close()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "replica-1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="symlink"):
        import_snapshot(tmp_path / "backup", tmp_path / "new", members=[1])
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_import_that_is_in_its_place_is_not_said_to_have_failed(
    make_cluster: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refuses after the new data has taken the place of the old."""
    cluster = make_cluster(members=[1])
    fill(cluster)
    cluster.export_snapshot(1, tmp_path / "backup")
    fill(cluster, value="newer")
    cluster.close()

    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("ondisk.snapshot.restore.sync_directory", failing)
        with pytest.raises(StorageError, match="in its place"):
            import_snapshot(tmp_path / "backup", tmp_path / "data", members=[1])
    assert make_cluster().get("k1", timeout=10) == b"v"

"""What an operator does with a running group: members, snapshots in files, damaged and lost directories."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ondisk import Cluster, Rejected
from ondisk.errors import (
    ConfigurationError,
    Corrupt,
    DirectoryInUse,
    OndiskError,
    OutcomeUnknown,
    ReplicaStopped,
    SnapshotStopped,
    StorageError,
)
from ondisk.snapshot.restore import complete_import, import_snapshot
from tests.machines import everything, opened
from tests.waiting import wait_until

MEMBERS = (1, 2, 3)


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Three replicas that hold a hundred keys."""
    cluster = make_cluster()
    fill(cluster, 100)
    return cluster


def fill(cluster: Cluster, count: int, value: str = "v") -> None:
    cluster.wait_for_leader()
    for future in [cluster.put_async(f"k{i:05}", f"{value}{i}") for i in range(count)]:
        future.result(10)


def content(cluster: Cluster, via: int | None = None) -> list[tuple[bytes, bytes]]:
    return cluster.scan(limit=10_000, via=via, timeout=20)


def follower(cluster: Cluster) -> int:
    leader = cluster.wait_for_leader()
    return next(member for member in cluster.members if member != leader)


def compact_all(cluster: Cluster) -> None:
    """So that whoever lacks anything needs a snapshot."""
    for member in cluster.members:
        wait_until(lambda member=member: cluster.compact(member) >= 100)


# Members


def test_a_new_replica_is_fed_by_a_stream_and_counts(cluster: Cluster) -> None:
    """The log no longer has what it needs. With four voters, two are no majority any more."""
    compact_all(cluster)
    cluster.add_replica(4)
    assert content(cluster, via=4) == content(cluster)
    assert cluster.status()[4].first_index > 1
    wait_until(lambda: all(status.voters == (1, 2, 3, 4) for status in cluster.status().values()))
    for member in [member for member in cluster.members if member != cluster.leader_id][:2]:
        cluster.stop(member)
    with pytest.raises(OndiskError):
        cluster.put("k", "v", timeout=1)


def test_a_removed_replica_stays_out(cluster: Cluster) -> None:
    """Its id is refused, and its directory started again finds nobody who listens."""
    removed = follower(cluster)
    cluster.remove_replica(removed)
    assert removed not in cluster.members
    with pytest.raises(Rejected, match="was removed"):
        cluster.add_replica(removed)
    cluster.put("after", "removal")
    node = cluster._make_node(removed, MEMBERS)
    node.start()
    try:
        wait_until(lambda: node.status.role == "removed")
        with pytest.raises(ReplicaStopped, match="removed from the group"):
            node.put("k", "v")
    finally:
        node.stop()
    assert cluster.get("after") == b"removal"


def test_the_leader_can_be_removed(cluster: Cluster) -> None:
    """It hands over first, and the next one removes it."""
    leader = cluster.wait_for_leader()
    cluster.remove_replica(leader)
    assert cluster.wait_for_leader() != leader
    assert len(content(cluster)) == 100
    cluster.put("k", "v")


def test_two_of_three_can_go_and_the_last_one_goes_on_alone(cluster: Cluster) -> None:
    """The last voter cannot be removed."""
    for _ in range(2):
        cluster.remove_replica(follower(cluster))
    cluster.put("k", "v")
    (last,) = cluster.members
    with pytest.raises(Rejected, match="last voter"):
        cluster.remove_replica(last)


def test_leadership_goes_where_it_is_wanted(cluster: Cluster) -> None:
    """Puts go on meanwhile: what waits is handed on."""
    for _ in range(3):
        for to in MEMBERS:
            futures = [cluster.put_async(f"t{to}", "x", timeout=10) for _ in range(20)]
            cluster.transfer_leadership(to)
            assert cluster.wait_for_leader() == to
            for future in futures:
                future.exception(10)  # an answer, whichever
    assert len(content(cluster)) == 103


def test_leadership_cannot_go_to_a_stranger_or_to_one_who_is_down(cluster: Cluster) -> None:
    """Either is an error that changes nothing."""
    with pytest.raises(ConfigurationError):
        cluster.transfer_leadership(9)
    down = follower(cluster)
    cluster.stop(down)
    with pytest.raises(OutcomeUnknown, match="did not take over in time; it still may"):
        cluster.transfer_leadership(down, timeout=10)
    cluster.put("k", "v")


def test_a_cluster_opened_again_knows_who_was_added_and_removed(
    cluster: Cluster, make_cluster: Callable[..., Cluster]
) -> None:
    """``members`` of the constructor are only the first ones."""
    cluster.add_replica(4)
    cluster.remove_replica(1)
    cluster.close()
    again = make_cluster()
    assert again.members == (2, 3, 4)
    assert len(content(again)) == 100
    again.put("k", "v", via=4)


# Damage and loss


@pytest.mark.parametrize("compacted", [False, True], ids=["from the log", "by a stream"])
def test_a_lost_directory_is_rebuilt_with_one_call(cluster: Cluster, compacted: bool) -> None:
    """Whoever it is, even the leader, and the next one at once: it returns when the replica counts again."""
    if compacted:
        compact_all(cluster)
    for member in MEMBERS:
        cluster.rebuild(member)
        assert member in cluster.status()[member].voters
        assert content(cluster, via=member) == content(cluster)
    assert len(content(cluster)) == 100


def test_a_rebuild_returns_when_the_others_count_the_replica(cluster: Cluster) -> None:
    """Not when it reads that it voted once: a state that comes by a stream has the members of its time."""
    compact_all(cluster)
    leader, victim = cluster.wait_for_leader(), follower(cluster)
    cluster.network.set_latency(0.05)
    cluster.rebuild(victim)
    assert cluster.status()[leader].voters == MEMBERS


def test_a_lost_state_is_told_and_fetched_from_the_leader(cluster: Cluster, tmp_path: Path) -> None:
    """The log is intact but begins later than the state: nothing can be replayed."""
    compact_all(cluster)
    victim = follower(cluster)
    cluster.stop(victim)
    state = tmp_path / "data" / f"replica-{victim}" / "state"
    state.rename(state.with_name("state.lost"))
    leader = cluster.wait_for_leader()
    cluster.network.isolate(victim)
    cluster.start(victim)
    assert "the state ends with entry 0" in (cluster.status()[victim].error or "")
    cluster.network.reconnect(victim)
    assert content(cluster, via=victim) == content(cluster, via=leader)
    assert cluster.status()[victim].error is None


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def damaged_log(replica: Path) -> Path:
    return max((replica / "log" / "rocksdb").glob("*.log"), key=lambda file: file.stat().st_size)


def damaged_table(replica: Path) -> Path:
    """The one of the data, which is flushed last; the other holds what stands beside them."""
    return max((replica / "state").glob("db-*/*.sst"))


def damaged_pointer(replica: Path) -> Path:
    return replica / "state" / "current"


@pytest.mark.parametrize("find", [damaged_log, damaged_table, damaged_pointer])
def test_a_flipped_bit_is_reported_by_name_never_served_and_repaired(
    cluster: Cluster, tmp_path: Path, find: Callable[[Path], Path]
) -> None:
    """In the log, in a table, in the pointer file of one replica: it stops, the others rebuild it."""
    victim = follower(cluster)
    wait_until(lambda: cluster.get("k00099", via=victim))
    before = content(cluster)
    if find is damaged_log:
        cluster.crash(victim)  # after a clean end there is nothing in the write-ahead log
    else:
        cluster.stop(victim)
    file = find(tmp_path / "data" / f"replica-{victim}")
    flip(file, file.stat().st_size // 3 if file.name != "current" else 4)
    with pytest.raises(Corrupt) as caught:
        cluster.start(victim)
        for key, value in before:
            assert cluster.stale_get(key, via=victim) == value  # an error, or what is right
        content(cluster, via=victim)
    assert str(tmp_path / "data" / f"replica-{victim}") in str(caught.value)
    assert content(cluster) == before
    cluster.rebuild(victim)
    assert content(cluster, via=victim) == before


def test_a_replica_that_meets_damage_while_it_answers_stops_and_says_why(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Or a leader with a damaged table would go on answering with errors, and nobody would take over."""
    leader = cluster.wait_for_leader()
    cluster.stop(leader)
    file = damaged_table(tmp_path / "data" / f"replica-{leader}")
    flip(file, file.stat().st_size // 3)
    cluster.start(leader)
    with pytest.raises(Corrupt):
        content(cluster, via=leader)
    wait_until(lambda: cluster.status()[leader].role == "failed")
    assert file.name in (cluster.status()[leader].error or "")
    assert len(content(cluster)) == 100


# Exported snapshots


def test_an_exported_snapshot_makes_a_new_group(
    cluster: Cluster, make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """With other members, and with the index where the old one was."""
    before = content(cluster)
    snapshot = cluster.export_snapshot(follower(cluster), tmp_path / "snapshot")
    assert snapshot.path.stat().st_size == snapshot.bytes
    cluster.put("later", "than the snapshot")
    told: list[tuple[int, int]] = []
    imported = import_snapshot(
        snapshot.path, tmp_path / "new", members=(4, 5, 6), progress=lambda *args: told.append(args)
    )
    assert imported == snapshot and {member for member, _ in told} == {4, 5, 6}
    new = make_cluster("new", members=(4, 5, 6))
    assert content(new) == before
    assert all(status.opened_index == snapshot.index for status in new.status().values())
    new.put("k", "v")
    assert new.get("k", via=5) == b"v"


def test_a_group_without_its_majority_is_rebuilt_by_import(
    cluster: Cluster, make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """Two of three are gone for good. What the third one holds becomes a group of one, then of three."""
    survivor = follower(cluster)
    before = content(cluster, via=survivor)
    for member in MEMBERS:
        if member != survivor:
            cluster.stop(member)
    snapshot = cluster.export_snapshot(survivor, tmp_path / "snapshot")
    cluster.close()
    import_snapshot(snapshot.path, tmp_path / "data", members=(survivor,))
    alone = make_cluster(members=(survivor,))
    assert content(alone) == before
    for new in (7, 8):
        alone.add_replica(new)
    assert content(alone, via=8) == before
    alone.put("k", "v")


def test_an_older_snapshot_rolls_the_state_back(
    cluster: Cluster, make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """A person decided so, for all replicas; nothing of the newer entries is left."""
    before = content(cluster)
    snapshot = cluster.export_snapshot(cluster.wait_for_leader(), tmp_path / "snapshot")
    fill(cluster, 200, "newer")
    cluster.close()
    import_snapshot(snapshot.path, tmp_path / "data")
    again = make_cluster()
    assert content(again) == before
    assert again.put("k", "v").error is None


def test_a_running_replica_cannot_be_overwritten_by_an_import(cluster: Cluster, tmp_path: Path) -> None:
    """It is named, and untouched."""
    snapshot = cluster.export_snapshot(1, tmp_path / "snapshot")
    with pytest.raises(DirectoryInUse, match="replica-1"):
        import_snapshot(snapshot.path, tmp_path / "data")
    assert len(content(cluster)) == 100


def test_a_damaged_snapshot_is_refused_and_the_old_data_kept(
    cluster: Cluster, make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """A bit anywhere, a missing end, another file altogether."""
    snapshot = cluster.export_snapshot(1, tmp_path / "snapshot")
    good = snapshot.path.read_bytes()
    cluster.close()
    for at in range(0, len(good), len(good) // 40):
        bad = bytearray(good)
        bad[at] ^= 4
        snapshot.path.write_bytes(bad)
        with pytest.raises(Corrupt):
            import_snapshot(snapshot.path, tmp_path / "data")
    for bad in (good[:-1], good[: len(good) // 2], b"", b"something else", good[:10] + good):
        snapshot.path.write_bytes(bad)
        with pytest.raises(Corrupt):
            import_snapshot(snapshot.path, tmp_path / "data")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [f"replica-{i}" for i in MEMBERS]
    assert len(content(make_cluster())) == 100


def test_an_import_can_be_stopped(
    cluster: Cluster, make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """The old data is whole."""
    snapshot = cluster.export_snapshot(1, tmp_path / "snapshot")
    cluster.close()
    stopped = threading.Event()
    with pytest.raises(SnapshotStopped):
        import_snapshot(snapshot.path, tmp_path / "data", progress=lambda *_: stopped.set(), stopped=stopped)
    assert len(content(make_cluster())) == 100


def test_an_import_that_is_killed_anywhere_leaves_the_old_data_or_the_new(
    cluster: Cluster, make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """Also between the two moments when the old data goes away and the new comes."""
    snapshot = cluster.export_snapshot(cluster.wait_for_leader(), tmp_path / "snapshot")
    fill(cluster, 200, "newer")
    assert len(content(cluster, via=1)) == 200
    cluster.close()
    code = (
        "import os, pathlib, sys; from ondisk import import_snapshot\n"
        "calls, limit = [0], int(sys.argv[1])\n"
        "def dying(real):\n"
        "    def call(*arguments, **options):\n"
        "        done = real(*arguments, **options)\n"
        "        calls[0] += 1\n"
        "        if calls[0] == limit: os.kill(os.getpid(), 9)\n"
        "        return done\n"
        "    return call\n"
        "pathlib.Path.rename = dying(pathlib.Path.rename)\n"
        "os.fsync = dying(os.fsync)\n"
        f"import_snapshot({str(snapshot.path)!r}, {str(tmp_path / 'copy')!r}, members=[1])"
    )
    seen = set()
    for limit in range(1, 100):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(tmp_path / "data", tmp_path / "copy")
        ended = subprocess.run([sys.executable, "-c", code, str(limit)], check=False).returncode
        complete_import(tmp_path / "copy" / "replica-1")
        machine = opened(tmp_path / "copy" / "replica-1" / "state")
        pairs = list(everything(machine).items())
        machine.close()
        assert (len(pairs), {value[:1] for _, value in pairs}) in ((100, {b"v"}), (200, {b"n"}))
        seen.add(len(pairs))
        if ended == 0:
            break
        assert ended == -9
    assert seen == {100, 200} and limit > 5


def test_an_import_that_is_interrupted_while_it_swaps_has_swapped(
    cluster: Cluster, make_cluster: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C when the old data has just been put aside."""
    snapshot = cluster.export_snapshot(cluster.wait_for_leader(), tmp_path / "snapshot")
    fill(cluster, 200, "newer")
    cluster.close()
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if target.name.endswith(".replaced"):
            raise KeyboardInterrupt
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            import_snapshot(snapshot.path, tmp_path / "data", members=[1])
    assert len(content(make_cluster(members=[1]))) == 100


def test_an_import_founds_another_group(
    cluster: Cluster, make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """Nobody of the old one can be taken for a member of it; and twice the same import makes two groups."""
    snapshot = cluster.export_snapshot(cluster.wait_for_leader(), tmp_path / "snapshot")
    groups = {cluster.status()[1].group}
    for name in ("other", "another"):
        import_snapshot(snapshot.path, tmp_path / name)
        other = make_cluster(name)
        other.wait_for_leader()
        groups |= {status.group for status in other.status().values()}
    assert len(groups) == 3


def test_two_exports_to_one_place_do_not_mix(
    cluster: Cluster, make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """Each is whole; the last one stays."""
    path = tmp_path / "out" / "snapshot"
    path.parent.mkdir()
    with ThreadPoolExecutor(3) as pool:
        exports = [pool.submit(cluster.export_snapshot, member, path) for member in MEMBERS for _ in range(3)]
    assert {export.result().path for export in exports} == {path}
    assert [each.name for each in path.parent.iterdir()] == ["snapshot"]
    import_snapshot(path, tmp_path / "other")
    assert len(content(make_cluster("other"))) == 100


def test_an_export_that_cannot_be_written_leaves_no_file(cluster: Cluster, tmp_path: Path) -> None:
    """The replica goes on: its own disk is not the one that failed."""
    with pytest.raises(StorageError, match="cannot be written"):
        cluster.export_snapshot(1, tmp_path / "missing" / "snapshot")
    assert not (tmp_path / "missing").exists()
    cluster.put("k", "v", via=1)


def test_an_import_makes_no_sense_for_a_stranger(tmp_path: Path) -> None:
    """Nothing is created."""
    with pytest.raises(ConfigurationError):
        import_snapshot(tmp_path / "nothing", tmp_path / "data", members=(1, 2), replica_ids=(3,))
    with pytest.raises(ConfigurationError, match="no snapshot"):
        import_snapshot(tmp_path / "nothing", tmp_path / "data")
    assert not list(tmp_path.glob("data/replica-*/*/*"))

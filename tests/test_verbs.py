"""Transactions, the history of changes, digests: the same on every replica, wherever an update begins."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondisk import Cluster, DiskKV, import_snapshot, sessions
from ondisk.diskkv import delete, incr, put, put_many
from ondisk.errors import Compacted, InvalidCommand
from ondisk.statemachine import Entry, Result
from ondisk.verbs import changes, keyleases, txn
from ondisk.verbs.changes import ENTRY_BYTES, SEGMENTS, Changed, Changes, changes_after
from ondisk.verbs.digest import DigestOf, digest_of
from tests.kvcommands import anything, commands, malformed, packed
from tests.machines import apply, everything, opened, recover, saved


def told(kv: DiskKV, after: int = 0, prefix: bytes = b"") -> dict[int, dict[bytes, bytes | None]]:
    """All changes after an index."""
    return {entry.index: dict(entry.pairs) for entry in kv.lookup(changes_after(prefix, after)).entries}


def answered(result: Result) -> txn.Answer:
    return txn.answer(result.value)


# Transactions


def test_a_transaction_does_one_branch_whole(kv: DiskKV) -> None:
    both = txn.txn(
        [txn.equals("a", "1"), txn.missing("b")],
        [txn.put("b", "2"), txn.delete("a"), txn.get("a"), txn.delete("c")],
        [txn.get("b"), txn.put("a", "3")],
    )
    results = apply(kv, put("a", "1"), both, both)
    assert answered(results[1]) == txn.Answer(True, 2, (None, True, b"1", False))
    assert answered(results[2]) == txn.Answer(False, 3, (b"2", None))
    assert everything(kv) == {b"a": b"3", b"b": b"2"}
    assert told(kv) == {1: {b"a": b"1"}, 2: {b"b": b"2", b"a": None}, 3: {b"a": b"3"}}


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (txn.equals("k", "v"), True),
        (txn.equals("k", ""), False),
        (txn.equals("none", ""), False),
        (txn.exists("k"), True),
        (txn.exists("none"), False),
        (txn.missing("k"), False),
        (txn.missing("none"), True),
        (txn.unchanged("k", 3), True),
        (txn.unchanged("k", 2), False),
        (txn.unchanged("none", 1), True),
        (txn.unchanged("none", 0), False),  # who has kept a history then is not agreed
    ],
)
def test_each_comparison(kv: DiskKV, compare: txn.Compare, holds: bool) -> None:
    results = apply(kv, txn.txn(), put("k", "u"), put("k", "v"), put("other", "k"), txn.txn([compare]))
    assert answered(results[-1]).succeeded is holds
    assert answered(apply(kv, txn.txn([compare, txn.exists("k")]))[0]).succeeded is holds


def test_of_what_the_history_cannot_tell_any_more_nothing_is_unchanged(tmp_path: Path) -> None:
    kv = ShortHistory(tmp_path / "kv")
    kv.open()
    apply(kv, txn.txn(), put("k", "v"))
    assert answered(apply(kv, txn.txn([txn.unchanged("k", 2)]))[0]).succeeded
    apply(kv, *(put(f"other {number}", "") for number in range(SEGMENTS + 1)))
    assert not answered(apply(kv, txn.txn([txn.unchanged("k", 2)]))[0]).succeeded
    kv.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: txn.txn([], [txn.put("k", "1"), txn.delete("k")]),
        lambda: txn.txn([txn.exists("k")] * 129),
        lambda: txn.txn([txn.put("k", "1")]),  # type: ignore[list-item]
        lambda: txn.txn([], [txn.exists("k")]),  # type: ignore[list-item]
        lambda: txn.unchanged("k", -1),
        lambda: txn.equals("k", None),  # type: ignore[arg-type]
        lambda: changes_after("k", -1),
        lambda: changes_after("k", 0, 0),
        lambda: digest_of("k", -1),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_happens(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidCommand):
        make()


def test_a_replica_checks_again_what_a_transaction_holds(kv: DiskKV) -> None:
    results = apply(
        kv,
        packed(["txn", [], [["put", b"k" * (64 << 10) + b"k", b""]], []]),
        packed(["txn", [], [["put", b"k", b"v" * (1 << 20) + b"v"]], []]),
        packed(["txn", [], [["put", b"k", b"v"], ["delete", b"k"]], []]),
        packed(["txn", [["equals", b"k", None]], [], []]),
        packed(["txn", [["unchanged", b"k", -1]], [], []]),
        packed(["txn", [], [], [], []]),
    )
    assert all(result.error and result.value is None for result in results)
    assert everything(kv) == {} and told(kv) == {}


# The history


class ShortHistory(DiskKV):
    segment_bytes: ClassVar[int] = ENTRY_BYTES  # so that each entry fills one


parts = st.sampled_from([b"", b"a", b"b", b"ab"])
branches = st.lists(
    st.builds(txn.put, parts, parts) | st.builds(txn.delete, parts) | st.builds(txn.get, parts),
    max_size=3,
    unique_by=lambda part: part.key,
)
compares = st.lists(
    st.builds(txn.equals, parts, parts)
    | st.builds(txn.missing, parts)
    | st.builds(txn.unchanged, parts, st.integers(0, 60)),
    max_size=2,
)
few = st.integers(1, 30)
transactions = st.builds(txn.txn, compares, branches, branches) | st.one_of(
    st.builds(keyleases.grant, st.just(0.1)),
    st.builds(keyleases.keep, few),
    st.builds(keyleases.end, few),
    st.builds(keyleases.advance, st.sampled_from([0, 1000, 2000]), st.just(1000)),
    st.builds(lambda key, lease: txn.txn([], [txn.put(key, "", lease=lease)]), parts, few),
)


@anything
@given(batches=st.lists(st.lists(commands | malformed | transactions, max_size=6), max_size=12))
def test_where_updates_begin_decides_nothing(batches: list[list[bytes]]) -> None:
    """Nor do restarts and snapshots: results, contents and what can be told of the past are the same."""
    with tempfile.TemporaryDirectory() as folder:
        machines = [ShortHistory(Path(folder) / str(number)) for number in range(2)]
        for machine in machines:
            machine.open()
        index, state = 0, dict[bytes, bytes]()
        for batch in batches:
            entries = [Entry(index + number, command) for number, command in enumerate(batch, 1)]
            index += len(entries)
            together = machines[0].update(entries)
            assert together == [result for entry in entries for result in machines[1].update([entry])]
            machines[0].close()
            machines[0].open()
        assert everything(machines[0]) == everything(machines[1])
        assert machines[0]._history == machines[1]._history
        assert vars(machines[0]._leases) == vars(machines[1]._leases)
        since = machines[0]._history.since
        first, second = told(machines[0], since), told(machines[1], since)
        assert first == second and list(first) == sorted(first)
        recover(machines[1], saved(machines[0]))
        assert told(machines[1], since) == first
        if since == 0:
            for pairs in first.values():
                state.update((key, value) for key, value in pairs.items() if value is not None)
                for key in [key for key, value in pairs.items() if value is None]:
                    del state[key]
            assert state == everything(machines[0])
        for machine in machines:
            machine.close()


def test_only_what_has_changed_something_is_told(kv: DiskKV) -> None:
    session = sessions.register()
    apply(
        kv, session, put("a", "1"), delete("none"), incr("a"), incr("a", 2**63 - 1), b"junk", put_many([]),
        put_many([("b", "1"), ("c", "2"), ("b", "3")]), sessions.once(1, 1, incr("n")),
        sessions.once(1, 1, incr("n")), delete("a"),
    )  # fmt: skip
    assert told(kv) == {
        2: {b"a": b"1"}, 4: {b"a": b"2"}, 8: {b"b": b"3", b"c": b"2"}, 9: {b"n": b"1"}, 11: {b"a": None}
    }  # fmt: skip
    assert told(kv, 8) == {9: {b"n": b"1"}, 11: {b"a": None}}
    assert told(kv, 0, b"b") == {8: {b"b": b"3"}}
    assert told(kv, 11) == {} == told(kv, 2**63 - 1)


def test_an_answer_ends_after_a_whole_entry_and_the_next_one_goes_on(kv: DiskKV) -> None:
    apply(kv, *(put_many([(f"{number}.{key}", b"v" * 40_000) for key in range(10)]) for number in range(9)))
    after, found = 0, list[Changed]()
    while (page := kv.lookup(Changes(after=after, limit=2))).entries:
        assert 1 <= len(page.entries) <= 2 and page.through == page.entries[-1].index
        found += page.entries
        after = page.through
    assert [entry.index for entry in found] == list(range(1, 10))
    assert {len(entry.pairs) for entry in found} == {10}
    large = kv.lookup(Changes(limit=100))
    assert large.through == 3 and len(large.entries) == 3  # 1 MB and what completes an entry
    assert kv.lookup(Changes(b"8.", limit=1)).through == 9


def test_the_history_is_bounded_and_says_what_is_gone(tmp_path: Path) -> None:
    kv = ShortHistory(tmp_path / "kv")
    kv.open()
    apply(kv, *(put(f"k{number}", "v") for number in range(SEGMENTS)))
    assert len(told(kv)) == SEGMENTS
    apply(kv, delete("none"), put("a", "1"), put("b", "1"))
    with pytest.raises(Compacted, match="up to entry 2 are compacted"):
        kv.lookup(changes_after(after=1))
    assert list(told(kv, 2)) == [*range(3, SEGMENTS + 1), SEGMENTS + 2, SEGMENTS + 3]
    for _ in range(50):
        apply(kv, put("again", "v"))
    kept = [key for key, _ in kv._open_store.meta_items(changes._RECORDS)]
    assert len(kept) == SEGMENTS
    kv.close()


def test_a_state_of_the_version_before_begins_its_history_when_it_is_opened(kv: DiskKV) -> None:
    apply(kv, put("a", "1"), put("b", "2"))
    store = kv._open_store
    batch = store.batch()
    for key in (b"history", b"format", *(key for key, _ in store.meta_items(changes._RECORDS))):
        store.put_meta(batch, key, None)
    store.write(batch)
    kv.close()
    kv.open()
    with pytest.raises(Compacted):
        kv.lookup(changes_after(after=1))
    apply(kv, put("c", "3"))
    assert told(kv, 2) == {3: {b"c": b"3"}}
    kv.close()
    kv.open()
    assert told(kv, 2) == {3: {b"c": b"3"}}
    with pytest.raises(Compacted):
        kv.lookup(changes_after(after=1))


def test_replicas_that_were_upgraded_at_different_entries_decide_alike(tmp_path: Path) -> None:
    """What only some of them can tell counts for nothing: they must all say the same."""
    early, late = opened(tmp_path / "early"), opened(tmp_path / "late")
    apply(early, put("k", "1"), put("j", "1"))
    apply(late, put("k", "1"), put("j", "1"))
    late._history = changes.ChangeHistory(2)  # as if its first entries had been applied by the version before
    asked = [txn.txn([txn.unchanged("k", since)]) for since in (0, 1, 2, 3, 4)]
    first, second = ([answered(result).succeeded for result in apply(kv, *asked)] for kv in (early, late))
    assert first == second == [False, False, False, True, True]
    for machine in (early, late):
        machine.close()


# Digests


def test_a_digest_tells_contents_apart_and_says_of_which_index_it_is(kv: DiskKV) -> None:
    apply(kv, put("a", "1"), put("b", "23"))
    whole = kv.lookup(DigestOf())
    assert (whole.index, whole.count, whole.bytes) == (2, 2, 5)
    assert kv.lookup(DigestOf(b"b")).count == 1 and kv.lookup(DigestOf(b"x")).count == 0
    assert kv.lookup(digest_of(hashed=False)) == type(whole)(2, "", 2, 5)
    apply(kv, put("b", "2"), put("b3", ""))
    assert kv.lookup(DigestOf()).hash != whole.hash
    apply(kv, delete("b3"), put("b", "23"))
    assert kv.lookup(DigestOf()).hash == whole.hash


def test_a_digest_of_an_earlier_index_is_told_as_long_as_nothing_has_changed_since(kv: DiskKV) -> None:
    apply(kv, put("a", "1"), put("b", "2"), b"junk", delete("none"))
    assert kv.lookup(DigestOf(index=2)).hash == kv.lookup(DigestOf()).hash
    assert kv.lookup(DigestOf(b"a", index=1)).index == 1
    with pytest.raises(Compacted):
        kv.lookup(DigestOf(index=1))
    with pytest.raises(InvalidCommand, match="not applied here yet"):
        kv.lookup(DigestOf(index=5))


# In a group


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Iterator[Cluster]:
    yield make_cluster("group")


def test_a_watch_tells_each_change_once_whoever_leads(cluster: Cluster) -> None:
    watch = cluster.watch("k", 1)
    seen = list[Changed]()
    for number in range(30):
        cluster.put(f"k{number}", "v")
        cluster.put(f"other {number}", "v")
        if number % 10 == 5:
            leader = cluster.wait_for_leader()
            cluster.crash(leader)
            seen += watch.poll()
            cluster.start(leader)
    seen += watch.poll()
    assert [key for entry in seen for key, _ in entry.pairs] == [b"k%d" % number for number in range(30)]
    assert [entry.index for entry in seen] == sorted({entry.index for entry in seen})
    again = cluster.watch("k", seen[20].index, via=2)
    assert [next(again) for _ in range(10)] == seen[20:]
    assert again.next_index > seen[-1].index


def test_a_watch_without_an_index_tells_what_comes_after_it(cluster: Cluster) -> None:
    cluster.put("before", "")
    watch = cluster.watch()
    assert watch.poll() == []
    cluster.put("after", "")
    assert [dict(entry.pairs) for entry in watch.poll()] == [{b"after": b""}]


def test_a_watch_that_is_interrupted_inside_an_answer_says_where_to_go_on(cluster: Cluster) -> None:
    for number in range(3):
        cluster.put(f"k{number}", "")
    watch = cluster.watch(from_index=1)
    first = next(watch)
    assert watch.next_index == first.index + 1
    assert [entry.pairs[0][0] for entry in cluster.watch(from_index=watch.next_index).poll()] == [
        b"k1",
        b"k2",
    ]


def test_transactions_and_digests_of_all_replicas_agree_in_sessions_too(cluster: Cluster) -> None:
    with cluster.session() as session:
        answer = session.txn([txn.missing("a")], [txn.put("a", "1")])
        assert answer.succeeded and not session.txn([txn.missing("a")], [], [txn.get("a")]).succeeded
    found = [cluster.digest(index=answer.index, via=member) for member in cluster.members]
    assert len({digest.hash for digest in found}) == 1 and {digest.index for digest in found} == {
        answer.index
    }
    assert cluster.digest("a").count == 1


def test_an_import_brings_the_history_along(cluster: Cluster, tmp_path: Path) -> None:
    cluster.put("a", "1")
    cluster.put("b", "1")
    index = cluster.changes().entries[0].index
    cluster.export_snapshot(cluster.wait_for_leader(), tmp_path / "backup")
    cluster.close()
    import_snapshot(tmp_path / "backup", tmp_path / "new", members=[1])
    with Cluster(tmp_path / "new", members=[1]) as other:
        assert [dict(entry.pairs) for entry in other.changes(after=index).entries] == [{b"b": b"1"}]

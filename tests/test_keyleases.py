"""Key leases end by the log alone, never early; locks have one holder at a time, with growing tokens."""

from __future__ import annotations

import threading
import time

import pytest

from ondisk import Cluster, DiskKV, LeaseEnded
from ondisk.diskkv import compare_and_set, delete, get, incr, put, put_many
from ondisk.errors import InvalidCommand, NotDone, Rejected, Timeout
from ondisk.statemachine import Result
from ondisk.verbs import keyleases, txn
from ondisk.verbs.changes import changes_after
from ondisk.verbs.keyleases import MAX_TICK, LeaseLeft, Left, Time, TimeNow, advance, end, grant, keep
from tests.kvcommands import packed
from tests.machines import apply, everything, opened, recover, saved
from tests.waiting import wait_until


def clock(kv: DiskKV) -> int:
    found: Time = kv.lookup(TimeNow())
    return found.clock


def let_pass(kv: DiskKV, milliseconds: int) -> None:
    """As a leader would say it."""
    while milliseconds > 0:
        apply(kv, advance(clock(kv), min(MAX_TICK, milliseconds)))
        milliseconds -= MAX_TICK


def leased(kv: DiskKV, ttl: float = 5, *keys: str) -> int:
    """A lease with these keys."""
    (result,) = apply(kv, grant(ttl))
    lease = result.value
    assert isinstance(lease, int)
    assert apply(kv, txn.txn([], [txn.put(key, "v", lease=lease) for key in keys]))[0].error is None
    return lease


# Time


def test_time_passes_once_whoever_says_so(kv: DiskKV) -> None:
    """Two who have measured the same stretch, one of whom is late, count it once."""
    results = apply(kv, advance(0, 300), advance(0, 300), advance(300, 50), advance(0, 300), advance(350, 0))
    assert results == [Result(300), Result(300), Result(350), Result(350), Result(350)]
    assert clock(kv) == 350


def test_one_entry_counts_a_second_at_most(kv: DiskKV) -> None:
    assert apply(kv, advance(0, 10**9)) == [Result(MAX_TICK)]


def test_a_lease_ends_after_its_time_and_the_stretch_in_which_it_began(kv: DiskKV) -> None:
    lease = leased(kv, 5, "b", "a")
    index = kv._applied
    let_pass(kv, 5000 + MAX_TICK - 1)
    assert everything(kv) == {b"a": b"v", b"b": b"v"}
    assert kv.lookup(LeaseLeft(lease)) == Left(5000, 1, (b"a", b"b"))
    let_pass(kv, 1)
    assert everything(kv) == {} and kv.lookup(LeaseLeft(lease)) is None
    (gone,) = kv.lookup(changes_after(after=index)).entries
    assert gone.pairs == ((b"a", None), (b"b", None))  # together, at one index, in order


def test_who_keeps_it_has_its_time_anew(kv: DiskKV) -> None:
    lease = leased(kv, 5, "k")
    for _ in range(4):
        let_pass(kv, 5000)
        assert apply(kv, keep(lease)) == [Result(True)]
    let_pass(kv, 5000 + MAX_TICK)
    assert everything(kv) == {} and apply(kv, keep(lease), end(lease)) == [Result(False), Result(False)]


def test_who_ends_it_deletes_its_keys_and_no_other(kv: DiskKV) -> None:
    first, second = leased(kv, 5, "a", "b"), leased(kv, 5, "c")
    apply(kv, put("d", "1"), txn.txn([], [txn.put("b", "2", lease=second)]))
    assert apply(kv, end(first)) == [Result(True)]
    assert list(everything(kv)) == [b"b", b"c", b"d"]
    apply(kv, end(second))
    assert list(everything(kv)) == [b"d"]


@pytest.mark.parametrize(
    "command",
    [
        put("k", "w"),
        put_many([("j", "1"), ("k", "w")]),
        compare_and_set("k", "v", "w"),
        txn.txn([], [txn.put("k", "w")]),
    ],
)
def test_a_key_that_is_set_without_the_lease_is_free_of_it(kv: DiskKV, command: bytes) -> None:
    lease = leased(kv, 5, "k")
    apply(kv, command, end(lease))
    assert kv.lookup(get("k")) == b"w"


def test_a_key_that_was_deleted_meanwhile_is_nobodys(kv: DiskKV) -> None:
    lease = leased(kv, 5, "k", "n")
    apply(kv, delete("k"), put("k", "new"), txn.txn([], [txn.delete("n")]), incr("n"), end(lease))
    assert everything(kv) == {b"k": b"new", b"n": b"1"}


def test_without_the_lease_the_whole_transaction_does_nothing(kv: DiskKV) -> None:
    lease = leased(kv)
    both = txn.txn([], [txn.put("a", "1"), txn.put("b", "1", lease=lease + 99)])
    assert apply(kv, both) == [Result(error=keyleases.NO_LEASE)] and everything(kv) == {}


def test_leases_are_bounded(kv: DiskKV, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyleases, "MAX_LEASES", 2)
    monkeypatch.setattr(keyleases, "MAX_LEASED_KEYS", 2)
    lease = leased(kv, 5, "a", "b")
    leased(kv)
    assert "2 leases already" in (apply(kv, grant(5))[0].error or "")
    for keys, fine in ((("a", "b"), True), (("c",), False)):
        (result,) = apply(kv, txn.txn([], [txn.put(key, "w", lease=lease) for key in keys]))
        assert (result.error is None) is fine


@pytest.mark.parametrize("ttl", [0, -1, 0.05, float("nan"), float("inf"), 1e12, "5", None])
def test_a_time_to_live_that_makes_no_sense_is_refused(kv: DiskKV, ttl: float) -> None:
    with pytest.raises(InvalidCommand):
        grant(ttl)
    for command in (
        ["grant", 0],
        ["grant", 10**18],
        ["advance", -1, 5],
        ["advance", 0, 1 << 63],
        ["keep", 0],
    ):
        assert apply(kv, packed(command))[0].error is not None


def test_leases_and_the_clock_outlive_a_restart_and_a_snapshot(kv: DiskKV) -> None:
    lease = leased(kv, 5, "k")
    let_pass(kv, 3000)
    expected = kv.lookup(LeaseLeft(lease))
    kv.close()
    kv.open()
    assert kv.lookup(LeaseLeft(lease)) == expected and clock(kv) == 3000
    other = opened(kv._path.with_name("other"))
    recover(other, saved(kv))
    let_pass(other, 2000 + MAX_TICK)
    assert everything(other) == {} and kv.lookup(get("k")) == b"v"
    other.close()
    other.open()
    assert other.lookup(LeaseLeft(lease)) is None and everything(other) == {}
    other.close()


# In a group


def test_a_lease_that_nobody_keeps_ends_and_one_that_is_kept_does_not(cluster: Cluster) -> None:
    left = cluster.key_lease(0.2)
    cluster.txn([], [txn.put("left", "v", lease=left.id)])
    with cluster.key_lease(0.2) as kept:
        cluster.txn([], [txn.put("kept", "v", lease=kept.id)])
        granted = time.monotonic()
        cluster.transfer_leadership(cluster.wait_for_leader() % 3 + 1)
        wait_until(lambda: cluster.get("left") is None)
        assert time.monotonic() - granted > 0.2  # and nobody knows how much more
        assert cluster.get("kept") == b"v" and kept.left > 0
    assert cluster.get("kept") is None and kept.left == 0
    with pytest.raises(LeaseEnded):
        left.keep()
    with pytest.raises(LeaseEnded):
        cluster.txn([], [txn.put("k", "v", lease=left.id)])
    assert not [thread for thread in threading.enumerate() if "lease" in thread.name]


def test_a_lock_has_one_holder_at_a_time_and_tokens_grow(cluster: Cluster) -> None:
    holders, inside = list[int](), list[int]()

    def work() -> None:
        for _ in range(3):
            with cluster.lock("lock", ttl=5) as held:
                inside.append(1)
                assert len(inside) == 1
                cluster.txn([held.guard], [txn.put("last", str(held.token))])
                holders.append(held.token)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert holders == sorted(set(holders)) and len(holders) == 9
    assert cluster.get("last") == str(holders[-1]).encode() and cluster.get("lock") is None


def test_the_lock_of_who_is_gone_goes_to_the_next_one_and_its_guard_holds_no_more(cluster: Cluster) -> None:
    first = cluster.lock("lock", ttl=0.3)
    with pytest.raises(NotDone, match="held by somebody else"):
        cluster.lock("lock", timeout=1)
    first.lease._over.set()  # nobody keeps it alive any more, as if its process had stopped
    second = cluster.lock("lock", ttl=5)
    assert second.token > first.token and first.left == 0 < second.left
    assert not cluster.txn([first.guard], [txn.put("k", "1")]).succeeded
    assert cluster.txn([second.guard], [txn.put("k", "2")]).succeeded
    first.release()
    assert cluster.get("lock") is not None
    second.release()


def test_an_attempt_of_which_nobody_heard_is_no_second_holder(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the first transaction is lost, after it was applied."""
    whole, lost = Cluster.txn, list[int]()

    def lossy(self: Cluster, *args: object, **options: object) -> txn.Answer:
        answer = whole(self, *args, **options)  # type: ignore[arg-type]
        if not lost:
            lost.append(1)
            raise Timeout("nobody heard")
        return answer

    monkeypatch.setattr(Cluster, "txn", lossy)
    with cluster.lock("lock", timeout=5) as held:
        assert lost and held.token > 0


def test_who_is_elected_tells_who_it_is(cluster: Cluster) -> None:
    assert cluster.elected("boss") is None
    with cluster.elect("boss", "me:8080") as held:
        assert cluster.elected("boss") == b"me:8080" and held.left > 0
    assert cluster.elected("boss") is None


def test_a_lease_that_is_refused_is_no_lease(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyleases, "MAX_LEASES", 0)
    with pytest.raises(Rejected, match="leases already"):
        cluster.key_lease(5)

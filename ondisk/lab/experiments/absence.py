"""A follower that is away for a while: its links fail under load, it falls behind, and it catches up."""

from __future__ import annotations

import asyncio
from typing import Literal, NamedTuple

from ondisk.cluster import Cluster
from ondisk.lab.experiments.faults import stall
from ondisk.lab.experiments.load import Load
from ondisk.net.memory import Event
from ondisk.observe import Lag, LagRecorder, describe
from ondisk.raft.messages import AppendEntries

_CATCH_UP_WITHIN = 20.0  # seconds


class Absence(NamedTuple):
    """What a follower missed while its links failed, and how it got it. Messages are those with entries."""

    fault: str
    follower: int
    behind: Lag  # when its links worked again
    sent: int  # messages to it while they failed
    lost: int
    late: int  # delivered only when they worked again
    again: int  # messages that brought what had been lost
    most_entries: int  # in one message of those that brought what was missing, late or again
    log_syncs: int  # of the follower, to catch up
    seconds: float  # until it had applied everything that was committed when its links worked again


def _brings_entries(event: Event, receiver: int) -> bool:
    return (
        event.receiver == receiver
        and isinstance(event.message, AppendEntries)
        and bool(event.message.entries)
    )


async def go_away(
    cluster: Cluster,
    recorder: LagRecorder,
    fault: Literal["stalled", "cut off"],
    *,
    seconds: float = 2.0,
    per_second: float = 200,
    value_bytes: int = 0,
) -> Absence:
    """Under load, let the links of a follower fail for so many seconds; watch it fall behind and catch up.

    Raises ``TimeoutError`` if it does not.
    """
    leader = cluster.wait_for_leader()
    follower = next(i for i in cluster.members if i != leader)
    network = cluster.network
    observed = network.observe()
    recorder.begin()
    try:
        with Load(cluster, per_second=per_second, value_bytes=value_bytes):
            await asyncio.sleep(1)
            if fault == "stalled":
                stall(cluster, follower)
            else:
                network.isolate(follower)
            gone = network.clock()  # not before: what was sent until then has arrived
            recorder.note(f"links of replica {follower} {fault}")
            await asyncio.sleep(seconds)
            reading, syncs = recorder.read(), cluster.status()[follower].log_syncs
            back = network.clock()
            network.reconnect(follower)
            recorder.note("links work again")
            while recorder.read().applied[follower] < reading.commit_index:
                if network.clock() > back + _CATCH_UP_WITHIN:
                    raise TimeoutError(f"replica {follower} has not caught up in {_CATCH_UP_WITHIN:g} s")
                await asyncio.sleep(0.002)
            took = network.clock() - back
            syncs = cluster.status()[follower].log_syncs - syncs
            await asyncio.sleep(0.5)
    finally:
        network.reconnect(follower)
        recorder.end()
    events = [observed.popleft() for _ in range(len(observed))]
    entries = [describe(event) for event in events if _brings_entries(event, follower)]
    sent = {event.number: event for event in entries if event.kind == "sent" and gone <= event.time < back}
    ends = {event.number: event.kind for event in entries if event.kind != "sent"}
    lost = [event for number, event in sent.items() if ends.get(number) == "lost"]
    late = [event for number, event in sent.items() if ends.get(number) == "delivered"]
    again = [
        event
        for event in entries
        if event.kind == "sent" and event.time >= back and event.first <= reading.commit_index
    ]
    return Absence(
        fault,
        follower,
        reading.lags[follower],
        len(sent),
        len(lost),
        len(late),
        len(again),
        max((event.last - event.first + 1 for event in (*late, *again)), default=0),
        syncs,
        took,
    )

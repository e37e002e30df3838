"""Make the recordings of this folder anew: ``make recordings``.

Two are of real replicas, whose times differ each time; the third is a run of the simulator, which is always
the same. With ``--pages`` what was recorded stays, and only the page around it is made anew.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path

from ondisk import Cluster
from ondisk.lab import runs
from ondisk.lab.experiments.trace import trace
from ondisk.lab.pictures.recording import page, recording_of
from ondisk.lab.pictures.trace import recording_of_run
from ondisk.observe import Looker, Note, Recorder, wait_until, wait_until_level

FOLDER = Path(__file__).parent
MOST_BYTES = 300_000  # of each page
Say = Callable[[str], None]


@contextmanager
def recorded(path: Path, title: str) -> Iterator[tuple[Cluster, Recorder, Say]]:
    """Three replicas, what is seen of them, and a function for captions. At the end it is a page."""
    captions: list[Note] = []
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder) / "data") as cluster:
        cluster.wait_for_leader()
        cluster.put("colour", "blue")
        wait_until_level(cluster)
        looker = Looker(cluster)
        looker.key = "colour"
        with Recorder(cluster, looker=looker) as recorder:
            yield cluster, recorder, lambda text: captions.append(Note(cluster.network.clock(), text))
            view = recorder.view()
        messages = recorder.newest_messages(4_000)
        recording_of(title, recorder.samples, messages, view.notes, captions=captions).save(path)


def a_put(path: Path) -> None:
    """One put on a network so slow that each message can be seen."""
    with recorded(path, "A put, message by message") as (cluster, recorder, say):
        leader = cluster.leader_id
        assert leader is not None
        say("Three replicas, each with a log and a RocksDB of its own. Their state says that colour is blue.")
        cluster.network.set_latency(0.5)
        wait(cluster, 1.0)
        say(
            f"A client asks for a put. Replica {leader}, which leads, appends it to its own log and sends it."
        )
        recorder.note("put colour = green", "request")
        newest = cluster.status()[leader].last_index
        answer = cluster.put_async("colour", "green")
        wait_until(
            lambda: max(s.durable_index for i, s in cluster.status().items() if i != leader) > newest,
            "a follower has it",
        )
        say("A follower has it durably in its log, and only then it answers. The client still waits.")
        answer.result()
        recorder.note("put colour = green: done", "answer")
        say("The answer is here: a majority has the entry. It is committed, applied, and the client is told.")
        wait_until_level(cluster)
        say("The next message has told the followers that it is committed: now their states are green, too.")
        wait(cluster, 1.0)


def a_leader_that_is_cut_off(path: Path) -> None:
    """It takes in a put that is never committed; the others elect another one; its entry has to go."""
    with recorded(path, "A leader that is cut off") as (cluster, recorder, say):
        old = cluster.leader_id
        assert old is not None
        cluster.network.set_latency(0.25)
        say(f"Replica {old} leads, and its heartbeats say so.")
        wait(cluster, 1.0)
        cluster.network.isolate(old)
        say(f"All links of replica {old} are cut. It does not know that, and takes itself for the leader.")
        recorder.note("put colour = red, replica " + str(old), "request")
        lost = cluster.put_async("colour", "red", via=old)
        wait_until(lambda: cluster.leader_id not in (old, None), "another one leads")
        say(
            f"The others have not heard of a leader for too long, and a majority has elected replica "
            f"{cluster.leader_id}, in a newer term. The put of red is in one log only: it is not committed, "
            f"and no client was told that it is done."
        )
        recorder.note("put colour = green", "request")
        cluster.put("colour", "green")
        recorder.note("put colour = green: done", "answer")
        say(f"A put of green is done: two of three are a majority. Only replica {old} still says blue.")
        wait(cluster, 1.5)
        cluster.network.reconnect(old)
        say(f"The links work again. Replica {old} hears of the newer term, and follows.")
        wait_until_level(cluster)
        say("Its entry contradicted what was committed in that place, and is gone. All logs are equal again.")
        wait_until(lost.done, "its client hears", timeout=30)
        recorder.note("put colour = red: not done", "answer")
        wait(cluster, 1.0)


def a_write_that_is_lost(path: Path) -> None:
    """Stock PySyncObj, in the simulator: notebook 6 says why."""
    busy = runs.trace_with_an_exposure()
    exposure = runs.longest(busy)
    at = (exposure.since + exposure.until) / 2
    bad = trace(busy.report.seed, runs.STOCK, [*runs.BUSY, runs.crash_the_leader(at)], since=2.4, most=300)
    last = bad.moments[-1]
    captions = [
        Note(
            2.4,
            "Stock PySyncObj under load, in virtual time. Its links are slow: up to a quarter of a second.",
        ),
        Note(3.0, "A follower is away for a moment, while six hundred puts come in."),
        Note(
            exposure.since,
            "Look at a follower's log: it has become shorter. It has cut away what it had acknowledged, and "
            "the leader counts on it. What is committed is in too few logs.",
        ),
        Note(at, "The leader loses its power in such a moment. Now nobody else has the newest entries."),
        Note(
            at + 1.5, "The others elect a leader, as Raft allows. New puts take the places of the lost ones."
        ),
        Note(
            last.time - 0.001,
            f"{bad.report.violation}. Clients were told that these writes are safe. The repair is one line "
            "of the paper: cut only where an entry contradicts.",
        ),
    ]
    recording_of_run(bad, "A write that was acknowledged, and is lost", captions).save(path)


def wait(cluster: Cluster, seconds: float) -> None:
    """Let the cluster's clock go on."""
    until = cluster.network.clock() + seconds
    wait_until(lambda: cluster.network.clock() > until, "time goes on", timeout=60)


RECORDINGS: dict[str, Callable[[Path], None]] = {
    "put.html": a_put,
    "cut-off-leader.html": a_leader_that_is_cut_off,
    "lost-write.html": a_write_that_is_lost,
}


def with_the_present_page(html: str) -> str:
    """The same recording, as a page of today."""
    found = re.search(
        r'<h1>(?P<title>[^<]*)<.*<footer>(?P<origin>[^<]*)<.*id="recording">(?P<packed>[^<]*)<',
        html,
        re.DOTALL,
    )
    assert found is not None, "this is no recording"
    title, origin, packed = found.groups()
    return page(unescape(title), unescape(origin), packed)


if __name__ == "__main__":
    for name, make in RECORDINGS.items():
        if "--pages" in sys.argv:
            (FOLDER / name).write_text(with_the_present_page((FOLDER / name).read_text()))
        else:
            make(FOLDER / name)
        size = (FOLDER / name).stat().st_size
        print(f"{size:>9,} bytes  {FOLDER / name}")
        if size > MOST_BYTES:
            raise SystemExit(f"{name} is larger than {MOST_BYTES:,} bytes")

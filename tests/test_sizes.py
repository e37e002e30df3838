"""What notebook 4 measures and draws: sizes, views, a replica that catches up, its exercises."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ondisk import Cluster
from ondisk.diskkv import DiskKV, incr
from ondisk.errors import DirectoryInUse
from ondisk.lab import catch_up, check, sizes
from ondisk.lab.exercises import chapter_04 as exercises_04
from ondisk.lab.exercises.check import exercises
from ondisk.lab.experiments.bank import Bank, Use
from ondisk.lab.experiments.faults import undo_faults
from ondisk.lab.experiments.growth import Sizes
from ondisk.lab.experiments.lagging import Answers, Moment
from ondisk.lab.pictures import catch_up as pictures
from ondisk.lab.pictures.catch_up import catch_up_picture
from ondisk.observe import wait_until_level
from ondisk.replica import ReplicaStatus
from ondisk.snapshot.stream import CHUNK_BYTES
from ondisk.snapshot.streaming import StreamProgress
from ondisk.storage.generations import _pointer
from tests.pictures import svg_of, texts
from tests.waiting import wait_until

SOLUTIONS = Path(__file__).parent.parent / "notebooks" / "solutions" / "04-snapshots.ipynb"


# Sizes


def test_a_file_with_two_names_is_counted_once(tmp_path: Path) -> None:
    """Within one directory and across two."""
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        directory.mkdir()
    (one / "a").write_bytes(bytes(100))
    (two / "b").write_bytes(bytes(7))
    os.link(one / "a", one / "c")
    os.link(one / "a", two / "d")
    assert sizes.disk_use(one) == 100
    assert sizes.disk_use(two) == 107
    assert sizes.disk_use(one, two) == sizes.disk_use(tmp_path) == 107


def test_everything_grows_with_the_keys_except_the_record() -> None:
    """Ten times the keys: ten times the entries, the snapshot and the dump, and no bigger record."""
    few, many = sizes.measure(200), sizes.measure(2_000)
    for field in ("entries", "snapshot", "dump"):
        assert 5 < getattr(many, field) / getattr(few, field) < 11, field
    assert many.state > 2_000 * 100 and many.snapshot > 2_000 * 100
    assert many.record < 100
    assert 0 < many.record - few.record <= 4  # a larger number in it: so it is the record of this compaction


def test_the_dump_holds_every_key() -> None:
    """More than one page of them: what is measured is the whole state."""
    measured = sizes.measure(25_000, value_bytes=4)
    assert measured.dump > 25_000 * 4


def test_the_plot_says_its_values_as_text_and_as_a_table() -> None:
    """For those who do not see the picture."""
    found = [Sizes(keys, *[keys * 100] * 4, 19, keys / 1e6, 0.01, 0.004, 1, 1) for keys in (1_000, 100_000)]
    html = sizes.plot_growth(found).html
    words = re.search(r'alt="([^"]*)"', html)
    assert words and "compaction record from 19 B to 19 B" in words[1]
    assert "to dump the state takes 1.0 ms, then 100.0 ms" in words[1]
    assert '<th scope="row">100,000</th>' in html and "10.0 MB" in html


@pytest.mark.parametrize(
    ("size", "said"), [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (12_345_678, "12.3 MB")]
)
def test_sizes_in_words(size: int, said: str) -> None:
    """Three digits or so, and a unit."""
    assert sizes.in_bytes(size) == said


def test_a_directory_says_what_is_shared_and_what_the_pointer_names(bank: Bank) -> None:
    """Sizes, files and links of each name."""
    view = bank.machine.prepare_snapshot()
    html = sizes.show_directory(bank.directory).html
    assert "“ondisk-current 1 db-000001 " in html
    assert html.count("of them hard links") == 2
    view.close()
    html = sizes.show_directory(bank.directory).html
    assert "hard links" not in html and "view-" not in html


# A view


@pytest.fixture
def bank() -> Iterator[Bank]:
    with Bank() as opened:
        yield opened


def test_a_dump_page_by_page_loses_money_and_a_view_does_not(bank: Bank) -> None:
    """Money that moves from a page to come to a page that was read is in neither."""
    whole = bank.ACCOUNTS * bank.BALANCE
    assert bank.total_page_by_page(transfers=10) < whole == bank.total()
    view = bank.machine.prepare_snapshot()
    bank.transfer(100)
    bank._update([incr("account 000000", 5)])  # from nowhere: the live total tells itself from the view's
    assert bank.total_in(view) == whole == bank.total() - 5
    bank._update([incr("account 000000", -5)])
    assert bank.total_page_by_page(transfers=0) == whole


def test_a_view_is_the_same_bytes_after_thousands_of_writes(bank: Bank) -> None:
    """And the fingerprint would tell: a view from later has another one."""
    view = bank.machine.prepare_snapshot()
    first, index = bank.save(view), bank.index
    bank.transfer(2_000)
    assert bank.save(view) == first and first.index == index < bank.index
    later = bank.machine.prepare_snapshot()
    assert bank.save(later).sha256 != first.sha256


def test_a_view_costs_little_at_first_and_its_tables_once_they_are_rewritten(bank: Bank) -> None:
    """Then closing it gives them back."""
    before = bank.use("before")
    view = bank.machine.prepare_snapshot()
    prepared = bank.use("prepared")
    assert before.view == 0 and prepared.shared > 0.9 * prepared.view > 0
    assert prepared.total < 1.2 * before.total
    bank.transfer_until_rewritten()
    rewritten = bank.use("rewritten")
    assert rewritten.shared < 0.1 * rewritten.view
    assert rewritten.total > rewritten.live + 0.9 * prepared.view
    view.close()
    closed = bank.use("closed")
    assert closed.view == 0 and closed.total == closed.live < rewritten.total


def test_a_bank_that_is_never_rewritten_is_reported(bank: Bank) -> None:
    """Instead of waiting for ever."""
    view = bank.machine.prepare_snapshot()
    with pytest.raises(TimeoutError):
        bank.transfer_until_rewritten(limit=1)
    view.close()


def test_the_bars_of_a_view_have_words_and_a_style_each() -> None:
    """Nothing by colour alone."""
    uses = [Use("before <1>", 5_000_000, 0, 0, 5_000_000)]
    uses += [Use("later", 9_000_000, 5_000_000, 1_000_000, 13_000_000)]
    svg = svg_of(sizes.show_use(uses).html)
    assert "live only 8.0 MB, both 1.0 MB, view only 4.0 MB" in " | ".join(texts(svg))
    assert "before <1>" in " | ".join(texts(svg))
    assert len({bar.attrib["class"] for bar in svg.iter("rect")}) == 3
    assert "later: 13.0 MB on disk" in svg.attrib["aria-label"]


# A replica that catches up


STATUSES = {
    1: ReplicaStatus(1, "leader", 2, last_index=5_201, applied_index=5_201, first_index=5_202),
    3: ReplicaStatus(
        3,
        "follower",
        2,
        last_index=5_101,
        applied_index=5_101,
        first_index=4_001,
        streams=(StreamProgress("from", 1, 5_201, CHUNK_BYTES + 1),),
    ),
}
MOMENT = Moment(1.5, STATUSES, CHUNK_BYTES + 1, Answers(574, 3, 0, 0, 0.009))


def test_the_picture_of_catching_up_says_all_of_its_numbers_in_words() -> None:
    """In the picture, in its alternative text, and in the table."""
    html = catch_up_picture(MOMENT, 3, expected=4 * CHUNK_BYTES).html
    svg = svg_of(html)
    for said in (" | ".join(texts(svg)), svg.attrib["aria-label"]):
        assert "log empty, next is 5,202" in said
        assert "log 4,001 to 5,101" in said
        assert "262.1 kB, 2 chunks so far" in said
        assert "old 574, new 3, mixed 0, failed 0; slowest 9.0 ms" in said
    assert "<td>574</td><td>3</td><td>0</td><td>0</td>" in html


def test_the_bar_is_as_long_as_what_has_arrived() -> None:
    """Half of it, and never more than all of it."""
    for arrived, part in ((0, 0.0), (500, 0.5), (2_000, 1.0)):
        svg = svg_of(catch_up_picture(MOMENT._replace(arrived=arrived), 3, expected=1_000).html)
        bar = [rect for rect in svg.iter("rect") if rect.attrib["class"] == "mark"]
        assert float(bar[0].attrib["width"]) == pytest.approx(part * pictures._WIDTH)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with sizes.start_over(tmp_path / "data") as running:
        sizes.fill(running, 200, 5_000)
        yield running


def watch(cluster: Cluster, old: str, new: str) -> catch_up.Watch:
    return catch_up.Watch(cluster, 3, old=old, new=new, expected=1_000_000)


async def let_it_catch_up(watching: catch_up.Watch, cluster: Cluster) -> Moment:
    with watching:
        cluster.network.reconnect(3)
        return await watching.until_caught_up()


def test_a_replica_that_was_left_behind_catches_up_while_it_answers(cluster: Cluster) -> None:
    """By a stream, not by the log; no lookup fails and none sees two states."""
    catch_up.stamp(cluster, "red")
    catch_up.leave_behind(cluster, 3, lambda: catch_up.stamp(cluster, "green"))
    status = cluster.status()
    assert all(status[other].first_index > status[3].last_index + 1 for other in (1, 2))
    assert cluster.stale_get("stamp 00", via=3) == b"red"
    watching = watch(cluster, "red", "green")
    cluster.network.set_latency(0.1)  # the stream takes several round trips: longer than between two polls
    last = asyncio.run(let_it_catch_up(watching, cluster))
    assert last.answers.old > 0 and last.answers.new >= 100
    assert last.answers.mixed == last.answers.failed == 0
    assert any(moment.arrived is not None for moment in watching.moments)
    assert cluster.status()[3].first_index > status[3].last_index + 1
    assert "swapped at second" in watching.plot().html


def test_a_mixture_and_an_error_are_counted_as_what_they_are(cluster: Cluster) -> None:
    """The counts of zero in the notebook could have been something else."""
    catch_up.stamp(cluster, "red")
    wait_until_level(cluster)
    with watch(cluster, "red", "green") as watching:
        wait_until(lambda: watching.poll().answers.old > 0)
        cluster.put("stamp 05", "green")
        wait_until(lambda: watching.poll().answers.mixed > 0)
        cluster.delete("stamp 05")  # neither is an answer with a key too few
        wait_until_level(cluster)
        before = watching.poll().answers.mixed
        wait_until(lambda: watching.poll().answers.mixed > before + 1)
        cluster.stop(3)
        wait_until(lambda: watching.poll().answers.failed > 0)
    assert watching.poll().answers.new == 0


def test_a_process_that_is_killed_while_it_recovers_leaves_an_orphan_that_open_removes(
    cluster: Cluster, tmp_path: Path
) -> None:
    """And the old state."""
    catch_up.stamp(cluster, "red")
    wait_until_level(cluster)
    snapshot = cluster.export_snapshot(1, tmp_path / "snapshot")
    state = cluster.data_dir / "replica-3" / "state"
    cluster.stop(3)
    assert catch_up.kill_while_recovering(cluster, 3, snapshot.path, pieces=3) == "recover: piece written"
    assert {path.name for path in state.glob("db-*")} == {"db-000001", "db-000002"}
    assert "db-000002/" in sizes.show_directory(state).html
    cluster.start(3)
    assert {path.name for path in state.glob("db-*")} == {"db-000001"}
    assert cluster.stale_get("stamp 00", via=3) == b"red"


def test_the_record_of_a_stopped_replica_can_be_read(cluster: Cluster) -> None:
    """It says what was dropped, and leaves the replica as it was."""
    undo_faults(cluster)
    base = cluster.compact(3)
    assert base >= 200
    with pytest.raises(DirectoryInUse):
        sizes.compaction_record(cluster, 3)
    cluster.stop(3)
    record = sizes.compaction_record(cluster, 3)
    assert len(record) < 100
    read = sizes.read_record(record)
    assert read["last index that was dropped"] == base and read["the members"] == [1, 2, 3]
    cluster.start(3)
    undo_faults(cluster)
    assert cluster.status()[3].first_index == base + 1


def test_starting_over_empties_the_disks_and_closes_the_former_cluster(tmp_path: Path) -> None:
    """A cell that does it can be run again."""
    former = sizes.start_over(tmp_path / "data")
    former.put("k", "v")
    with sizes.start_over(tmp_path / "data") as cluster:
        assert cluster.get("k") is None
        assert {status.role for status in former.status().values()} == {"stopped"}


# Exercises


def test_every_solution_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook with the solutions, cell by cell; each exercise has one."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    right = []
    for cell in json.loads(SOLUTIONS.read_text())["cells"]:
        if cell["cell_type"] == "code":
            *work, last = "".join(cell["source"]).rstrip().split("\n")
            exec("\n".join(work), names)
            if last.startswith("lab.check"):
                feedback = eval(last, names)
                assert feedback.right, feedback
                right.append(feedback.number)
            else:
                exec(last, names)
    assert right == exercises(4)


WRONG_ORDERS = {
    "nothing": lambda log, machine, index: None,
    "not durable": lambda log, machine, index: (machine.sync(), log.compact(index)),
    "state never synced": lambda log, machine, index: (log.compact(index), log.sync()),
    "state synced last": lambda log, machine, index: (log.compact(index), log.sync(), machine.sync()),
    "less than asked": lambda log, machine, index: (machine.sync(), log.compact(index - 1), log.sync()),
}


@pytest.mark.parametrize("wrong", WRONG_ORDERS)
def test_a_compaction_that_may_lose_an_entry_is_not_accepted(wrong: str) -> None:
    """Nor one that does nothing."""
    assert not check("4.2", WRONG_ORDERS[wrong]).right


def test_a_compaction_may_tell_the_log_before_the_state_is_durable() -> None:
    """``RaftLog.compact`` alone writes nothing."""
    assert check("4.2", lambda log, machine, index: (log.compact(index), machine.sync(), log.sync())).right


def test_wrong_answers_are_told_what_is_wrong() -> None:
    """In words that belong to the mistake."""
    assert "other way round" in check("4.1", 1 / 40_000).text
    assert "for each put" in check("4.1", 8_000_000).text
    assert "number" in check("4.1", "many").text
    assert "parentheses" in check("4.2", 7).text

    def all_of_it(view: Path) -> int:
        return sum(file.stat().st_size for file in view.iterdir())

    def not_in_live(view: Path) -> int:
        live = {file.stat().st_ino for file in (view.parent / "db-000001").iterdir()}
        return sum(file.stat().st_size for file in view.iterdir() if file.stat().st_ino not in live)

    assert "fresh view" in check("4.3", all_of_it).text
    assert "second view" in check("4.3", not_in_live).text
    assert "the state" in check("4.4", {"db-000006"}).text
    assert "not that alone" in check("4.4", {"db-000005/"}).text


def test_open_removes_exactly_what_exercise_4_4_says(tmp_path: Path) -> None:
    """The answer is not only written down: it happens."""
    machine = DiskKV(tmp_path)
    machine.open()
    machine.close()
    (tmp_path / "db-000001").rename(tmp_path / exercises_04.LIVE)
    (tmp_path / "current").write_bytes(_pointer(exercises_04.LIVE))
    for name in exercises_04.FILES:
        if not (tmp_path / name).exists():
            (tmp_path / name).mkdir() if name[0] in "dv" else (tmp_path / name).write_bytes(b"")
    assert {path.name for path in tmp_path.iterdir()} == set(exercises_04.FILES)
    machine = DiskKV(tmp_path)
    machine.open()
    left = {path.name for path in tmp_path.iterdir()}
    machine.close()
    assert check("4.4", set(exercises_04.FILES) - left).right

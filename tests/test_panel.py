"""The pictures, as text, and the panel's buttons with a real cluster behind them."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ipywidgets.widgets.widget import _instances

from ondisk import Cluster, ReplicaStatus
from ondisk.lab import Panel, Prediction
from ondisk.lab.panel.answers import MAX_WAITING
from ondisk.lab.pictures import cluster as picture
from ondisk.lab.pictures.drawing import STYLE
from ondisk.lab.pictures.messages import MAX_ROWS, message_diagram
from ondisk.observe import Lag, Seen, View, capture, describe, wait_until_level
from tests.pictures import svg_of, texts
from tests.waiting import wait_until

STATUSES = {
    1: ReplicaStatus(1, "leader", 4, 1, 17, 17, 16, 16, 12, 3),
    2: ReplicaStatus(2, "follower", 4, 1, 16, 16, 15, 14, 9, 3),
    3: ReplicaStatus(3, "failed", 3, None, 11, 11, 10, 8, 8, 3, error='StorageError: <no space> & "more"'),
}
ENTRIES = Seen(7, 1.0, "sent", 1, 2, "append_entries", "append_entries 17..17", 17, 17, 16)
VIEW = View(1.1, STATUSES, 1, cut=frozenset({(1, 3), (3, 1)}), latency=0.2, paused=True, in_flight=(ENTRIES,))


def test_the_alternative_text_says_every_current_value() -> None:
    """Of every replica, and of the network."""
    words = picture.in_words(VIEW)
    assert "replica 1 leads" in words
    assert (
        "Replica 2: follower, term 4, last 16, durable 16, commit 15, applied 14, synced 9, "
        "log holds entries 1 to 16" in words
    )
    assert "Cut: 1 to 3, 3 to 1" in words
    assert "Messages under way: 1, latency 200 ms" in words
    assert "paused" in words


def test_text_is_at_least_twelve_pixels() -> None:
    """Every font size in the style sheet."""
    sizes = [
        int(size)
        for size in re.findall(r"(\d+)px (?=var)|font-size: (\d+)px", STYLE)
        for size in size
        if size
    ]
    assert sizes
    assert min(sizes) >= 12


def test_the_table_holds_the_same_numbers() -> None:
    """One row per replica, with its lag; text is escaped."""
    html = picture.status_table(VIEW, {i: Lag(i * 10, i * 100.0) for i in STATUSES})
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    cells = [re.sub(r"<[^>]+>", " ", row).split() for row in rows]
    assert cells[2][:10] == ["2", "follower", "4", "1", "16", "16", "15", "14", "9", "3"]
    assert cells[2][10:12] == ["20", "200"]
    assert "&lt;no space&gt; &amp;" in html


def test_the_diagram_says_what_each_message_carries_proves_and_whether_it_was_lost() -> None:
    """One row per event; a lost message is crossed out and named."""
    response = Seen(9, 1.3, "sent", 2, 1, "response", "response ok 17", last=17)
    events = [
        ENTRIES,
        ENTRIES._replace(number=8, receiver=3),
        ENTRIES._replace(number=8, receiver=3, kind="lost"),
        ENTRIES._replace(time=1.2, kind="delivered"),
        response,
        Seen(10, 1.4, "delivered", 1, 2, "read_index_response", "read_index_response 17", last=17),
    ]
    html = message_diagram(events, STATUSES)
    said = texts(svg_of(html))
    assert "append_entries 17..17" in said
    assert "append_entries 17..17 — lost" in said
    assert "response ok 17 — under way" in said
    assert "1 has entry 17 durable in its log" in said
    assert "2 has entry 17 durable in its log" in said
    assert "2 may answer once it has applied entry 17" in said
    assert {"0 ms", "200 ms", "300 ms"} <= set(said)
    assert "l10 10m0 -10l-10 10" in html


def test_a_long_diagram_ends_and_says_how_much_is_missing() -> None:
    """An empty one says so, too."""
    events = [ENTRIES._replace(number=number) for number in range(MAX_ROWS + 5)]
    assert "5 later events are not shown" in message_diagram(events, STATUSES)
    assert "No messages yet" in message_diagram([], STATUSES)


# The panel


@pytest.fixture
def on_panel(tmp_path: Path) -> Iterator[Callable[[Callable[[Panel], Awaitable[None]]], None]]:
    """Run an async function with a panel on a real cluster, on an asyncio loop as in a kernel."""

    def run(act: Callable[[Panel], Awaitable[None]]) -> None:
        async def main() -> None:
            with Cluster(tmp_path / "data") as cluster:
                await asyncio.to_thread(cluster.wait_for_leader)
                panel = Panel(cluster, every=0.01)
                try:
                    async with asyncio.timeout(60):
                        await act(panel)
                finally:
                    panel.close()

        asyncio.run(main())

    yield run


OnPanel = Callable[[Callable[[Panel], Awaitable[None]]], None]


async def press(panel: Panel, button: Any) -> str:
    """Click, wait for the answer, and return it."""
    button.click()
    await panel.idle()
    return panel.last_answer


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition)


def test_what_was_put_can_be_got_through_every_replica(on_panel: OnPanel) -> None:
    """The answer names the value, the time and the replica."""

    async def act(panel: Panel) -> None:
        panel.key.value, panel.value.value = "fruit", "quince <b>"
        assert re.match(
            r"put fruit = quince <b>: done \([\d.]+ ms, replica \d\)", await press(panel, panel.put)
        )
        for via in panel.cluster.members:
            panel.via.value = via
            assert re.match(
                rf"get fruit: quince <b> \([\d.]+ ms, replica {via}\)", await press(panel, panel.get)
            )
        assert "quince &lt;b&gt;" in panel.answer.value

    on_panel(act)


def test_every_command_has_a_button(on_panel: OnPanel) -> None:
    """Incr, stale get and delete; a missing key is said to be missing."""

    async def act(panel: Panel) -> None:
        panel.key.value = "n"
        assert "incr n: now 1 " in await press(panel, panel.incr)
        assert "incr n: now 2 " in await press(panel, panel.incr)
        await asyncio.to_thread(wait_until_level, panel.cluster)
        panel.via.value = 2
        assert "stale get n: 2 " in await press(panel, panel.stale_get)
        assert "delete n: done " in await press(panel, panel.delete)
        assert "get n: no such key " in await press(panel, panel.get)
        assert "no such key" in await press(panel, panel.delete)

    on_panel(act)


def test_errors_are_shown_with_their_class_and_do_not_stop_the_panel(on_panel: OnPanel) -> None:
    """Refused commands, refused arguments and stopped replicas."""

    async def act(panel: Panel) -> None:
        panel.key.value, panel.value.value = "word", "not a number"
        await press(panel, panel.put)
        assert "incr word: Rejected: " in await press(panel, panel.incr)
        panel.value.value = "v" * (1 << 20) + "v"
        assert "InvalidCommand: " in await press(panel, panel.put)
        await press(panel, panel.stop[3])
        panel.via.value = 3
        assert "ReplicaStopped: " in await press(panel, panel.get)
        assert "ReplicaStopped: " in await press(panel, panel.stale_get)
        panel.via.value = 0
        assert "get word: not a number" in await press(panel, panel.get)

    on_panel(act)


def test_a_put_whose_outcome_is_unknown_says_so(on_panel: OnPanel) -> None:
    """The leader of a minority cannot know, and the reader is told what to do."""

    async def act(panel: Panel) -> None:
        cluster = panel.cluster
        leader = cluster.wait_for_leader()
        for other in set(cluster.members) - {leader}:
            await press(panel, panel.stop[other])
        panel.via.value = leader
        said = await press(panel, panel.put)
        assert "Timeout: " in said
        assert "read before you try again" in said

    on_panel(act)


def test_the_controls_do_what_they_say(on_panel: OnPanel) -> None:
    """Stop, crash, start, cut off, reconnect, heal, and the slider."""

    async def act(panel: Panel) -> None:
        cluster = panel.cluster
        for end in (panel.stop, panel.crash):
            await press(panel, end[2])
            assert cluster.status()[2].role == "stopped"
            panel.refresh()
            assert "Replica 2: stopped" in panel.picture.value
            await press(panel, panel.start[2])
            assert cluster.status()[2].role != "stopped"
        await press(panel, panel.cut_off[1])
        assert capture(cluster).cut == {(1, 2), (2, 1), (1, 3), (3, 1)}
        await press(panel, panel.reconnect[1])
        assert not cluster.network.cut_links()
        await press(panel, panel.cut_off[3])
        await press(panel, panel.heal)
        assert not cluster.network.cut_links()
        panel.latency.value = 0.25
        assert cluster.network.latency == 0.25
        cluster.network.set_latency(0.05)
        panel.refresh()
        assert panel.latency.value == 0.05

    on_panel(act)


def test_a_stalled_replica_keeps_its_messages(on_panel: OnPanel) -> None:
    """Stall holds all its links, Reconnect lets them go on."""

    async def act(panel: Panel) -> None:
        network = panel.cluster.network
        await press(panel, panel.stall[3])
        assert network.stalled_links() == {(1, 3), (3, 1), (2, 3), (3, 2)}
        panel.refresh()
        assert "Stalled: 1 to 3, 2 to 3, 3 to 1, 3 to 2" in panel.picture.value
        await press(panel, panel.reconnect[3])
        assert not network.stalled_links()

    on_panel(act)


def test_the_menus_of_the_picture_do_what_they_say(on_panel: OnPanel) -> None:
    """Of a replica, and of a link in one direction; what makes no sense does nothing."""

    async def choose(panel: Panel, do: object, on: object) -> None:
        panel.picture._handle_custom_msg({"do": do, "on": on}, [])
        await panel.idle()

    async def act(panel: Panel) -> None:
        cluster = panel.cluster
        await choose(panel, "stop", 3)
        assert cluster.status()[3].role == "stopped"
        assert "stop 3: done" in panel.last_answer
        await choose(panel, "start", 3)
        assert cluster.status()[3].running
        await choose(panel, "cut", [1, 2])
        assert cluster.network.cut_links() == {(1, 2)}
        assert panel.last_answer == "cut 1 → 2: done"
        await choose(panel, "stall", [2, 1])
        assert cluster.network.stalled_links() == {(2, 1)}
        for link in ([1, 2], [2, 1]):
            await choose(panel, "heal", link)
        assert not cluster.network.cut_links() | cluster.network.stalled_links()
        await choose(panel, "via", 2)
        assert panel.via.value == 2
        for do, on in (
            ("close", 1),
            ("stop", 7),
            ("stop", [1, 2]),
            ("cut", 1),
            ("cut", [1, 7]),
            ("cut", [1]),
        ):
            await choose(panel, do, on)
        assert all(status.running for status in cluster.status().values())
        assert not cluster.network.cut_links()

    on_panel(act)


def test_the_picture_shows_what_was_put(on_panel: OnPanel) -> None:
    """In the log and in the state of each replica; the key that is typed in is looked at first."""

    async def act(panel: Panel) -> None:
        for key, value in (("colour", "green"), ("fruit", "quince")):
            panel.key.value, panel.value.value = key, value
            await press(panel, panel.put)
        await asyncio.to_thread(wait_until_level, panel.cluster)
        panel.key.value = "colour"
        panel.refresh()
        for replica in panel.picture.state["replicas"]:
            assert "put fruit = quince" in [cell["text"] for cell in replica["cells"]]
            values = [(value["key"], value["value"]) for value in replica["values"]]
            assert values == [("colour", "green"), ("fruit", "quince")]

    on_panel(act)


def test_compact_says_and_shows_where_the_log_now_begins(on_panel: OnPanel) -> None:
    """One button for each replica; a stopped one answers with an error."""

    async def act(panel: Panel) -> None:
        for _ in range(3):
            await press(panel, panel.put)
        await asyncio.to_thread(wait_until_level, panel.cluster)
        said = await press(panel, panel.compact[2])
        found = re.match(r"compact 2: the log now begins after entry (\d+)", said)
        assert found
        base = int(found[1])
        assert base >= 3
        first = panel.cluster.status()[2].first_index
        assert first == base + 1
        panel.refresh()
        words = "log is empty, next is entry" if first > panel.cluster.status()[2].last_index else "log holds"
        assert f"{words}" in panel.picture.value
        await press(panel, panel.stop[2])
        assert "ReplicaStopped: " in await press(panel, panel.compact[2])

    on_panel(act)


def test_what_was_recorded_can_be_walked_through_back_and_forward(on_panel: OnPanel) -> None:
    """The picture shows the past and says so, until Live or any request."""

    async def act(panel: Panel) -> None:
        await press(panel, panel.stop[3])
        assert "Replica 3: stopped" in panel.picture.value
        assert panel.live.disabled
        while "Replica 3: stopped" in panel.picture.value:
            panel.back.click()
        assert "Recorded" in panel.picture.value
        assert not panel.live.disabled
        while not panel.forward.disabled:
            panel.forward.click()
        assert "Replica 3: stopped" in panel.picture.value
        panel.place.value = 1
        assert "Replica 3: stopped" not in panel.picture.value
        panel.back.click()  # there is nothing before the first one
        assert panel.place.value == 1
        panel.live.click()
        assert "Recorded" not in panel.picture.value
        assert "Replica 3: stopped" in panel.picture.value
        panel.back.click()
        await press(panel, panel.put)
        assert "Recorded" not in panel.picture.value

    on_panel(act)


def test_whatever_happened_can_be_gone_back_to(on_panel: OnPanel) -> None:
    """Requests and what became of replicas, by name; Live ends it."""

    async def act(panel: Panel) -> None:
        await press(panel, panel.put)
        follower = next(i for i in panel.cluster.members if i != panel.cluster.leader_id)
        await press(panel, panel.stop[follower])
        panel.refresh()
        stopped = f"Replica {follower}: stopped"
        happened = {mark["text"]: mark["time"] for mark in panel.timeline.state["marks"]}
        assert "put colour = blue" in happened
        await press(panel, panel.start[follower])
        await until(lambda: panel.cluster.status()[follower].role == "follower")
        panel.refresh()
        assert stopped not in panel.picture.value
        panel.go_to(next(at for name, at in happened.items() if "-> stopped" in name))
        assert stopped in panel.picture.value
        assert "Recorded" in panel.picture.value
        assert panel.timeline.state["at"] is not None
        panel.go_to(happened["put colour = blue"])
        assert stopped not in panel.picture.value
        panel.live.click()
        assert "Recorded" not in panel.picture.value
        assert panel.timeline.state["at"] is None
        assert any(name.startswith("put colour = blue: done") for name in happened)

    on_panel(act)


def test_the_record_is_played_until_its_end(on_panel: OnPanel) -> None:
    """By itself, from the moment that is shown; whoever goes back, forward or Live ends it."""

    async def act(panel: Panel) -> None:
        await press(panel, panel.put)
        await press(panel, panel.stop[3])
        panel.place.value = 1
        panel.back.click()
        panel.place.value = 1
        panel.play.value = True
        assert panel.picture.state["rate"] == 0.25
        assert "Replica 3: stopped" not in panel.picture.value
        while panel.play.value:
            await asyncio.sleep(0.01)
        assert panel.place.value == panel.place.max
        assert "Replica 3: stopped" in panel.picture.value
        assert panel.picture.state["rate"] == 0
        panel.play.value = True  # from its end: the newest seconds again
        assert panel.place.value < panel.place.max
        panel.live.click()
        assert not panel.play.value
        assert "Recorded" not in panel.picture.value

    on_panel(act)


def test_the_timeline_goes_steps_plays_and_changes_the_speed(on_panel: OnPanel) -> None:
    """By the messages of its browser part; what does not fit is not obeyed."""

    async def act(panel: Panel) -> None:
        def do(what: str, on: object = None) -> dict[str, Any]:
            panel.timeline._handle_custom_msg({"do": what, "on": on}, [])
            state: dict[str, Any] = panel.timeline.state
            return state

        await press(panel, panel.put)
        line = panel.timeline.state
        assert line["at"] is None and line["live"]
        assert {"request", "answer"} <= {mark["kind"] for mark in line["marks"]}
        first = do("go", line["first"])
        assert first["at"] == first["first"] and panel.place.value == 1
        assert do("forward")["at"] > first["at"]
        assert do("back")["at"] == first["at"]
        assert do("speed", 4.0) and do("play")["playing"]
        assert panel.picture.state["rate"] == panel.timeline.state["speed"] == 4.0
        before = panel.picture.state["takes"]
        assert do("go", first["first"])["playing"]
        assert panel.picture.state["takes"] > before
        for what, on in (("speed", 3.0), ("go", "there"), ("end", None)):
            assert do(what, on)["speed"] == 4.0
        assert do("live")["at"] is None

    on_panel(act)


def test_a_step_passes_over_heartbeats_that_tell_nothing_new(on_panel: OnPanel) -> None:
    """They were under way before; the message that is waited for is the next one."""

    async def act(panel: Panel) -> None:
        network = panel.cluster.network
        await asyncio.to_thread(wait_until_level, panel.cluster)
        network.set_latency(0.5)
        await until(lambda: len(network.in_flight()) >= 4)
        panel.pause.click()
        panel.put.click()
        await until(lambda: any(describe(event).name == "append_entries" for event in network.in_flight()))
        panel.step.click()
        assert re.search(
            r"step: \d+ heartbeats and answers; \d → \d: append_entries \d+..\d+, delivered",
            panel.last_answer,
        )
        panel.resume.click()
        network.set_latency(0)
        await panel.idle()

    on_panel(act)


def test_a_paused_put_ends_only_after_its_messages_were_stepped(on_panel: OnPanel) -> None:
    """Message by message; the answer comes with one of the responses."""

    async def act(panel: Panel) -> None:
        panel.pause.click()
        panel.put.click()
        assert "under way" in panel.last_answer
        await until(panel.cluster.network.in_flight)
        steps = 0
        while "put colour = blue</b>: done" not in panel.answer.value:
            panel.step.click()
            steps += panel.last_answer.endswith("delivered")
            await asyncio.sleep(0.01)
        assert steps >= 2  # the entry to a follower, and its response
        panel.resume.click()
        await panel.idle()
        assert not panel.cluster.network.paused

    on_panel(act)


def test_so_many_requests_wait_and_no_more(on_panel: OnPanel) -> None:
    """The next one is not made, and says so; those that wait are answered."""

    async def act(panel: Panel) -> None:
        panel.pause.click()
        for _ in range(MAX_WAITING):
            panel.put.click()
        assert "under way" in panel.last_answer
        panel.put.click()
        assert panel.last_answer == f"put colour = blue: not sent: {MAX_WAITING} requests wait already"
        panel.resume.click()
        await panel.idle()
        assert len(panel.history.operations) == MAX_WAITING

    on_panel(act)


def test_the_picture_follows_the_cluster_without_being_asked(on_panel: OnPanel) -> None:
    """The poller sets it; the kernel's loop stays free meanwhile."""

    async def act(panel: Panel) -> None:
        await asyncio.to_thread(panel.cluster.stop, 1)
        while "Replica 1: stopped" not in panel.picture.value:
            await asyncio.sleep(0.01)

    on_panel(act)


def test_the_messages_of_the_last_request_can_be_shown(on_panel: OnPanel) -> None:
    """Only on demand."""

    async def act(panel: Panel) -> None:
        await press(panel, panel.put)
        assert panel.messages.value == ""
        panel.with_messages.value = True
        assert "append_entries" in panel.messages.value

    on_panel(act)


def test_what_was_asked_makes_a_history(on_panel: OnPanel) -> None:
    """With its answers; what certainly did not happen is left out, and what may have happened is not."""

    async def act(panel: Panel) -> None:
        cluster = panel.cluster
        leader = cluster.wait_for_leader()
        panel.key.value = "n"
        for button in (panel.incr, panel.get, panel.delete, panel.stale_get):
            await press(panel, button)
        panel.value.value = "v" * (1 << 20) + "v"
        await press(panel, panel.put)  # refused
        panel.value.value = "v"
        for other in set(cluster.members) - {leader}:
            await press(panel, panel.stop[other])
        panel.via.value = leader
        await press(panel, panel.put)
        client = f"replica {leader}"
        assert [(each[:4], each.end is None, each.result) for each in panel.history.operations] == [
            ((client, "incr", "n", (1,)), False, 1),
            ((client, "get", "n", ()), False, "1"),
            ((client, "delete", "n", ()), False, True),
            ((f"{client}, stale", "get", "n", ()), False, None),
            ((client, "put", "n", ("v",)), True, None),
        ]

    on_panel(act)


def test_the_verdict_on_what_was_asked_follows_the_clicks(on_panel: OnPanel) -> None:
    """On demand; a stale read through a replica that is cut off is found out; Forget begins anew."""

    async def act(panel: Panel) -> None:
        cluster = panel.cluster
        follower = next(i for i in cluster.members if i != cluster.wait_for_leader())
        await press(panel, panel.put)
        assert panel.verdict.value == ""
        panel.with_verdict.value = True
        assert "Linearizable: an order explains all 1 operations" in panel.verdict.value
        await asyncio.to_thread(wait_until_level, cluster)
        await press(panel, panel.cut_off[follower])
        panel.value.value = "green"
        await press(panel, panel.put)
        panel.via.value = follower
        await press(panel, panel.stale_get)
        await press(panel, panel.reconnect[follower])
        said = " ".join(texts(svg_of(panel.verdict.value)))
        assert "Not linearizable: no order explains the first 3 operations on 'colour'" in said
        assert f"replica {follower}, stale" in said
        drawn = panel.verdict.value
        panel.refresh()
        assert panel.verdict.value is drawn, "nothing new: nothing is drawn"
        panel.forget.click()
        await until(lambda: panel.verdict.value == "Nothing was asked yet.")
        panel.with_verdict.value = False
        assert panel.verdict.value == ""
        panel.key.value = "shape"
        cluster.put("shape", "round")
        await press(panel, panel.delete)
        assert [each[:4] for each in panel.history.operations] == [
            ("before", "put", "shape", ("round",)),
            (f"replica {follower}", "delete", "shape", ()),
        ]

    on_panel(act)


def test_every_control_has_a_name_and_says_what_it_does(on_panel: OnPanel) -> None:
    """A description and a tooltip on each widget that can be used."""

    async def act(panel: Panel) -> None:
        def used(widget: Any) -> Iterator[Any]:
            if hasattr(widget, "children"):
                for child in widget.children:
                    yield from used(child)
            elif type(widget).__name__ != "HTML":
                yield widget

        controls = list(used(panel.box))
        assert len(controls) == 3 + 5 + 1 + 5 + 1 + 4
        for drawn in (panel.picture, panel.timeline):  # they give names to their own parts
            controls.remove(drawn)
        controls += [*used(panel.of_replicas), *used(panel.of_the_record)]
        assert all(control.description and control.tooltip for control in controls)
        names = [control.description for control in controls]
        assert len(set(names)) == len(names)

    on_panel(act)


def test_a_click_from_another_thread_is_carried_out_on_the_loop(on_panel: OnPanel) -> None:
    """Some front ends run callbacks beside the kernel's main thread."""

    async def act(panel: Panel) -> None:
        await asyncio.to_thread(panel.put.click)
        await asyncio.sleep(0)
        await panel.idle()
        assert "put colour = blue: done" in panel.last_answer

    on_panel(act)


def test_a_new_panel_closes_the_former_one_and_nothing_grows(tmp_path: Path) -> None:
    """Threads, tasks and widgets: as many after the third as after the first."""

    async def main() -> None:
        counts = []
        for _ in range(3):
            cluster = Cluster(tmp_path / "data")  # closes the former one, as in a cell that is run again
            await asyncio.to_thread(cluster.wait_for_leader)
            panel = Panel(cluster)
            assert "done" in await press(panel, panel.put)
            assert "blue" in await press(panel, panel.get)
            await asyncio.sleep(0)  # cancelled tasks end
            counts.append((threading.active_count(), len(asyncio.all_tasks()), len(_instances)))
        assert counts[0] == counts[1] == counts[2]
        panel.close()
        panel.close()
        cluster.close()

    asyncio.run(main())


def test_a_panel_can_turn_to_another_cluster(tmp_path: Path) -> None:
    """Starting over keeps the widgets that are on the screen."""

    async def main() -> None:
        with Cluster(tmp_path / "one") as first, Cluster(tmp_path / "two") as second:
            await asyncio.to_thread(second.wait_for_leader)
            panel = Panel(first)
            panel.watch(second)
            assert "done" in await press(panel, panel.put)
            assert second.get("colour") == b"blue"
            assert first.get("colour", timeout=10) is None
            panel.close()

    asyncio.run(main())


def test_a_prediction_stands_beside_what_happened() -> None:
    """It cannot be changed afterwards, and asking again starts anew."""
    guess = Prediction("Why?", ["because", "no reason"])
    guess.choice.value = "no reason"
    shown = guess.compare("because").in_words()
    assert "no reason" in shown
    assert "Not what you predicted" in shown
    assert guess.choice.disabled
    again = Prediction("Why?", ["because", "no reason"])
    assert again.choice.value is None and not again.choice.disabled


def test_a_number_can_be_predicted_and_is_compared_as_a_ratio() -> None:
    """Near enough is right; what is no number is told so."""
    for typed, said in (
        ("110", "near enough"),
        ("1,000", "factor of 10"),
        ("10", "factor of 10"),
        ("0", "above zero"),
        ("many", "not a number"),
    ):
        guess = Prediction("How many?", unit="entries")
        guess.choice.value = typed
        shown = guess.compare(100.0).in_words()
        assert said in shown
        assert "100 entries" in shown


def test_the_question_is_the_name_of_the_control() -> None:
    """Whoever hears the control instead of seeing it hears the question."""
    for guess in (Prediction("Why?", ["because"]), Prediction("How many?", unit="entries")):
        assert guess.choice.description == f"Predict: {guess.question}"

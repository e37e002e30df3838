"""The panel on a group that runs elsewhere: what is drawn comes over TCP, and nothing can be broken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ondisk import RemoteClient, connect
from ondisk.lab import Panel
from tests.remote import Group, client, group
from tests.test_remote_processes import Replicas, replicas

__all__ = ["client", "group", "replicas"]  # fixtures


def shown(client: RemoteClient, do: Callable[[Panel], Awaitable[None]]) -> None:
    """Show a panel of the group of this client, and do something with it."""

    async def show() -> None:
        panel = Panel(client, every=0.02)
        try:
            await do(panel)
        finally:
            panel.close()

    asyncio.run(show())


async def until(condition: Callable[[], bool], what: str) -> None:
    """As ``wait_until``, while the panel goes on."""
    for _ in range(1500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError(what)


def replica(panel: Panel, number: int) -> dict[str, Any]:
    (found,) = (each for each in panel.picture.state["replicas"] if each["id"] == number)
    return found


def holds(panel: Panel, number: int, entry: str) -> bool:
    return entry in [cell["text"] for cell in replica(panel, number)["cells"]]


def test_what_is_drawn_comes_over_tcp(group: Group, client: RemoteClient) -> None:
    """Roles, logs and values of each; an entry too long to be sent is there all the same."""
    leader = group.cluster.wait_for_leader()

    async def do(panel: Panel) -> None:
        await asyncio.to_thread(client.put, "panel/long", "x" * 5000)
        await asyncio.to_thread(client.put, "panel/k", "v")
        panel.key.value = "panel/k"
        for number in (1, 2, 3):
            for what in ("a long command", "put panel/k = v"):
                await until(partial(holds, panel, number, what), f"{what} in the log of {number}")
            values = partial(lambda number: replica(panel, number)["values"], number)
            await until(lambda values=values: values() and values()[0]["value"] == "v", "the value")
        assert [each["leads"] for each in panel.picture.state["replicas"]] == [n == leader for n in (1, 2, 3)]
        assert f"replica {leader} leads" in panel.in_words()
        assert "What is between them is not seen from here" in panel.in_words()

    shown(client, do)


def test_nothing_can_be_broken_and_each_control_says_why(group: Group, client: RemoteClient) -> None:
    client.put("panel/read", "v")
    before = group.cluster.status()

    async def do(panel: Panel) -> None:
        state = panel.picture.state
        for place in (*state["replicas"], *state["links"]):
            able = [action["do"] for action in place["actions"] if not action["not"]]
            assert able == (["via"] if "id" in place else [])
            assert place["actions"][-1]["not"] == "this group runs elsewhere, and is only watched"
        assert {link["word"] for link in state["links"]} == {"not seen from here"}
        written = (panel.put, panel.delete, panel.incr)
        assert all(each.disabled and "only watched" in each.tooltip for each in written)
        assert not {"pause", "resume", "step", "heal", "latency"} & set(vars(panel))
        panel.stop[1].click()
        panel.picture._handle_custom_msg({"do": "crash", "on": 1}, [])
        panel.key.value, panel.via.value = "panel/read", 2
        for button, answer in (
            (panel.get, "get panel/read: v"),
            (panel.stale_get, "stale get panel/read: v"),
        ):
            button.click()
            await panel.idle()
            assert panel.last_answer.startswith(answer)

    shown(client, do)
    assert {each: status.running for each, status in group.cluster.status().items()} == {
        each: True for each in before
    }


@pytest.mark.slow
def test_three_processes_are_watched_while_one_is_killed(replicas: Replicas, tmp_path: Path) -> None:
    """It is drawn as down, with the reason, and as running again; what was seen can be played and saved."""
    with connect(replicas.endpoints) as client:
        client.wait_for_leader(30)
        client.put("k", "v", timeout=30)
        follower = min({1, 2, 3} - {client.wait_for_leader()})

        async def do(panel: Panel) -> None:
            replicas.kill(follower)
            await until(lambda: not replica(panel, follower)["runs"], "it is down")
            assert "it does not answer" in replica(panel, follower)["note"]
            await asyncio.to_thread(client.put, "k", "w")
            await asyncio.to_thread(replicas.start, follower)
            await until(lambda: replica(panel, follower)["runs"], "it runs again")
            await until(lambda: panel.forward.disabled, "it is live")

            def seen() -> set[str]:
                views = list(panel.recorder.samples)
                return {entry.words for view in views for entry in view.contents[follower].entries}

            await until(lambda: "put k = w" in seen(), "it has caught up")
            panel.back.click()
            assert panel.picture.state["recorded"]
            assert {"put k = v", "put k = w"} <= seen()
            assert panel.save_html(tmp_path / "seen.html").stat().st_size > 10_000

        shown(client, do)

"""What a panel does to its cluster: replicas are stopped and started, links cut, messages held back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any

from ondisk.cluster import Cluster
from ondisk.lab.experiments.faults import stall
from ondisk.lab.panel.answers import Answers
from ondisk.lab.panel.controls import OF_A_REPLICA, Controls
from ondisk.lab.panel.requests import in_thread
from ondisk.lab.panel.screen import Screen
from ondisk.lab.panel.watched import Watched
from ondisk.observe import describe

_MOST_HEARTBEATS = 100  # for one press of the button
_NEWS = 500  # messages that may be under way

Act = Callable[[Cluster, int], str | None]
"""What happens to a replica; and what to say of that, if it is more than that it is done."""


class Faults:
    """Carries out what the buttons of the replicas and of the network say."""

    def __init__(self, controls: Controls, answers: Answers, screen: Screen, watched: Watched) -> None:
        self._answers = answers
        self._screen = screen
        self._watched = watched
        for button, act in (
            (controls.pause, self._pause),
            (controls.resume, self._resume),
            (controls.step, self._step),
            (controls.heal, self._heal),
        ):
            answers.connect(button, act)
        controls.latency.observe(self._on_latency, "value")

        of_replicas: tuple[tuple[dict[int, Any], Act], ...] = (
            (controls.stop, Cluster.stop),
            (controls.crash, Cluster.crash),
            (controls.start, Cluster.start),
            (controls.cut_off, lambda cluster, i: cluster.network.isolate(i)),
            (controls.stall, stall),
            (controls.reconnect, lambda cluster, i: cluster.network.reconnect(i)),
            (controls.compact, _compact),
        )
        controls.picture.on_act(partial(self._on_act, controls))
        for buttons, change in of_replicas:
            for replica_id, button in buttons.items():
                answers.connect(
                    button, partial(self._control, button.description.lower(), change, replica_id)
                )

    def _control(self, what: str, act: Act, replica_id: int) -> None:
        async def request() -> str:
            return await in_thread(partial(act, self._watched.mine, replica_id)) or "done"

        if self._answers.begin(what, request):
            self._screen.go_live()

    def _on_act(self, controls: Controls, do: str, on: Any) -> None:
        """Something was chosen in a menu of the picture: of a replica (its number), or of a link."""

        def act() -> None:
            members = self._watched.mine.members
            if do == "via" and on in members:
                controls.via.value = on
            elif do in OF_A_REPLICA and on in members:
                getattr(controls, do)[on].click()
            elif do in ("cut", "stall", "heal") and on in [[a, b] for a, b in permutations(members, 2)]:
                getattr(self._watched.mine.network, do)(tuple(on))
                self._answers.say(f"{do} {on[0]} → {on[1]}", "done")
                self._screen.go_live()

        self._answers.on_loop(act)

    def _on_latency(self, change: dict[str, Any]) -> None:
        seconds = float(change["new"])
        self._answers.on_loop(lambda: self._watched.mine.network.set_latency(seconds))

    def _pause(self) -> None:
        self._watched.mine.network.pause()
        self._screen.go_live()

    def _resume(self) -> None:
        self._watched.mine.network.resume()
        self._screen.go_live()

    def _step(self) -> None:
        network, recorder = self._watched.mine.network, self._watched.recorder
        heartbeats = 0  # that tell nothing new, and the answers to them: they go in passing
        while (event := network.step_one_message()) is not None and heartbeats < _MOST_HEARTBEATS:
            if any(event.number == news.number for news in recorder.newest_messages(_NEWS)):
                break
            heartbeats += 1
        said = "no message is under way"
        if event is not None:
            said = f"{event.sender} → {event.receiver}: {describe(event).label}, {event.kind}"
        said = f"{heartbeats} heartbeats and answers; {said}" if heartbeats else said
        self._answers.say("step", said, replace=True)  # many steps share one line
        self._screen.go_live()

    def _heal(self) -> None:
        self._watched.mine.network.heal()
        self._answers.say("heal", "all links are connected")
        self._screen.go_live()


def _compact(cluster: Cluster, replica_id: int) -> str:
    return f"the log now begins after entry {cluster.compact(replica_id)}"

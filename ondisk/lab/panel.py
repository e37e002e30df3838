"""The panel: put, get and every fault at the press of a button, with a live picture.

Only the kernel's own asyncio loop touches a widget. One task polls the cluster and sets the picture if it
changed; a button starts a task that awaits the answer, so that the kernel stays free. What may block
(a read, a stop) runs in one of a few threads, which know nothing of widgets.

What is asked and answered here makes a history: was it linearizable?
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import ipywidgets as w

from ondisk import diskkv
from ondisk.client import DEFAULT_TIMEOUT
from ondisk.cluster import Cluster
from ondisk.errors import ConfigurationError, NotDone, OndiskError, OutcomeUnknown, Rejected
from ondisk.interrupts.futures import in_background
from ondisk.lab.experiments.faults import stall
from ondisk.lab.pictures import cluster as picture
from ondisk.lab.pictures.history import history_picture
from ondisk.linearizability import Undecided, check
from ondisk.linearizability.history import History, Operation
from ondisk.observe import Recorder, View, describe
from ondisk.statemachine import Result

MAX_WAITING = 16  # requests of one panel that have not been answered
MAX_ANSWERS = 4
_CONFIGURATIONS = 20_000  # to decide about what was asked here: the kernel must not stand still
_TIMEOUT_PAUSED = 30.0  # seconds; nobody can answer while the network stands still

_T = TypeVar("_T")

_panels: weakref.WeakValueDictionary[Path, Panel] = weakref.WeakValueDictionary()


class Panel:
    """A cluster under your hands. Show it as the last value of a cell, as often as you like.

    There is one panel for a data directory: a new one closes the former, so a cell can be run again. The
    widgets are public, so that a program can press them: ``panel.put.click()``, ``await panel.idle()``.

    ``history`` holds what was asked here and answered, since *Forget* was pressed: an operation a request,
    whose client is the replica that was asked. A stale get is in it as a get: whether it is as good as one is
    the question. What a key held before comes first, as a put. What other clients write is not in it.
    """

    def __init__(self, cluster: Cluster, *, every: float = 0.1) -> None:
        """Watch ``cluster``, looking every ``every`` seconds. Needs a running loop, as every cell has."""
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._poller: asyncio.Task[None] | None = None
        self.box: Any = None
        if (former := _panels.get(cluster.data_dir)) is not None:
            former.close()
        self._begin_to_watch(cluster)
        self._every = every
        self._answers: deque[list[str]] = deque(maxlen=MAX_ANSWERS)
        self._record: list[View] = []  # empty: the picture is live
        self.history = History()
        self._judged: tuple[Operation, ...] | None = None
        self._make_widgets()
        self.refresh()
        self._poller = self._loop.create_task(self._poll(), name="ondisk-panel")

    def _begin_to_watch(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.recorder = Recorder(cluster)
        _panels[cluster.data_dir] = self

    def watch(self, cluster: Cluster) -> None:
        """Turn to another cluster, with the same members: the former one may have been closed."""
        if cluster.members != self.cluster.members:
            raise ConfigurationError(
                f"this panel has buttons for {list(self.cluster.members)}, not {list(cluster.members)}"
            )
        self.recorder.close()
        self._forget()
        self._begin_to_watch(cluster)
        self._go_live()

    def _forget(self) -> None:
        if _panels.get(self.cluster.data_dir) is self:
            del _panels[self.cluster.data_dir]

    # What it looks like

    def _make_widgets(self) -> None:
        members = self.cluster.members
        narrow = {"layout": w.Layout(width="190px"), "style": {"description_width": "50px"}}
        self.key = w.Text("colour", description="Key", tooltip="Key to write or read", **narrow)
        self.value = w.Text("blue", description="Value", tooltip="Value to put", **narrow)
        self.via = w.Dropdown(
            options=[("the leader", 0), *((f"replica {i}", i) for i in members)],
            description="Through",
            tooltip="Replica that takes the request",
            layout=w.Layout(width="190px"),
            style={"description_width": "60px"},
        )
        self.put = self._button("Put", "Write the value: durable on a majority, then applied", self._put)
        self.get = self._button("Get", "Linearizable read: sees every acknowledged write", self._get)
        self.stale_get = self._button(
            "Stale get", "What this replica's own state says, maybe old", self._stale_get
        )
        self.delete = self._button("Delete", "Remove the key", self._delete)
        self.incr = self._button("Incr", "Add 1 to the number in the key", self._incr)

        self.latency = w.FloatSlider(
            0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            description="Latency (s)",
            tooltip="How long each message travels, in seconds",
            readout_format=".2f",
            layout=w.Layout(width="330px"),
            style={"description_width": "80px"},
        )
        self.latency.observe(self._on_latency, "value")
        self.pause = self._button("Pause", "Stop messages and time", self._pause)
        self.resume = self._button("Resume", "Let messages and time run again", self._resume)
        self.step = self._button(
            "Step one message", "While paused: deliver the message that waits longest", self._step
        )
        self.heal = self._button("Heal", "Reconnect all links", self._heal)

        self.back = self._button("Back", "Show what was recorded, one step earlier", partial(self._move, -1))
        self.forward = self._button("Forward", "One step later", partial(self._move, +1))
        self.live = self._button("Live", "Show the cluster as it is now", self._go_live)
        self.place = w.IntSlider(
            1,
            min=1,
            max=1,
            description="Recorded",
            tooltip="Which of the recorded moments is shown",
            disabled=True,
            layout=w.Layout(width="420px"),
            style={"description_width": "80px"},
        )
        self.place.observe(lambda _: self._on_loop(self.refresh), "value")

        self.answer = w.HTML()
        self.picture = w.HTML()
        self.table = w.HTML()
        self.messages = w.HTML()
        self.with_messages = w.ToggleButton(
            description="Messages of the last request",
            tooltip="Show who told whom what since a request was last made here",
            layout=w.Layout(width="240px"),
        )
        self.with_messages.observe(lambda _: self.refresh(), "value")

        self.verdict = w.HTML()
        self.with_verdict = w.ToggleButton(
            description="Verdict on what I asked",
            tooltip="Is there an order that explains every answer since Forget was pressed?",
            layout=w.Layout(width="240px"),
        )
        self.with_verdict.observe(lambda _: self.refresh(), "value")
        self.forget = self._button("Forget", "Begin a new history: nothing was asked yet", self._forget_asked)

        self.stop: dict[int, Any] = {}
        self.crash: dict[int, Any] = {}
        self.start: dict[int, Any] = {}
        self.cut_off: dict[int, Any] = {}
        self.stall: dict[int, Any] = {}
        self.reconnect: dict[int, Any] = {}
        self.compact: dict[int, Any] = {}
        columns = [self._replica_buttons(replica_id) for replica_id in members]
        wrap = w.Layout(flex_flow="row wrap")
        self.box = w.VBox(
            [
                w.HBox([self.key, self.value, self.via], layout=wrap),
                w.HBox([self.put, self.get, self.stale_get, self.delete, self.incr], layout=wrap),
                self.answer,
                self.picture,
                w.HBox(columns),
                w.HBox([self.latency, self.pause, self.resume, self.step, self.heal], layout=wrap),
                w.HBox([self.place, self.back, self.forward, self.live], layout=wrap),
                self.table,
                self.with_messages,
                self.messages,
                w.HBox([self.with_verdict, self.forget], layout=wrap),
                self.verdict,
            ]
        )

    def _button(self, name: str, tooltip: str, action: Callable[[], None]) -> Any:
        width = "150px" if len(name) > 12 else "88px"
        button = w.Button(description=name, tooltip=tooltip, layout=w.Layout(width=width))
        button.on_click(lambda _: self._on_loop(lambda: self._guarded(name, action)))
        return button

    def _replica_buttons(self, replica_id: int) -> Any:
        """The buttons of one replica, as wide as its card in the picture."""

        i = replica_id
        plan: list[tuple[str, str, dict[int, Any], Callable[[], object]]] = [
            ("Stop", "Stop cleanly", self.stop, lambda: self.cluster.stop(i)),
            ("Crash", "Lose what was not synced", self.crash, lambda: self.cluster.crash(i)),
            ("Start", "Start from its own disk", self.start, lambda: self.cluster.start(i)),
            ("Cut off", "Cut all its links", self.cut_off, lambda: self.cluster.network.isolate(i)),
            ("Stall", "Hold its messages, lose none", self.stall, lambda: stall(self.cluster, i)),
            ("Reconnect", "Heal all its links", self.reconnect, lambda: self.cluster.network.reconnect(i)),
            (
                "Compact",
                "Drop the log that its state makes needless",
                self.compact,
                lambda: self._compacted(i),
            ),
        ]
        for name, tooltip, buttons, act in plan:
            pressed = partial(self._control, f"{name.lower()} {i}", act)
            buttons[i] = self._button(f"{name} {i}", f"{tooltip} (replica {i})", pressed)
            buttons[replica_id].layout.width = "auto"  # some fonts are wide
        return w.HBox(
            [buttons[replica_id] for _, _, buttons, _ in plan],
            layout=w.Layout(width="276px", flex_flow="row wrap"),
        )

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = dict(self.box._repr_mimebundle_(**options) or {})
        bundle["text/plain"] = picture.in_words(self.recorder.sample())
        return bundle

    # The poller

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            try:
                self.refresh()
            except Exception as error:  # show it, and go on looking
                self._say("watching", _in_words(error))

    def refresh(self) -> None:
        """Look at the cluster and show it, or show what was recorded. What did not change costs nothing."""
        view = self.recorder.sample()
        if self._record:
            shown = self._record[self.place.value - 1]
            self.picture.value = _recorded(shown, view) + picture.cluster_picture(shown)
            self.table.value = picture.status_table(shown)
        else:
            self.picture.value = picture.cluster_picture(view)
            self.table.value = picture.status_table(view, self.recorder.lag())
        self.messages.value = (
            picture.message_diagram(self.recorder.messages(), view.statuses)
            if self.with_messages.value
            else ""
        )
        self._judge()
        if self.latency.value != view.latency:
            self.latency.value = view.latency
        self.pause.disabled, self.resume.disabled = view.paused, not view.paused
        self.step.disabled = not view.paused
        at_the_end = not self._record or self.place.value == len(self._record)
        self.forward.disabled, self.live.disabled = at_the_end, not self._record

    def _judge(self) -> None:
        """Draw the verdict, if it is wanted and something was asked or answered since it was drawn."""
        asked = self.history.operations if self.with_verdict.value else None
        if asked == self._judged:
            return
        self._judged = asked
        if not asked:
            self.verdict.value = "" if asked is None else "Nothing was asked yet."
            return
        try:
            self.verdict.value = history_picture(asked, check(asked, limit=_CONFIGURATIONS)).html
        except Undecided as error:
            self.verdict.value = escape(_in_words(error))

    def _forget_asked(self) -> None:
        self.history = History()
        self.refresh()

    # Back and forward over what was recorded

    def _move(self, steps: int) -> None:
        if not self._record:  # the record that is looked at stands still, whatever is recorded meanwhile
            self._record = self.recorder.samples
            self.place.max = len(self._record)
            self.place.value = len(self._record)
            self.place.disabled = False
        self.place.value += steps  # a slider stays within its bounds
        self.refresh()

    def _go_live(self) -> None:
        self._record = []
        self.place.disabled = True
        self.refresh()

    # Answers

    def _say(self, what: str, outcome: str) -> list[str]:
        line = [what, outcome]
        self._answers.appendleft(line)
        self._show_answers()
        return line

    def _show_answers(self) -> None:
        rows = [f"<b>{escape(what)}</b>: {escape(outcome)}" for what, outcome in self._answers]
        rows = rows or ["Press a button: what it answers is shown here."]
        items = "".join(f"<div>{row}</div>" for row in rows)
        self.answer.value = (
            f'<div role="status" aria-live="polite" style="line-height:1.5;min-height:6em">{items}</div>'
        )

    @property
    def last_answer(self) -> str:
        """The newest line of answers, as plain text."""
        return ": ".join(self._answers[0]) if self._answers else ""

    async def idle(self) -> None:
        """Return when every button that was pressed has been answered."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        self.refresh()

    def _on_loop(self, call: Callable[[], None]) -> None:
        """Call it on the panel's own loop: some front ends deliver clicks to a thread beside it."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            call()
        else:
            self._loop.call_soon_threadsafe(call)

    def _guarded(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._say(name, _in_words(error))

    def _begin(self, what: str, request: Callable[[], Awaitable[str]], asked: str = "") -> None:
        """Run one request as a task; show that it is under way, then its answer or its error."""
        if len(self._tasks) >= MAX_WAITING:
            self._say(what, f"not sent: {MAX_WAITING} requests wait already")
            return
        self._go_live()
        line = self._say(what, "under way…")

        async def run() -> None:
            began = time.perf_counter()
            try:
                outcome = await request()
            except Exception as error:
                outcome = _in_words(error)
            elapsed = (time.perf_counter() - began) * 1000
            line[1] = f"{outcome} ({elapsed:.1f} ms{asked})"
            if not any(shown is line for shown in self._answers):  # pushed out by newer lines meanwhile
                self._answers.appendleft(line)
            self._show_answers()

        task = self._loop.create_task(run(), name="ondisk-panel-request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        # Not with an executor: its locks are taken here, where the stop button's exception may come.
        return await asyncio.wrap_future(in_background(work))

    # What the buttons do

    def _timeout(self) -> float:
        """Seconds to wait: the usual time, and a few round trips more on a slow network."""
        network = self.cluster.network
        return _TIMEOUT_PAUSED if network.paused else DEFAULT_TIMEOUT + 6 * network.latency

    def _via(self) -> int | None:
        return self.via.value or None

    def _asked(self) -> str:
        """Which replica a request goes to, for the line of the answer."""
        replica_id = self._via() or self.cluster.leader_id
        return f", replica {replica_id}" if replica_id else ", no leader known"

    def _ask(
        self,
        what: str,
        operation: tuple[str, *tuple[Any, ...]],
        request: Callable[[], Awaitable[_T]],
        say: Callable[[_T], str],
        *,
        stale: bool = False,
    ) -> None:
        """Make a request of a client. ``operation`` is its name, key and arguments, for the history."""
        asked = self._via() or self.cluster.leader_id
        client = (f"replica {asked}" if asked else "no leader") + ", stale" * stale

        async def answer() -> str:
            history = self.history
            name, key, *arguments = operation
            self._note_what_was_there(history, key)
            number = history.begin(client, name, key, *arguments)
            try:
                answered = await request()
            except NotDone:
                history.not_done(number)
                raise
            except BaseException:  # nobody will hear the answer
                history.unknown(number)
                raise
            history.ok(number, answered.value if isinstance(answered, Result) else answered)
            return say(answered)

        self.recorder.mark()
        self._begin(what, answer, self._asked())

    def _note_what_was_there(self, history: History, key: str) -> None:
        """The first time that a key is asked for: what the replica that has applied most has in it."""
        if any(operation.key == key for operation in history.operations):
            return
        statuses = self.cluster.status().values()
        newest = max(statuses, key=lambda status: (status.running, status.applied_index))
        with suppress(OndiskError):  # nobody runs
            if (value := self.cluster.stale_get(key, via=newest.id)) is not None:
                history.ok(history.begin("before", "put", key, value))

    def _write(
        self,
        what: str,
        operation: tuple[str, *tuple[Any, ...]],
        future: Callable[[], Future[Result]],
        say: Callable[[Result], str],
    ) -> None:
        async def request() -> Result:
            result = await asyncio.wrap_future(future())
            if result.error is not None:
                raise Rejected(result.error)
            return result

        self._ask(what, operation, request, say)

    def _put(self) -> None:
        key, value, via, timeout = self.key.value, self.value.value, self._via(), self._timeout()
        self._write(
            f"put {key} = {value}",
            ("put", key, value),
            lambda: self.cluster.put_async(key, value, via=via, timeout=timeout),
            lambda _: "done",
        )

    def _delete(self) -> None:
        key = self.key.value
        self._propose(f"delete {key}", ("delete", key), diskkv.delete(key), _say_deleted)

    def _incr(self) -> None:
        key = self.key.value
        self._propose(f"incr {key}", ("incr", key, 1), diskkv.incr(key), _say_number)

    def _propose(
        self,
        what: str,
        operation: tuple[str, *tuple[Any, ...]],
        command: bytes,
        say: Callable[[Result], str],
    ) -> None:
        via, timeout = self._via(), self._timeout()
        self._write(
            what, operation, lambda: self.cluster.propose_async(command, via=via, timeout=timeout), say
        )

    def _get(self) -> None:
        key, via, timeout = self.key.value, self._via(), self._timeout()
        self._read(f"get {key}", key, lambda: self.cluster.get(key, via=via, timeout=timeout))

    def _stale_get(self) -> None:
        key, via = self.key.value, self._via()
        self._read(f"stale get {key}", key, lambda: self.cluster.stale_get(key, via=via), stale=True)

    def _read(self, what: str, key: str, read: Callable[[], bytes | None], *, stale: bool = False) -> None:
        self._ask(what, ("get", key), lambda: self._in_thread(read), _shown, stale=stale)

    def _control(self, what: str, act: Callable[[], object]) -> None:
        async def request() -> str:
            said = await self._in_thread(act)
            return said if isinstance(said, str) else "done"

        self._begin(what, request)

    def _compacted(self, replica_id: int) -> str:
        return f"the log now begins after entry {self.cluster.compact(replica_id)}"

    def _on_latency(self, change: dict[str, Any]) -> None:
        seconds = float(change["new"])
        self._on_loop(lambda: self.cluster.network.set_latency(seconds))

    def _pause(self) -> None:
        self.cluster.network.pause()
        self._go_live()

    def _resume(self) -> None:
        self.cluster.network.resume()
        self._go_live()

    def _step(self) -> None:
        event = self.cluster.network.step_one_message()
        said = "no message is under way"
        if event is not None:
            said = f"{event.sender} → {event.receiver}: {describe(event).label}, {event.kind}"
        if self._answers and self._answers[0][0] == "step":  # many steps share one line
            self._answers.popleft()
        self._say("step", said)
        self._go_live()

    def _heal(self) -> None:
        self.cluster.network.heal()
        self._say("heal", "all links are connected")
        self._go_live()

    # The end

    def close(self) -> None:
        """Stop watching and take the widgets away; the cluster goes on. A second call does nothing.

        Also of a panel that an interrupt left half made.
        """
        if self._closed:
            return
        for task in (self._poller, *self._tasks):
            if task is not None:
                task.cancel()
        self.recorder.close()
        if self.box is not None:
            close_widgets(self.box)
        self._forget()  # last: whoever is interrupted before closes it again
        self._closed = True


def close_widgets(widget: Any) -> None:
    """Close a widget with all its children, layouts and styles: ipywidgets keeps each until it is closed."""
    for child in getattr(widget, "children", ()):
        close_widgets(child)
    for part in (getattr(widget, "style", None), widget.layout, widget):
        if part is not None:
            part.close()


def _recorded(shown: View, now: View) -> str:
    ago = f"{now.time - shown.time:.0f} s ago"
    return f"<b>Recorded {ago}.</b> The cluster has gone on: press <i>Live</i> to see it as it is."


def _in_words(error: Exception) -> str:
    hint = " It may still happen: read before you try again." if isinstance(error, OutcomeUnknown) else ""
    return f"{type(error).__name__}: {error}.{hint}"


def _shown(value: bytes | None) -> str:
    if value is None:
        return "no such key"
    text = value.decode(errors="backslashreplace")
    return text if len(text) <= 80 else f"{text[:80]}… ({len(value):,} bytes)"


def _say_deleted(result: Result) -> str:
    return "done" if result.value else "there was no such key"


def _say_number(result: Result) -> str:
    return f"now {result.value!r}"

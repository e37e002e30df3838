"""A moment of a simulated run as a living picture and in words; the events around it, as a table."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from ondisk.lab.experiments.trace import Member, Moment, Trace
from ondisk.lab.pictures.drawing import table
from ondisk.lab.pictures.living import Plain, living_picture
from ondisk.lab.pictures.recording import Recording, under_way, without_actions, without_repeats
from ondisk.lab.pictures.timeline import timeline
from ondisk.observe import Note, Seen
from ondisk.simulation.run import Report
from ondisk.simulation.world import TraceEvent

_MARKS = {  # by the field of a member
    "last": "log to",
    "commit": "commit",
    "applied": "applied",
}
_REPLICA = ("start", "stop", "crash", "failed", "removed", "refused", "install", "import")
_BEFORE, _AFTER = 11, 6  # lines of the record around the present one


def in_words(moment: Moment) -> str:
    """All that the picture shows, as sentences."""
    said = [f"{moment.time:.3f} s", _holders(moment)]
    for member in moment.members:
        marks = ", ".join(f"{name} {getattr(member, field)}" for field, name in _MARKS.items())
        said.append(f"Replica {member.id}: {member.role}, term {member.term}, {marks}")
        said.extend(_notes(moment, member))
    return ". ".join(said) + "."


def _holders(moment: Moment) -> str:
    if not moment.committed:
        return "Nothing is committed yet"
    told = f"Entry {moment.committed} is committed"
    match moment.holders:
        case ():
            return f"⚠ {told}, and no log is long enough to hold it: that is no majority"
        case (one,) if len(moment.voters) > 1:
            return f"⚠ {told}, and only the log of replica {one} is long enough to hold it: no majority"
    names = ", ".join(map(str, moment.holders))
    told = f"{told}, and the logs of {names} are long enough to hold it"
    return f"⚠ {told}: no majority" if moment.too_few else told


def _notes(moment: Moment, member: Member) -> Iterator[str]:
    """What is special about it, and what is under way to it."""
    yield from _told(moment, member)
    if member.deaf_to:
        yield f"hears nothing from {', '.join(map(str, member.deaf_to))}"
    yield from member.coming
    if member.more:
        yield f"and {member.more} more messages"


# The living picture of it


def moment_state(moment: Moment, events: Iterable[Seen] = (), *, rate: float = 0.0) -> Plain:
    """A moment as ``living_picture`` says a view. ``events`` are those of messages that are under way."""
    assert moment.view is not None, "this moment was made by hand"
    up_to = None if moment.acknowledged is None else moment.committed + 1  # its logs differ in length a lot
    told = f"{moment.time:.3f} s. {_holders(moment)}."
    view = replace(moment.view, time=moment.time)
    picture = without_actions(living_picture(view, recorded=told, events=events, rate=rate, up_to=up_to))
    members = {member.id: member for member in moment.members}
    for each in picture["replicas"]:
        if (member := members.get(each["id"])) is not None:
            each["role"] = member.role
            each["note"] = ", ".join([*_told(moment, member), *[each["note"]] * bool(each["note"])])
    return {**picture, "words": in_words(moment)}


def _told(moment: Moment, member: Member) -> Iterator[str]:
    if member.keys is not None:
        yield f"has {member.keys} of {moment.acknowledged} acknowledged keys"
    if member.durable < moment.committed:
        yield f"its log lacks {moment.committed - member.durable} committed"


def run_marks(report: Report) -> list[Note]:
    """What happened in a run that is worth a mark on its timeevent."""
    marks = []
    for event in report.trace:
        if event.kind == "fault":
            number = int(event.words.partition(":")[0])
            words = (
                str(report.faults[number]).partition(": ")[2] if number < len(report.faults) else event.words
            )
            marks.append(Note(event.time, words, "fault"))
        elif event.kind in _REPLICA:
            marks.append(Note(event.time, f"{event.words}: {event.kind}", "replica"))
        elif event.kind == "violation":
            marks.append(Note(event.time, event.words, "violation"))
        elif event.kind == "status" and ("leader in" in event.words or "state 2" in event.words):
            marks.append(Note(event.time, f"replica {event.words}", "election"))
    return marks


def recording_of_run(trace: Trace, title: str = "A run", captions: Sequence[Note] = ()) -> Recording:
    """A page that plays it. Raises ``ValueError`` if there is no moment in it."""
    if not trace.moments:
        raise ValueError("there is no moment in this trace")
    report, moments = trace.report, trace.moments
    told = zip(moments, under_way([moment.time for moment in moments], trace.messages), strict=True)
    pictures = list(without_repeats([moment_state(moment, events) for moment, events in told]))
    first, last = moments[0].time, moments[-1].time
    line = run_timeline(trace, first)
    seconds = f"{first:.2f} to {last:.2f} s of virtual time"
    origin = f"The simulator of ondisk, seed {report.seed}, {seconds}. " + (
        f"Violation: {report.violation}" if report.rule else "No rule was violated."
    )
    return Recording(title, pictures, line, captions, origin)


def run_timeline(trace: Trace, at: float, *, playing: bool = False, speed: float = 0.25) -> Plain:
    """The timeline of a run. Its bands are when too few logs had what was committed."""
    first, last = trace.moments[0].time, trace.moments[-1].time
    return timeline(
        run_marks(trace.report),
        first,
        last,
        at,
        playing=playing,
        speed=speed,
        bands=trace.exposures(),
        band="what is committed is in too few logs",
    )


# The same numbers, and the events


def moment_table(moment: Moment) -> str:
    """One row for each replica."""
    with_keys = moment.acknowledged is not None
    names = ["replica", "role", "term", "log to", "commit", "applied", *["acknowledged keys"] * with_keys]
    rows = [
        [m.id, m.role, m.term, m.last, m.commit, m.applied, *[m.keys] * with_keys] for m in moment.members
    ]
    return table(names, rows, f"At {moment.time:.3f} s")


def event_table(
    record: Sequence[TraceEvent], since: int, until: int, wanted: Callable[[TraceEvent], bool]
) -> str:
    """Lines ``since`` to ``until`` of the record are now; some of those before and after them are shown, too.

    ``wanted`` says which lines are shown at all.
    """
    before = _some(record, range(since - 1, -1, -1), wanted, _BEFORE)[::-1]
    now = _some(record, range(since, until), wanted, _BEFORE)
    after = _some(record, range(until, len(record)), wanted, _AFTER)
    rows = [
        (when, f"{event.time:.3f}", event.kind, event.words)
        for when, events in (("", before), ("▶ now", now), ("later", after))
        for event in events
    ]
    rows = rows or [("", "", "", "no such line near here")]
    caption, bold = f"The record: {len(record):,} lines", range(len(before), len(before) + len(now))
    return table(("when", "seconds", "what", "in words"), rows, caption, words={2, 3}, bold=bold)


def _some(
    record: Sequence[TraceEvent], numbers: range, wanted: Callable[[TraceEvent], bool], most: int
) -> list[TraceEvent]:
    found = (record[number] for number in numbers if wanted(record[number]))
    return list(itertools.islice(found, most))

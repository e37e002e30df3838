"""A replica that catches up by a snapshot: what has arrived of it, and what the replica answers meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

from ondisk.lab.experiments.lagging import Moment
from ondisk.lab.pictures.drawing import Picture, box, disc, in_bytes, line, svg, table, text
from ondisk.lab.pictures.figures import figure_picture, new_figure
from ondisk.lab.pictures.sizes import log_in_words
from ondisk.raft.limits import CHUNK_BYTES

_LEFT, _WIDTH, _ROW = 170, 330, 28
_WORDS = _LEFT + _WIDTH + 14


def catch_up_picture(moment: Moment, replica_id: int, expected: int) -> Picture:
    """The logs of all replicas on one scale, what has arrived, and what was answered; then as a table.

    ``expected`` is how many bytes the whole snapshot has.
    """
    statuses = moment.statuses
    low = min(min(status.first_index, status.applied_index) for status in statuses.values())
    high = max(max(status.last_index, status.first_index) for status in statuses.values())

    def x(index: int) -> float:
        return _LEFT + _WIDTH * (index - low) / max(1, high - low)

    parts, words, y = [], [], 18
    for other, status in sorted(statuses.items()):
        wide = max(2.0, x(status.last_index) - x(status.first_index))
        said = log_in_words(status)
        parts += [
            text(8, y + 5, f"Replica {other}: {status.role}", "bold"),
            line("faint", _LEFT, y, _LEFT + _WIDTH, y),
            box("card", x(status.first_index), y - 7, wide, 14),
            disc(x(status.applied_index), y, 5),
            text(_WORDS, y + 5, f"{said}, state after {status.applied_index:,}"),
        ]
        words.append(f"Replica {other}: {status.role}, {said}, state after {status.applied_index}")
        y += _ROW
    legend = f"entries {low:,} to {high:,}; box: what is in the log; disc: what the state holds"
    parts.append(text(_LEFT, y, legend))
    y += _ROW
    stream = stream_in_words(moment)
    arrived = _WIDTH * min(1.0, (moment.arrived or 0) / max(1, expected))
    parts += [
        text(8, y + 5, f"Stream to {replica_id}", "bold"),
        box("card", _LEFT, y - 8, _WIDTH, 16),
        box("mark", _LEFT, y - 8, arrived, 16),
        text(_WORDS, y + 5, stream),
    ]
    y += _ROW
    answers = f"{moment.answers}; slowest {moment.answers.slowest * 1e3:.1f} ms"
    parts += [text(8, y + 5, "Its answers", "bold"), text(_LEFT, y + 5, answers, "")]
    words += [f"Stream to replica {replica_id}: {stream}", f"Its answers: {answers}"]
    described = ". ".join(words) + "."
    drawn = svg("A replica catches up", described, 780, y + 20, parts)
    return Picture(drawn + _table([("now", moment)], replica_id), described)


def stream_in_words(moment: Moment) -> str:
    """How much of a snapshot has arrived."""
    if moment.arrived is None:
        return "nothing under way"
    return f"{in_bytes(moment.arrived)}, {-(-moment.arrived // CHUNK_BYTES)} chunks so far"


def _table(moments: Sequence[tuple[str, Moment]], replica_id: int) -> str:
    """One row for each of these moments, which have names."""
    rows = []
    for name, moment in moments:
        status, answers = moment.statuses[replica_id], moment.answers
        rows.append(
            (name, log_in_words(status), f"{status.applied_index:,}", stream_in_words(moment), *answers[:4])
        )
    names = (f"replica {replica_id}", "log", "state after", "stream", "old", "new", "mixed", "failed")
    return table(names, rows, "The same as numbers")


def plot_catch_up(moments: Sequence[Moment], replica_id: int) -> Picture:
    """Above: bytes that have arrived. Below: how many answers came from the old and the new state."""
    title = f"Replica {replica_id} while it catches up"
    times = [moment.time for moment in moments]
    figure = new_figure(8.4, 4.4)
    above, below = figure.subplots(2, 1, sharex=True)
    streaming = [(moment.time, moment.arrived / 1e6) for moment in moments if moment.arrived is not None]
    above.plot(*zip((times[0], 0.0), *streaming, strict=True), "o-", markersize=3)
    above.set(ylabel="MB arrived", title=title)
    for kind, style in (("old", "s--"), ("new", "o-")):
        counts = [getattr(moment.answers, kind) for moment in moments]
        below.plot(times, counts, style, markersize=3, label=f"from the {kind} state")
    below.set(xlabel="seconds", ylabel="answers so far")
    below.legend()
    swap = next((moment for moment in moments if moment.answers.new), None)
    words = [title]
    if streaming:
        most = max(arrived for _, arrived in streaming)
        words.append(f"{most:.1f} MB arrived from second {streaming[0][0]:.1f} on")
    if swap is not None:
        for axes in (above, below):
            axes.axvline(swap.time, color="black", linestyle=":")
        above.annotate("swapped", (swap.time, 0), xytext=(-4, 4), textcoords="offset points", ha="right")
        words.append(f"swapped at second {swap.time:.1f}")
    words.append(f"answers in the end: {moments[-1].answers}")
    first_new = [("at the swap", swap)] if swap is not None else []
    named = [("at the beginning", moments[0]), *first_new, ("at the end", moments[-1])]
    return figure_picture(figure, ". ".join(words) + ".", _table(named, replica_id), kind="svg")

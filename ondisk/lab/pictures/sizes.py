"""Sizes: as the state grows, in a directory, in a log, and what a view costs on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ondisk.lab.experiments.bank import Use
from ondisk.lab.experiments.directories import Content
from ondisk.lab.experiments.growth import Sizes
from ondisk.lab.pictures.drawing import (
    Picture,
    box,
    in_bytes,
    in_seconds,
    svg,
    table,
    table_picture,
    text,
    titled,
)
from ondisk.lab.pictures.figures import figure_picture, new_figure
from ondisk.replica import ReplicaStatus

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def log_in_words(status: ReplicaStatus) -> str:
    """``log 12 to 40``, or ``log empty, next is 41``."""
    if status.first_index > status.last_index:
        return f"log empty, next is {status.first_index:,}"
    return f"log {status.first_index:,} to {status.last_index:,}"


def log_table(status: ReplicaStatus, size: int) -> Picture:
    """What one replica's log holds, and how many bytes its directory has."""
    row = (f"replica {status.id}", log_in_words(status), f"{status.applied_index:,}", in_bytes(size))
    return table_picture("One log", ("", "entries", "state after entry", "log directory"), [row])


def directory_table(name: str, contents: Sequence[Content]) -> Picture:
    """What a state machine's directory holds, one row a name, with the files' sizes and links."""
    rows = [(each.name, in_bytes(each.bytes), _inside(each)) for each in contents]
    return table_picture(f"{name}/", ("name", "size", "what is in it"), rows)


def _inside(content: Content) -> str:
    if content.files is None:
        return f"“{content.text}”" if content.text else "empty"
    shared = f", {in_bytes(content.shared)} of them hard links" if content.shared else ""
    return f"{content.files} files{shared}"


# A view


def use_picture(uses: Sequence[Use]) -> Picture:
    """A bar for each moment: what only the live database has, what both have, what only the view keeps."""
    left, width, row = 210, 400, 44
    most = max(use.total for use in uses) or 1
    legend = (
        "solid outline: only in the live database; filled: hard links, in both; "
        "dashed outline: only in the view"
    )
    parts, said = [text(8, 16, legend)], []
    for place, use in enumerate(uses):
        y, x = 30 + place * row, float(left)
        parts.append(text(8, y + 16, use.moment))
        words = []
        for size, name, style in (
            (use.live - use.shared, "live only", "card"),
            (use.shared, "both", "mark"),
            (use.view - use.shared, "view only", "card off"),
        ):
            long = width * size / most
            if long >= 0.5:
                parts.append(titled(f"{name}: {in_bytes(size)}", box(style, x, y, long, 18)))
            x += long
            words += [f"{name} {in_bytes(size)}"] * (size > 0)
        parts.append(text(x + 8, y + 14, in_bytes(use.total), "bold small"))
        parts.append(text(left, y + 32, ", ".join(words)))
        said.append(f"{use.moment}: {in_bytes(use.total)} on disk, {', '.join(words)}")
    described = ". ".join(said) + "."
    drawn = svg("Disk use of a view", described, 780, 30 + len(uses) * row, parts)
    numbers = [[use.moment, *map(in_bytes, use[1:])] for use in uses]
    names = ("moment", "live database", "view", "of it in both", "on disk")
    return Picture(drawn + table(names, numbers, "The same as numbers"), described)


# As the state grows

_SIZES = (  # field, name, style of the line
    ("state", "state on disk", "s-"),
    ("snapshot", "snapshot as a stream", "^:"),
    ("entries", "entries in the log", "D-."),
    ("dump", "dump of the state", "v--"),
    ("record", "compaction record", "o-"),
)
_TIMES = (
    ("dump_seconds", "dump the state", "v--"),
    ("prepare_seconds", "hold it still", "^:"),
    ("record_seconds", "compact the log", "o-"),
)


def plot_growth(found: Sequence[Sizes]) -> Picture:
    """Bytes and seconds as the number of keys grows, on logarithmic scales, and the same as a table."""
    figure = new_figure(9.6, 4.2)
    left, right = figure.subplots(1, 2)
    _draw(left, found, _SIZES)
    left.set(title="How large it is", ylabel="bytes")
    _draw(right, found, _TIMES)
    right.set(title="How long it takes", ylabel="seconds")
    first, last = found[0], found[-1]
    words = f"From {first.keys:,} to {last.keys:,} keys: " + "; ".join(
        [f"{name} from {in_bytes(getattr(first, field))} to {in_bytes(getattr(last, field))}"
         for field, name, _ in _SIZES]
        + [f"to {name} takes {in_seconds(getattr(first, field))}, then {in_seconds(getattr(last, field))}"
           for field, name, _ in _TIMES]
    )  # fmt: skip
    sizes = _growth_table("How large it is", found, _SIZES, in_bytes)
    times = _growth_table("How long it takes", found, _TIMES, in_seconds)
    return figure_picture(figure, words + ".", sizes + times, kind="svg")


def _growth_table(
    caption: str, found: Sequence[Sizes], lines: Sequence[tuple[str, str, str]], say: Callable[[Any], str]
) -> str:
    names = ["keys", *(name for _, name, _ in lines)]
    rows = [[f"{sizes.keys:,}", *(say(getattr(sizes, field)) for field, _, _ in lines)] for sizes in found]
    return table(names, rows, caption)


def _draw(axes: Axes, found: Sequence[Sizes], lines: Sequence[tuple[str, str, str]]) -> None:
    """One line each, told apart by its mark and its dashes too."""
    for field, name, style in lines:
        values = [getattr(sizes, field) for sizes in found]
        axes.plot([sizes.keys for sizes in found], values, style, label=name)
    axes.set(xscale="log", yscale="log", xlabel="keys")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")

"""Every plot can be saved as SVG, and its numbers as CSV: by a link in the picture, and by a program."""

from __future__ import annotations

import base64
import csv
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ondisk.lab.experiments.crash import Crashed
from ondisk.lab.experiments.load import Cost
from ondisk.lab.pictures.costs import plot_group_commit, plot_latencies
from ondisk.lab.pictures.drawing import Picture, svg, table, text
from ondisk.lab.pictures.figures import figure_picture, new_figure

COST = Cost(puts=10, in_flight=4, seconds=2.0, latency=0.0123, log_syncs=5)


def saved(picture: Picture) -> dict[str, str]:
    """What its links save, by the ending of the name."""
    found = re.findall(r'<a download="[^"]+\.(\w+)" href="data:[^;]+;base64,([^"]+)"', picture._repr_html_())
    return {kind: base64.b64decode(data).decode() for kind, data in found}


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines()))


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_figure_is_saved_as_svg_with_every_point_that_was_drawn(kind: str) -> None:
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.plot([1, 2], [0.25, 1 / 3], label="a line, and a comma")
    axes.set(title="Some plot")
    files = saved(figure_picture(figure, "Words.", kind=kind))  # type: ignore[arg-type]
    assert ET.fromstring(files["svg"]).tag == "{http://www.w3.org/2000/svg}svg"
    assert rows(files["csv"]) == [
        ["plot", "series", "x", "y"],
        ["Some plot", "a line, and a comma", "1.0", "0.25"],
        ["Some plot", "a line, and a comma", "2.0", str(1 / 3)],
    ]


def test_bars_and_lines_of_the_notebooks_have_their_numbers() -> None:
    bars = rows(plot_latencies({"no disk is slow": COST, "one is": COST}).csv)
    assert bars[1:] == [
        ["milliseconds from asking until the answer, median", name, "12.3", ""]
        for name in ("no disk is slow", "one is")
    ]
    lines = rows(plot_group_commit({"fast": [COST]}).csv)
    assert ["puts per second", "fast", "4.0", "5.0"] in lines
    assert ["puts that share one fsync of the leader", "fast", "4.0", "2.0"] in lines


def test_a_drawn_picture_is_saved_with_its_style_and_the_numbers_of_its_table(tmp_path: Path) -> None:
    drawn = svg("Title", "Some <words>", 100, 50, [text(1, 2, "a & b")])
    picture = Picture(drawn + table(["name", "n"], [["x < y", 1], ["z", 2]], "A table"), "Some <words>")
    root = ET.parse(picture.save(tmp_path / "it.svg")).getroot()
    assert root.get("viewBox") == "0 0 100 50"
    assert ".ondisk text" in "".join(root.itertext()) and "a & b" in "".join(root.itertext())
    assert (picture.save(tmp_path / "it.csv")).read_text() == "A table\nname,n\nx < y,1\nz,2\n"
    assert saved(picture) == {"svg": picture.svg, "csv": picture.csv}
    with pytest.raises(ValueError, match=r"it\.pdf: this can be saved as \.svg or \.csv"):
        picture.save(tmp_path / "it.pdf")


def test_a_table_has_no_svg_and_says_so(tmp_path: Path) -> None:
    only = Picture(table(["a"], [[1]], "One"), "One")
    assert saved(only).keys() == {"csv"}
    with pytest.raises(ValueError, match=r"saved as \.csv"):
        only.save(tmp_path / "it.svg")
    assert saved(Picture("<p>Nothing yet.</p>", "Nothing yet.")) == {}


def test_a_picture_of_crashes_saves_what_its_table_says() -> None:
    from ondisk.lab.pictures.crash import crash_picture, crash_table

    crashes = [Crashed("mine", "crash", "before the index", 2, (1, 2), 3, 3)]
    assert crash_picture(crashes).csv == crash_table(crashes).csv
    assert "before the index" in crash_picture(crashes).csv

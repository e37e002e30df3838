"""What a person at a prompt sees beside the answers: colours, a pager, and how long it took."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import click
import pytest

from ondisk.cli import Console, input
from ondisk.cli.prompt import coloured


class Echo(Console):
    """Answers each line with itself, as often as it says."""

    def __init__(self) -> None:
        pass

    def execute(self, line: str) -> str:
        return "\n".join([line] * int(line))


@pytest.mark.parametrize(
    ("line", "styles"),
    [
        ("get k", ["bold", "", ""]),
        ("QUIT", ["bold"]),
        ("pu", [""]),  # it may become one
        ("pu k", ["ansired", "", ""]),
        ("  put --file 'my file' k", ["", "bold", "", "ansicyan", "", "ansigreen", "", ""]),
        (r'put k "a \" b', ["bold", "", "", "", "ansigreen"]),  # its end is still to come
        ("", []),
        ("put k " + "'" * 20_000, [""]),
    ],
)
def test_a_line_is_coloured_part_by_part_and_stays_as_it_is(line: str, styles: list[str]) -> None:
    parts = coloured(line)
    assert [part[0] for part in parts] == styles
    assert "".join(part[1] for part in parts) == line


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What went through the pager, at a screen of ten lines."""
    paged: list[str] = []
    monkeypatch.setattr(click, "echo_via_pager", paged.append)
    monkeypatch.delenv("PAGER", raising=False)
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setenv("COLUMNS", "80")
    return paged


def test_what_does_not_fit_on_the_screen_goes_through_a_pager_and_nothing_else(
    paged: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    input.carry_out(Echo(), ["8", "9"], typed=True)
    assert paged == ["\n".join("9" * 9)]
    assert re.fullmatch(r"(8\n){8}\(\d+ ms\)\n\(\d+ ms\)\n", capsys.readouterr().out)
    input.carry_out(Echo(), ["9"], typed=False)
    assert capsys.readouterr().out == "9\n" * 9  # a pipe gets the answer
    monkeypatch.setenv("PAGER", "")
    input.carry_out(Echo(), ["9"], typed=True)
    assert capsys.readouterr().out.startswith("9\n" * 9)
    assert len(paged) == 1


def test_a_prompt_without_prompt_toolkit_is_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ondisk.cli.prompt")
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    typed: Iterator[str] = iter(["get k", "exit"])

    def line(prompt: str) -> str:
        assert prompt == "ondisk> "
        if (line := next(typed, None)) is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", line)
    assert list(input.typed_lines("ondisk> ")) == ["get k", "exit"]

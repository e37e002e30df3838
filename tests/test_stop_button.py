"""The stop button of a notebook, in a real kernel: whenever it is pressed, the same cell runs again."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager, start_new_kernel

from tests.lengths import short_and_long

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "01-three-replicas.ipynb"
SECONDS = 60.0  # that a cell may take, on a busy machine


class Kernel:
    """A kernel in a process of its own, and its stop button."""

    def __init__(self, folder: Path) -> None:
        self.manager: KernelManager
        self.answers: dict[str, dict[str, Any]] = {}
        self.manager, self.client = start_new_kernel(cwd=str(folder))

    def begin(self, cell: str) -> str:
        return str(self.client.execute(cell, stop_on_error=False))

    def end(self, asked: str) -> dict[str, Any]:
        """What became of a cell. Those that were begun before have ended by then, or never will."""
        deadline = time.monotonic() + SECONDS
        while asked not in self.answers:
            answer = self.client.get_shell_msg(timeout=max(0.1, deadline - time.monotonic()))
            self.answers[answer["parent_header"]["msg_id"]] = dict(answer["content"])
        return self.answers[asked]

    def run(self, cell: str) -> float:
        """Run a cell, which must end well; return for how many seconds it ran."""
        began = time.monotonic()
        answer = self.end(self.begin(cell))
        assert answer["status"] == "ok", (cell, answer["traceback"][-1])
        return time.monotonic() - began

    def press_stop(self) -> None:
        self.manager.interrupt_kernel()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path)
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("presses", short_and_long(12, 200))
def test_whenever_stop_is_pressed_the_same_cell_runs_again(kernel: Kernel, presses: int) -> None:
    """Every cell of the first notebook, at random moments of its run, seeded."""
    import nbformat  # as in test_notebooks.py

    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    seconds = [kernel.run(cell) for cell in cells]
    chance = random.Random(5)
    stopped = 0
    for press in range(presses):
        number = press % len(cells)
        asked = kernel.begin(cells[number])
        time.sleep(chance.uniform(0.0, min(seconds[number], 2.0)))  # the moment, and nothing is waited for
        kernel.press_stop()
        kernel.run(cells[number])
        # None: it came before the cell began, and the kernel itself forgot what it had been asked for.
        answer = kernel.answers.get(asked)
        if answer is not None and answer["status"] == "error":
            assert answer["ename"] in ("KeyboardInterrupt", "CancelledError"), answer["traceback"][-1]
            stopped += 1
    assert stopped >= presses // 4
    kernel.run("cluster.close()")

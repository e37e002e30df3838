"""Crash a process on purpose: work runs in a child process that dies at a chosen point of its disk.

``python -c`` starts one *child*, which imports what is needed and then only forks: each run is a fork of its
own, so a hundred crashes cost one start of Python. The child itself never opens a database, because a process
whose RocksDB has threads must not fork.

Two ways to die, and they prove different things. ``kill`` ends the process at once (SIGKILL). What it had
written is with the operating system and stays, synced or not; so this shows in which *order* things were
written. A ``power cut`` keeps for certain only what was synced, which is what ``OnDiskStateMachine.crash``
leaves behind.
"""

from __future__ import annotations

import inspect
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Literal, NamedTuple, NoReturn

from ondisk.storage.disk import Disk

SECONDS = 30  # one run may take so long, then it is killed and reported

_RAM_DISK = "/dev/shm"
_ROOM_BYTES = 512 << 20  # RocksDB reserves more than it uses

How = Literal["kill", "power cut"]


@dataclass(frozen=True)
class Point:
    """Where to crash: when the disk says ``name`` (``None``: anything) for the ``occurrence``-th time."""

    occurrence: int  # from 1
    name: str | None = None
    how: How = "kill"


class Run(NamedTuple):
    """How a run ended. ``crashed`` names the point where it died; ``None``: it ran to its end."""

    crashed: str | None
    points: tuple[str, ...]  # everything that the disk said, in order
    note: Any  # the last ``CrashingDisk.note``
    value: Any  # what the work returned


class ChildFailed(Exception):
    """The work raised an error, took too long, or killed its process by accident. The text says how."""


class CrashingDisk(Disk):
    """A disk that notes its points and dies at one of them."""

    def __init__(self, crash: Point | None, die: Callable[[str], NoReturn]) -> None:
        self.note: Any = None  # how far the work has come, in its own words; picklable
        self.power_cut: Callable[[], None] = lambda: None  # ``machine.crash``, once there is a machine
        self._die = die
        self.arm(crash)

    def arm(self, crash: Point | None) -> None:
        """Die at this point, counted from now; ``None``: at none."""
        self.points: list[str] = []  # what was reached since
        self._crash = crash
        self._dying = False

    @property
    def crashed(self) -> bool:
        """Whether it has come to the point at which it dies."""
        return self._dying

    def reach(self, point: str) -> None:
        """Note the point; die if it is the one."""
        if self._dying:
            return
        self.points.append(point)
        crash = self._crash
        if crash is None or crash.name not in (None, point):
            return
        occurred = len(self.points) if crash.name is None else self.points.count(point)
        if occurred == crash.occurrence:
            self._dying = True
            if crash.how == "power cut":
                self.power_cut()
            self._die(point)


Work = Callable[..., Any]  # (disk: CrashingDisk, *arguments) -> value


class Child:
    """A process that runs work in forks of itself. A context manager: at its end all of them are gone."""

    def __init__(self, *classes: type, seconds: int = SECONDS) -> None:
        """``classes`` are those of the caller that the work needs: the child imports their files.

        Raises ``ChildFailed`` for one that has no file.
        """
        self._seconds = seconds
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._talking = threading.RLock()
        modules = [(each.__module__, _file_of(each)) for each in classes]
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from sys import path; path[:] = {sys.path!r}\n{_MAIN}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # an interrupt is for us, and we end the whole group
        )
        self._ask((modules, seconds))

    def run(self, work: Work, *arguments: Any, crash: Point | None = None) -> Run:
        """Call ``work(disk, *arguments)`` in a fresh process, which dies at ``crash`` if it gets there.

        ``work`` is a function of a module, and everything is pickled. Raises ``ChildFailed``.
        """
        outcome = self._ask(pickle.dumps((work, arguments, crash)))
        if isinstance(outcome, str):
            raise ChildFailed(outcome)
        return Run(*outcome)

    def _ask(self, question: object) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._talking:
            if self._errors.closed:
                raise ChildFailed("the child process was closed")
            try:
                pickle.dump(question, self._process.stdin)
                self._process.stdin.flush()
                answer = pickle.load(self._process.stdout)
            except (EOFError, BrokenPipeError, pickle.UnpicklingError):
                self._errors.seek(0)
                said = self._errors.read().decode(errors="replace")
                self.close()
                raise ChildFailed(f"the child process has gone. It said:\n{said}") from None
            return answer

    def close(self) -> None:
        """Kill what still runs. From any thread; a second call does nothing."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        with self._talking:  # who waits for an answer in another thread has met the end of the stream first
            for stream in (self._process.stdin, self._process.stdout, self._errors):
                assert stream is not None
                with suppress(BrokenPipeError):  # a question that was never read
                    stream.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _file_of(cls: type) -> str:
    try:
        file = inspect.getsourcefile(sys.modules[cls.__module__])
    except (KeyError, TypeError):
        file = None
    if file is None or cls.__module__ == "__main__":
        raise ChildFailed(
            f"a child process cannot import {cls.__name__}: define it in a file of its own, not in "
            f"{cls.__module__} (in a notebook, begin the cell with %%writefile)"
        )
    return os.path.abspath(file)


def load_file(path: Path | str, name: str) -> ModuleType:
    """Execute a Python file as module ``name``, afresh each time. Raises whatever the file raises."""
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def ram_disk(room: int) -> str | None:
    """A directory in memory, if there is one with so many bytes of room; ``None`` means the usual place."""
    try:
        roomy = shutil.disk_usage(_RAM_DISK).free > room
    except OSError:
        return None
    return _RAM_DISK if roomy and os.access(_RAM_DISK, os.W_OK) else None


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory that is gone at the end, in memory if there is room.

    Neither way to die needs a real disk: a killed process leaves its files to the operating system anyway,
    and a power cut is worked out from what was synced. In memory a database opens four times as fast.
    """
    with tempfile.TemporaryDirectory(prefix="ondisk-", dir=ram_disk(_ROOM_BYTES)) as name:
        yield Path(name)


# In the child

_MAIN = "from ondisk.testing.crashing import _serve; _serve()"


def _serve() -> None:
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the work prints is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # nobody wants the memory of what died on purpose
    modules, seconds = pickle.load(questions)
    signal.alarm(seconds)  # ends this process unless called off, whatever it is busy with
    for name, file in modules:
        if name not in sys.modules:
            load_file(file, name)
    signal.alarm(0)
    answer: object = None
    while True:
        pickle.dump(answer, answers)
        answers.flush()
        try:
            question = pickle.load(questions)
        except EOFError:
            return
        answer = _fork(question, seconds)


def _fork(question: bytes, seconds: int) -> object:
    """Run the work in a fork; return what it left in a pipe, or a sentence: how it failed."""
    from_fork, to_parent = os.pipe()
    if (pid := os.fork()) == 0:
        signal.alarm(seconds)
        _work(question, to_parent)
    os.close(to_parent)
    with os.fdopen(from_fork, "rb") as pipe:
        left = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if left:
        return pickle.loads(left)
    if status == -signal.SIGALRM:
        return (
            f"the work took more than {seconds} s. If this was a power cut: does crash() wait for the call "
            "that it interrupts?"
        )
    return f"the process died of itself, with status {status}"


def _work(question: bytes, to_parent: int) -> NoReturn:
    def leave(outcome: object) -> NoReturn:
        """Say how it ended, and die. Nothing is closed, flushed or tidied up on the way."""
        data = pickle.dumps(outcome)
        while data:
            data = data[os.write(to_parent, data) :]
        os.kill(os.getpid(), signal.SIGKILL)
        raise SystemExit  # never comes here

    def die(point: str) -> NoReturn:
        leave((point, tuple(disk.points), disk.note, None))

    try:
        work, arguments, crash = pickle.loads(question)
        disk = CrashingDisk(crash, die)
        value = work(disk, *arguments)
        leave((None, tuple(disk.points), disk.note, value))
    except BaseException:
        leave(traceback.format_exc())

"""Faults that a machine makes in the engine: ``python -m tests.mutation --seed 8 --count 100 [FILE...]``.

Each changes one operator, number, condition or statement in the syntax tree of a function, and the tests
that are written for that file must notice. All run in one process that has collected the tests: a child of
it puts the changed code in place of the function's and runs them until one fails. What they let pass may be
put before the simulator (``--simulate``: how many seeds). docs/mutations.md has what came of it. Not changed
are annotations, texts, log messages, assertions, class bodies and constants.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import os
import random
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ondisk.simulation.run import run

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "ondisk"
_RAFT = "engine engine_leader progress instants legacy raft members reads leases"
_STATE = "contract limits group_snapshots compaction"
_GROUP = "founding lost_disks copies evidence"
_STREAMS = "streams group_snapshots snapshot_damage compaction"
# The tests for each file, those that need a few milliseconds first.
TESTS = {
    "raft/changes.py": f"{_RAFT} {_GROUP}",
    "raft/core.py": _RAFT,
    "raft/elections.py": _RAFT,
    "raft/engine.py": _RAFT,
    "raft/follower.py": _RAFT,
    "raft/handover.py": _RAFT,
    "raft/leader.py": _RAFT,
    "raft/limits.py": "limits",
    "raft/log.py": "log_bookkeeping raftlog raftlog_sync raftlog_damage step members",
    "raft/logstore.py": "log_bookkeeping raftlog raftlog_sync raftlog_damage formats inspect",
    "raft/members.py": "configuration",
    "raft/membership.py": f"{_RAFT} {_GROUP}",
    "raft/messages.py": _RAFT,
    "raft/progress.py": _RAFT,
    "raft/records.py": "log_bookkeeping raftlog raftlog_sync raftlog_damage",
    "raft/rounds.py": _RAFT,
    "raft/tail.py": "tail log_bookkeeping raftlog",
    "raft/watermark.py": "log_bookkeeping raftlog_sync raftlog_damage raftlog",
    "replica/admin.py": f"step {_STATE}",
    "replica/belonging.py": f"step {_GROUP}",
    "replica/compaction.py": f"compaction_rules step {_STATE}",
    "replica/opening.py": f"step {_STATE} {_GROUP}",
    "replica/proposals.py": "requests instants limits members",
    "replica/reads.py": "requests instants reads leases",
    "replica/replica.py": f"step reads {_STATE} {_GROUP} raft",
    "replica/requests.py": "requests reads",
    "replica/status.py": f"step {_STATE}",
    "sessions.py": "sessions session_model session_records session_group session_calls",
    "snapshot/background.py": f"job {_STREAMS}",
    "snapshot/export.py": f"{_STREAMS} backup",
    "snapshot/receiver.py": _STREAMS,
    "snapshot/restore.py": "restore",
    "snapshot/sender.py": _STREAMS,
    "snapshot/stream.py": f"stream {_STREAMS} formats",
    "snapshot/streaming.py": _STREAMS,
}
ROOMS = "raft", "replica", "snapshot"  # all of whose files are in the table
SECONDS = 60  # that one test, or one run of the simulator, may take with a fault in it

_COMPARED: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_COUNTED: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
_LEFT_ALONE = (ast.Assert, ast.Raise, ast.JoinedStr, ast.arguments, ast.ClassDef)


class Place(NamedTuple):
    """Where the tree can be changed: ``field`` of ``node`` (or its ``index``) becomes ``new``."""

    line: int
    what: str
    node: Any
    field: str
    index: int | None
    new: Any

    def put(self, value: Any) -> Any:
        """Put it there; return what was there."""
        if self.index is None:
            before = getattr(self.node, self.field)
            setattr(self.node, self.field, value)
        else:
            before = getattr(self.node, self.field)[self.index]
            getattr(self.node, self.field)[self.index] = value
        return before


def instead(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """What may stand in place of a node, and how that is called."""
    match node:
        case ast.Constant(value=bool()):
            yield "the opposite", ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield "one more", ast.Constant(node.value + 1)
            yield "one less", ast.Constant(node.value - 1)
        case ast.BoolOp():
            yield "and/or", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
            for left_out in node.values:
                rest = [value for value in node.values if value is not left_out]
                yield "operand left out", rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
        case ast.UnaryOp(op=ast.Not()):
            yield "not left out", copy.copy(node.operand)
        case ast.BinOp() if type(node.op) in _COUNTED:
            yield "arithmetic", ast.BinOp(node.left, _COUNTED[type(node.op)](), node.right)
        case ast.Compare():
            for index, operator in enumerate(node.ops):
                for other in _COMPARED[type(operator)]:
                    ops = [*node.ops[:index], other(), *node.ops[index + 1 :]]
                    yield "comparison", ast.Compare(node.left, ops, node.comparators)
        case ast.Call(func=ast.Name()) if node.func.id in _CALLED:
            name = ast.copy_location(ast.Name(_CALLED[node.func.id], ast.Load()), node)
            yield "min/max, any/all", ast.Call(name, node.args, node.keywords)
        case ast.Return(value=ast.expr()) if ast.unparse(node) != "return None":
            yield "returns None", ast.Return(ast.copy_location(ast.Constant(None), node))
        case ast.Continue():
            yield "break", ast.Break()
        case ast.Break():
            yield "continue", ast.Continue()
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Delete() | ast.Return(value=None):
            yield "left out", ast.Pass()
        case ast.Assign() if all(isinstance(each, ast.Attribute | ast.Subscript) for each in node.targets):
            yield "left out", ast.Pass()


def places(node: ast.AST) -> Iterator[Place]:
    """All changes below a node."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        many = isinstance(value, list)
        for index, child in enumerate(value if many else [value]):
            if not isinstance(child, ast.AST) or isinstance(child, _LEFT_ALONE) or _logs(child):
                continue
            where = node, field, index if many else None
            line = getattr(child, "lineno", 0)
            for what, new in instead(child):
                yield Place(line, what, *where, ast.fix_missing_locations(ast.copy_location(new, child)))
            if field in ("test", "ifs") and not isinstance(child, ast.Compare | ast.Constant):
                new = ast.copy_location(ast.UnaryOp(ast.Not(), child), child)
                yield Place(line, "negated", *where, ast.fix_missing_locations(new))
            if isinstance(node, ast.For | ast.ExceptHandler) and field in ("iter", "type"):
                yield Place(line, "none", *where, ast.copy_location(ast.Tuple([], ast.Load()), child))
            yield from places(child)


def _outermost(node: ast.AST) -> Iterator[ast.FunctionDef]:
    """The functions of a module and its classes; those inside of a function belong to that one."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield child
        else:
            yield from _outermost(child)


def _logs(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and ast.unparse(node).startswith("logger.")


class File:
    """One file of the engine, and its functions as they are in this process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = ENGINE / name
        self.tree = ast.parse(self.path.read_text())
        self.places = [place for function in _outermost(self.tree) for place in places(function)]
        self.functions: dict[tuple[str, int], list[types.FunctionType]] = {}
        for each in gc.get_objects():
            if isinstance(each, types.FunctionType) and each.__code__.co_filename == str(self.path):
                key = each.__code__.co_qualname, each.__code__.co_firstlineno
                self.functions.setdefault(key, []).append(each)
        self.codes = self._codes()

    def _codes(self) -> dict[tuple[str, int], types.CodeType]:
        """What the tree compiles to, by name and line."""
        found, waiting = {}, [compile(self.tree, str(self.path), "exec")]
        for code in waiting:
            found[code.co_qualname, code.co_firstlineno] = code
            waiting += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        return found

    def change(self, place: Place) -> None:
        """Put it in place of the functions of this process. Raises if that is not possible."""
        place.put(place.new)
        changed = {key: code for key, code in self._codes().items() if code != self.codes.get(key)}
        found = [(each, changed[key]) for key in changed for each in self.functions.get(key, ())]
        if not found:
            raise ValueError("no function has it")
        for function, code in found:
            function.__code__ = code

    def text(self, place: Place) -> str:
        """The line and the change, for people."""
        line = self.path.read_text().splitlines()[place.line - 1].strip()
        new = "" if isinstance(place.new, ast.Pass) else f" -> {ast.unparse(place.new)}"
        return f"{self.name}:{place.line} {place.what}: {line}{new}"


# By what a child ends with. One that breaks off has shown nothing: somebody must look.
BROKE_OFF = "broke off"
VERDICTS = {
    1: "noticed",
    0: "NOT NOTICED",
    2: "by simulator",
    3: "not possible",
    -signal.SIGALRM: "took too long",
}


class Runner:
    """In place of pytest's loop over the tests: a child for each fault."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._asked = asked
        self.failed = ""  # of a child: the first test that has failed
        self.counts = dict.fromkeys([*VERDICTS.values(), BROKE_OFF], 0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or (report.nodeid if report.failed else "")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        files = [File(name) for name in self._asked.files]
        faults = [(file, place) for file in files for place in file.places]
        random.Random(self._asked.seed).shuffle(faults)
        chosen = faults[self._asked.start :][: self._asked.count]
        for number, (file, place) in enumerate(chosen, self._asked.start):
            tests = [f"test_{name}.py" for name in TESTS[file.name].split()]
            items = [item for item in session.items if item.path.name in tests]
            items.sort(key=lambda item: tests.index(item.path.name))
            verdict, failed = self._try(file, place, items)
            self.counts[verdict] += 1
            by = f" (by {failed})" if failed else ""
            print(f"{number:4} {verdict:12} {file.text(place)}{by}", file=sys.stderr)
        print(f"{len(chosen)} of {len(faults)} faults: {self.counts}", file=sys.stderr)
        return True

    def _try(self, file: File, place: Place, items: list[pytest.Item]) -> tuple[str, str]:
        """Return the verdict, and which test has failed."""
        reader, writer = os.pipe()
        if child := os.fork():
            os.close(writer)
            with os.fdopen(reader) as told:
                failed = told.read()
            _, status = os.waitpid(child, 0)
            return VERDICTS.get(os.waitstatus_to_exitcode(status), BROKE_OFF), failed
        try:
            items[0].config.pluginmanager.unregister(name="terminalreporter")
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends a child that hangs
            try:
                file.change(place)
            except Exception:
                os._exit(3)
            for item in items:
                signal.alarm(SECONDS)
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
                if self.failed:
                    os.write(writer, self.failed.partition("::")[2].encode())
                    os._exit(1)
            for seed in range(self._asked.simulate):
                signal.alarm(SECONDS)
                if run(seed).rule is not None:
                    os._exit(2)
            os._exit(0)
        finally:
            os._exit(4)


def main() -> int:
    """Try the faults of one seed."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("files", nargs="*", default=list(TESTS), metavar="FILE", help=", ".join(TESTS))
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--start", type=int, default=0, help="how many of the seed's order to pass over")
    parser.add_argument("--simulate", type=int, default=0, help="how many seeds, for what no test notices")
    asked = parser.parse_args()
    runner = Runner(asked)
    tests = {f"tests/test_{test}.py": None for name in asked.files for test in TESTS[name].split()}
    options = ["-q", "-p", "no:cacheprovider", "-n", "0", "-o", "timeout=0", "-m", "not slow"]
    os.chdir(ROOT)
    ended = pytest.main([*options, *tests], plugins=[runner])
    return int(
        ended not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        or not sum(runner.counts.values())
    )


if __name__ == "__main__":
    sys.exit(main())

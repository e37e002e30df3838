"""The exercises of notebook 8: a Raft of one's own, stage by stage."""

from __future__ import annotations

from pathlib import Path

from ondisk.lab.exercises.check import exercise
from ondisk.lab.experiments.own_raft import HOLES, SEEDS, examine, judge, load


def _stage(file: str, stage: str) -> str | None:
    if not Path(file).is_file():
        return f"There is no file {file}. The cell under *The file with the holes* makes it."
    return examine(load(file), stage)


@exercise(
    "8.1",
    points=3,
    hints=[
        "The comments in the hole are the figure's own rules: write a line of code under each.",
        "A log is up-to-date if (its last term, its last index) >= yours: tuples compare like that.",
        "self.log.set_hard_state(term, vote) writes both; self._reset_election_timer(now) waits anew.",
    ],
)
def election(file: str) -> str | None:
    """``file`` defines ``MyRaft``."""
    return _stage(file, "election")


@exercise(
    "8.2",
    points=2,
    hints=[
        "Term and vote stand in the log, because a restart must find them there.",
        "A newer term begins without a vote of yours; nothing happens in the same term, or an older one.",
        "If term > self.current_term: set_hard_state(term, None), and then self.step_down(now).",
    ],
)
def persistence(file: str) -> str | None:
    """``file`` defines ``MyRaft``."""
    return _stage(file, "persistence")


@exercise(
    "8.3",
    points=3,
    hints=[
        "Take the five rules in their order. An answer is AppendEntriesResult(term, success, log_index).",
        "An entry that is there, with the same term, stays: truncate only at the first that differs.",
        "The last new entry is prev_log_index + len(entries): commit to min(leader_commit, that).",
    ],
)
def log(file: str) -> str | None:
    """``file`` defines ``MyRaft``."""
    return _stage(file, "log")


@exercise(
    "8.4",
    points=3,
    hints=[
        "The leader holds its own log to the end. What do all of them hold, sorted?",
        "In the sorted list of an odd number of servers, a majority holds what stands in the middle.",
        "n is sorted(held)[(len(held) - 1) // 2], and log.term_at(n) must be the current term.",
    ],
)
def commit(file: str) -> str | None:
    """``file`` defines ``MyRaft``."""
    return _stage(file, "commit")


@exercise(
    "8.5",
    points=3,
    hints=[
        "A log begins behind base_index: what is at or before it stands in no message.",
        "next_index <= base_index: then send no entries, and let prev_log_index be base_index.",
        "install_snapshot: commit_index = max(commit_index, index), and last_applied = index.",
    ],
)
def compaction(file: str) -> str | None:
    """``file`` defines ``MyRaft``."""
    return _stage(file, "compaction")


@exercise(
    "8.6",
    points=5,
    hints=[
        "The rule that is broken says where to look: docs/simulation.md lists them all.",
        "judge(...) returns the report: step through it in the player, and stop before the violation.",
        "Compare your method with raft_paper.py, line by line. Which line of the figure is not there?",
    ],
)
def silent(file: str) -> str | None:
    """``file`` defines ``MyRaft``."""
    for stage in HOLES:
        if (wrong := _stage(file, stage)) is not None:
            return f"First the stage {stage}. {wrong}"
    report = judge(load(file), SEEDS)
    if report is None:
        return None
    return f"Seed {report.seed}, with {len(report.faults)} faults: {report.violation}"

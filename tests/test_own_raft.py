"""Notebook 8: what the starter lacks, and that each hole, filled wrongly, is told so by its stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from ondisk.lab.experiments import own_raft
from ondisk.lab.experiments.own_raft import HOLES, examine, judge, load, solution, source_of, starter
from ondisk.lab.raft_paper import Raft
from tests.lengths import short_and_long

METHODS = [method for methods in HOLES.values() for method in methods]

# By method: what is filled in wrongly, in place of what, and a word of the hint.
WRONG = [
    (
        "request_vote",
        "self.log.voted_for in (None, request.candidate_id) and up_to_date",
        "up_to_date",
        "One vote",
    ),
    ("request_vote", " and up_to_date", "", "behind yours"),
    (
        "request_vote",
        "self.log.set_hard_state(self.current_term, request.candidate_id)",
        "pass",
        "into the log",
    ),
    ("start_election", "self.current_term + 1, self.id", "self.current_term, self.id", "next term"),
    ("start_election", "self._reset_election_timer(now)", "pass", "begins anew"),
    ("start_election", "self.log.last_term)", "self.current_term)", "last entry"),
    ("_on_vote", "if result.vote_granted:", "if True:", "those who vote"),
    ("_on_vote", "result.term != self.current_term or ", "", "in this term"),
    ("_on_vote", "self._is_majority(len(self.votes))", "len(self.votes) > 1", "three voters"),
    ("see_term", "term > self.current_term", "term >= self.current_term", "changes nothing"),
    (
        "see_term",
        "set_hard_state(term, None)",
        "set_hard_state(term, self.log.voted_for)",
        "nobody has your vote",
    ),
    ("see_term", "self.step_down(now)", "pass", "is a follower"),
    ("append_entries", "log.term_at(entry.index) != entry.term", "True", "takes nothing away"),
    ("append_entries", "min(request.leader_commit, last_new)", "request.leader_commit", "not compared"),
    ("append_entries", "prev_log_index >= log.base_index and ", "", "base_index"),
    ("_on_result", "result.term != self.current_term or ", "", "another term"),
    ("_on_result", "self.next_index[sender] = result.log_index", "pass", "decrement"),
    ("_on_result", "result.log_index != self.next_index[sender] - 1", "False", "same try"),
    ("advance_commit_index", " and self.log.term_at(n) == self.current_term", "", "figure 8"),
    ("advance_commit_index", "(len(held) - 1) // 2", "-1", "no majority"),
    ("advance_commit_index", "n > self.commit_index and ", "", "stays committed"),
    ("to_apply", "self.last_applied + 1", "self.last_applied", "none twice"),
    ("to_apply", "self.commit_index, self", "self.log.last_index, self", "up to commitIndex"),
    ("to_apply", "self.last_applied >= self.commit_index", "True", "Apply each entry"),
    ("needs_snapshot", "<=", "<", "needs a snapshot"),
    ("needs_snapshot", "next_index", "match_index", "behind base_index"),
    ("needs_snapshot", "log.base_index", "commit_index", "needs a snapshot"),
    ("_entries_for", "max(next_index - 1, log.base_index)", "next_index - 1", "may be dropped"),
    ("_entries_for", " and not self.needs_snapshot(follower)", "", "begins later"),
    ("_entries_for", "self.commit_index", "log.last_index", "know to be committed"),
    ("install_snapshot", "max(self.commit_index, index)", "index", "stays committed"),
    ("install_snapshot", "self.commit_index = max(self.commit_index, index)", "pass", "is committed"),
    ("install_snapshot", "self.last_applied = index", "pass", "lastApplied"),
]


def written(directory: Path, text: str) -> type[Raft]:
    file = directory / "my_raft.py"
    file.write_text(text)
    return load(file)


def filled_wrongly(directory: Path, method: str, old: str, new: str) -> type[Raft]:
    source = source_of(method)
    assert source.count(old) >= 1, f"{method} does not say {old}"
    return written(directory, solution(**{method: source.replace(old, new)}))


def test_the_starter_has_the_words_of_each_hole_and_no_code(tmp_path: Path) -> None:
    text = starter()
    assert text.count("raise NotImplementedError") == len(METHODS)
    assert "Reply false if term < currentTerm" in text and "truncate_from" not in text
    mine = written(tmp_path, text)
    for stage in HOLES:
        assert "There is a hole yet" in (examine(mine, stage) or "")


def test_the_figure_itself_passes_each_stage(tmp_path: Path) -> None:
    mine = written(tmp_path, solution())
    assert [examine(mine, stage) for stage in HOLES] == [None] * len(HOLES)


@pytest.mark.parametrize(("method", "old", "new", "hint"), WRONG, ids=lambda word: str(word)[:24])
def test_a_hole_that_is_filled_wrongly_is_caught_by_its_stage(
    tmp_path: Path, method: str, old: str, new: str, hint: str
) -> None:
    """With the hint that fits; and the other stages find nothing, so it is clear where to look."""
    mine = filled_wrongly(tmp_path, method, old, new)
    for stage, methods in HOLES.items():
        said = examine(mine, stage)
        assert (hint in (said or "")) if method in methods else said is None, said


def test_each_hole_is_filled_wrongly_in_three_ways() -> None:
    assert {method: [case[0] for case in WRONG].count(method) for method in METHODS} == dict.fromkeys(
        METHODS, 3
    )


@pytest.mark.parametrize("seeds", short_and_long(range(1), range(100)))
def test_the_judge_is_silent_about_the_figure(seeds: range, tmp_path: Path) -> None:
    assert judge(written(tmp_path, solution()), seeds) is None


@pytest.mark.long
@pytest.mark.slow
def test_the_judge_brings_a_violation_with_few_faults(tmp_path: Path) -> None:
    """A vote for any log, as in the notebook."""
    case = next(case for case in WRONG if case[3] == "behind yours")
    report = judge(filled_wrongly(tmp_path, *case[:3]), range(2))
    assert report is not None and report.rule == "leader completeness"
    assert len(report.faults) < 6 and report.trace


def test_a_raft_that_never_rests_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time would stand still, and the reader wait for ever."""
    monkeypatch.setattr(own_raft, "_MAX_STEPS", 3000)
    case = next(case for case in WRONG if case[3] == "begins anew")
    report = judge(filled_wrongly(tmp_path, *case[:3]), range(2))
    assert report is not None and report.rule == "endless"

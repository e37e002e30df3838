"""Every safeguard is good for something: a test fails without it, and mostly chance shows it too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ondisk.simulation.group import SECONDS
from ondisk.simulation.run import Setting, run
from ondisk.simulation.safeguards import SAFEGUARDS
from tests.lengths import LONG

RAFT, MEMBERS, SNAPSHOTS = "test_raft.py::", "test_members.py::", "test_group_snapshots.py::"
FOUNDING, LOST_DISKS = "test_founding.py::", "test_lost_disks.py::"
COPIES, EVIDENCE, LEASES = "test_copies.py::", "test_evidence.py::", "test_leases.py::"

# The test that fails without it.
TESTS = {
    "keep-matching-entries": RAFT + "test_messages_that_repeat_known_entries_never_truncate_the_log",
    "match-before-commit": RAFT + "test_a_message_that_does_not_match_commits_nothing",
    "commit-what-is-proven": RAFT + "test_a_follower_commits_no_further_than_the_message_proved",
    "refuse-failed-install": SNAPSHOTS
    + "test_the_stream_of_a_deposed_leader_ends_and_the_receiver_keeps_its_old_state",
    "terms-in-replies": RAFT + "test_a_reply_from_another_term_counts_for_nothing",
    "install-keeps-tail": SNAPSHOTS + "test_a_snapshot_replaces_no_more_of_the_log_than_it_must",
    "restart-keeps-log": SNAPSHOTS + "test_a_power_cut_at_any_point_of_a_compaction_loses_nothing",
    "one-vote-a-voter": RAFT + "test_one_voter_cannot_elect_a_leader_by_voting_twice",
    "sync-the-log": RAFT + "test_a_vote_survives_a_power_cut_after_it_was_given",
    "remember-the-vote": RAFT + "test_a_vote_survives_a_power_cut_after_it_was_given",
    "leader-syncs-too": RAFT
    + "test_no_promise_leaves_and_nothing_is_applied_while_the_log_holds_unsynced_entries",
    "conflict-hint": RAFT + "test_a_follower_that_missed_thousands_of_entries_is_found_in_a_few_round_trips",
    "stop-on-error": RAFT + "test_an_exception_in_the_state_machine_stops_that_replica_alone",
    "fresh-request-numbers": RAFT + "test_an_answer_to_an_earlier_life_is_not_taken_for_a_new_request",
    "messages-before-timers": RAFT + "test_a_stall_longer_than_the_election_timeout_starts_no_election",
    "pre-vote": RAFT + "test_a_replica_that_was_cut_off_deposes_nobody_when_it_comes_back",
    "check-quorum": RAFT + "test_a_leader_without_a_majority_steps_down_within_an_election_timeout",
    "answer-old-terms": RAFT + "test_a_deposed_leader_learns_its_fate_from_the_answer",
    "confirm-reads": MEMBERS + "test_a_learner_is_counted_neither_for_a_commit_nor_for_a_read",
    "own-term-first": MEMBERS
    + "test_a_new_leader_changes_no_members_before_it_has_committed_an_entry_of_its_own",
    "wait-for-state": SNAPSHOTS + "test_a_lost_state_is_reported_and_fetched_from_the_leader",
    "sync-before-compaction": MEMBERS + "test_a_removal_survives_compaction_and_restart",
    "up-to-date-leader": RAFT + "test_acknowledged_writes_survive_a_leader_that_dies_while_it_resends",
    "commit-own-term": RAFT + "test_an_entry_of_an_earlier_term_is_not_committed_by_counting_replicas",
    "one-change-at-a-time": MEMBERS + "test_a_second_change_waits_until_the_first_is_committed",
    "founding-is-unanimous": FOUNDING + "test_a_group_is_not_founded_before_the_last_one_has_voted",
    "rounds-of-founding": FOUNDING + "test_a_vote_for_a_group_counts_in_its_own_round_only",
    "refuse-other-groups": COPIES + "test_a_directory_of_another_group_is_refused_with_both_names",
    "votes-from-named-disks": LOST_DISKS
    + "test_what_another_disk_acknowledges_under_the_number_of_a_voter_counts_for_nothing",
    "refuse-replaced-disks": LOST_DISKS
    + "test_a_disk_that_was_replaced_is_not_heard_when_it_comes_back_and_says_why",
    "newest-life-only": COPIES + "test_an_old_copy_that_is_put_back_is_refused_however_often_it_is_started",
    "check-changes-first": EVIDENCE
    + "test_a_removal_that_would_leave_no_majority_is_refused_and_changes_nothing",
    "learner-progress-per-disk": LOST_DISKS
    + "test_what_a_learner_had_acknowledged_is_forgotten_with_its_disk",
    "replace-only-the-silent": LOST_DISKS
    + "test_a_second_replica_with_the_number_of_one_that_lives_is_told_so",
    "evidence-as-of-sending": EVIDENCE
    + "test_a_leader_that_was_frozen_does_not_go_on_with_answers_from_before",
    "answers-confirm-their-round": EVIDENCE
    + "test_a_read_is_confirmed_only_by_answers_to_what_was_sent_after_it_was_asked",
    "lease-margin": LEASES
    + "test_a_lease_is_over_before_the_promises_are_however_clocks_drift_within_the_bound",
    "lease-ends-at-handover": LEASES + "test_a_lease_ends_when_another_one_is_told_to_stand_and_stays_ended",
    "promise-binds-votes": LEASES + "test_a_vote_that_was_promised_before_is_not_given_in_a_lease",
    "promise-outlives-connection": LEASES + "test_a_connection_that_ends_ends_no_promise",
    "promise-outlives-restart": LEASES
    + "test_a_voter_that_was_started_again_keeps_what_it_may_have_promised",
}
# The first seed on which the simulator finds out, by which rule, and the virtual seconds if they are not 60.
# A change of the code may change that: `python -m ondisk.simulation --seeds 0:500 --without NAME` finds it
# (those of leases with `--drift 0.25`). docs/simulation.md names it as well.
SEEDS: dict[str, tuple[int, str] | tuple[int, str, float]] = {
    "keep-matching-entries": (1, "durable majority"),
    "match-before-commit": (2, "state machine safety"),
    "commit-what-is-proven": (11, "state machine safety"),
    "refuse-failed-install": (4, "exactly once"),
    "restart-keeps-log": (0, "leader completeness"),
    "sync-the-log": (0, "a replica that cannot start"),
    "leader-syncs-too": (0, "applied beyond the log"),
    "stop-on-error": (11, "order"),
    "check-quorum": (0, "fresh evidence"),
    "confirm-reads": (7, "linearizability"),
    "own-term-first": (333, "linearizability", 10.0),
    "wait-for-state": (12, "replica failed"),
    "sync-before-compaction": (0, "compaction"),
    "up-to-date-leader": (3, "leader completeness"),
    "founding-is-unanimous": (7, "progress"),
    "rounds-of-founding": (699, "replica failed", 3.0),
    "refuse-replaced-disks": (28, "progress", 8.0),
    "votes-from-named-disks": (8, "one disk", 10.0),
    "newest-life-only": (20, "newest life", 10.0),
    "learner-progress-per-disk": (8, "replica failed", 10.0),
    "replace-only-the-silent": (8, "living disk", 10.0),
    "refuse-other-groups": (37, "one group"),
    "check-changes-first": (21, "checked changes"),
    "evidence-as-of-sending": (4, "fresh evidence"),
    "answers-confirm-their-round": (27, "linearizability"),
    "lease-margin": (54, "one leader in a lease", 15.0),
    "lease-ends-at-handover": (10, "one leader in a lease"),
    "promise-binds-votes": (62, "linearizability"),
    "promise-outlives-connection": (1, "linearizability"),
    "promise-outlives-restart": (2, "linearizability"),
}


# In the short run those that chance does not show. The simulator notices the others there, see below.
_BY_A_TEST = [
    pytest.param(name, marks=() if safeguard.why_not else LONG) for name, safeguard in SAFEGUARDS.items()
]


@pytest.fixture(scope="module")
def outcomes(pytestconfig: pytest.Config) -> dict[str, tuple[int, str]]:
    """How each of those tests ends without its safeguard, and what pytest prints."""
    long = pytestconfig.getoption("--long")
    orders = {
        name: f"tests/{test}" for name, test in TESTS.items() if bool(SAFEGUARDS[name].why_not) is not long
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.without"],
        cwd=Path(__file__).parents[1],
        input=json.dumps(orders),
        capture_output=True,
        text=True,
        check=True,
    )
    return {name: tuple(outcome) for name, outcome in json.loads(done.stdout).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", _BY_A_TEST)
def test_some_test_fails_without_it(name: str, outcomes: dict[str, tuple[int, str]]) -> None:
    """The same one passes with it, in its own file."""
    status, printed = outcomes[name]
    assert status == pytest.ExitCode.TESTS_FAILED, printed


@pytest.mark.parametrize("name", [name for name in SAFEGUARDS if not SAFEGUARDS[name].why_not])
def test_the_simulator_finds_out(name: str) -> None:
    """By the rule that says so, on the seed that is on record."""
    seed, rule, *short = SEEDS[name]
    setting = Setting(
        without=(name,), seconds=float(*short) if short else SECONDS, drift=SAFEGUARDS[name].drift
    )
    assert run(seed, setting, tracing=False).rule == rule


def test_every_safeguard_has_a_test_and_a_seed_or_a_reason() -> None:
    assert TESTS.keys() == SAFEGUARDS.keys()
    assert SEEDS.keys() == {name for name, safeguard in SAFEGUARDS.items() if not safeguard.why_not}


def test_the_table_in_the_documentation_is_this_list() -> None:
    """Name, rule, test, and seed and broken rule, or reason."""
    table = (Path(__file__).parents[1] / "docs" / "simulation.md").read_text()
    for name, safeguard in SAFEGUARDS.items():
        file, test = TESTS[name].split("::")
        seed, rule, *short = SEEDS.get(name, (None, ""))
        length = f" of {short[0]:g} s" if short else ""
        length += " with leases" if safeguard.drift is not None else ""
        chance = f"no: {safeguard.why_not}" if seed is None else f"seed {seed}{length}: {rule}"
        assert f"| `{name}` | {safeguard.rule} | `{file}`: `{test}` | {chance} |" in table

"""Faults made on purpose, and the test that notices each: ``python -m tests.mutants [NAME...]``.

A test suite is as good as the faults it notices. Each of these is put into a copy of the project, one at a
time, and a test that passes without it must fail. The table in ``docs/mutations.md`` is this list.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutant(NamedTuple):
    """A fault: in ``file`` the text ``old`` becomes ``new``, and ``test`` must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = (
    # The replica
    Mutant(
        "messages leave before the log is synced",
        "replica/replica.py",
        "        self.log.sync()\n        if",
        "        if",
        "test_raft.py::test_no_promise_leaves_and_nothing_is_applied_while_the_log_holds_unsynced_entries",
    ),
    Mutant(
        "a put is answered when it is in the leader's log",
        "replica/proposals.py",
        "                self._await(index, proposal)\n        for change",
        "                self._answer(proposal.reply, Result())\n        for change",
        "test_raft.py::test_a_proposal_whose_entry_is_overwritten_is_known_not_to_have_happened",
    ),
    Mutant(
        "a waiting caller gets the answer of whatever entry took the place of its own",
        "replica/proposals.py",
        "            if term == entry.term:\n",
        "            if term <= entry.term:\n",
        "test_raft.py::test_a_proposal_whose_entry_is_overwritten_is_known_not_to_have_happened",
    ),
    Mutant(
        "a read does not wait until what it must see is applied",
        "replica/reads.py",
        "                if index > applied:",
        "                if index > applied + 1000:",
        "test_raft.py::test_a_read_waits_until_the_index_it_was_told_is_applied_here",
    ),
    Mutant(
        "the log is compacted before the state is synced",
        "replica/compaction.py",
        "        self._sync_machine()\n        self._disk.reach",
        "        self._disk.reach",
        "test_compaction.py::test_compaction_syncs_the_state_first_and_makes_no_snapshot",
    ),
    Mutant(
        "Raft's own entries after the last command are compacted away",
        "replica/compaction.py",
        "        index = self.machine_index  # not",
        "        index = raft.applied_index  # not",
        "test_compaction.py::test_compaction_never_passes_what_the_state_holds_when_it_is_reopened",
    ),
    Mutant(
        "a forwarded command is said to be undone when the leader goes away",
        "replica/proposals.py",
        'proposal.reply, OutcomeUnknown("the leader went',
        'proposal.reply, NotDone("the leader went',
        "test_raft.py::test_a_forwarded_proposal_fails_as_unknown_when_the_leader_goes_away",
    ),
    Mutant(
        "an installation that a crash cut short is always forgotten",
        "replica/opening.py",
        "    if opened_index >= log.installing[0]:",
        "    if opened_index > log.installing[0] + 1000:",
        "test_group_snapshots.py::test_a_power_cut_at_any_point_of_an_installation_leaves_the_old_or_the_new",
    ),
    # Raft
    Mutant(
        "entries are applied twice",
        "replica/replica.py",
        "            self.apply(entries)\n",
        "            self.apply(entries)\n            self.apply(entries[-1:])\n",
        "test_cluster.py::test_ten_thousand_puts_through_all_replicas_reach_all_replicas",
    ),
    Mutant(
        "one replica less than a majority commits",
        "raft/leader.py",
        "        majority = held[(len(held) - 1) // 2]",
        "        majority = held[len(held) // 2 + 1 if len(held) > 2 else 0]",
        "test_members.py::test_a_new_voter_makes_the_majority_larger",
    ),
    Mutant(
        "learners are counted for a commit",
        "raft/leader.py",
        "*[progress[voter].match for voter in self._membership.others]])\n        majority",
        "*[each.match for each in progress.values()]])\n        majority",
        "test_members.py::test_a_learner_is_counted_neither_for_a_commit_nor_for_a_read",
    ),
    Mutant(
        "a voter that lags decides about reads",
        "raft/leader.py",
        "        return rounds[(len(rounds) - 1) // 2]",
        "        return rounds[-1]",
        "test_members.py::test_a_learner_is_counted_neither_for_a_commit_nor_for_a_read",
    ),
    Mutant(
        "a conflicting tail stays in the log",
        "raft/follower.py",
        "            if term is not None:\n                log.truncate_from(entry.index)\n",
        "            if term is not None:\n                return []\n",
        "test_raft.py::test_a_conflicting_tail_is_replaced_and_the_matching_part_kept",
    ),
    Mutant(
        "a leader that heard of a newer term goes on",
        "raft/engine.py",
        "        if term > self._term:\n            self._SyncObj__setCurrentTerm(term, None)\n"
        "            self.step_down()",
        "        if term > self._term:\n            self._SyncObj__setCurrentTerm(term, None)",
        "test_raft.py::test_a_leader_that_hears_of_a_newer_term_leads_no_more",
    ),
    Mutant(
        "a removed replica is heard",
        "raft/core.py",
        "        if sender in self.membership.removed:",
        "        if sender in ():",
        "test_members.py::test_whatever_a_removed_replica_says_is_not_heard",
    ),
    # The log
    Mutant(
        "the vote is not stored",
        "raft/log.py",
        "        return self.term, self.voted_for",
        "        return self.term, None",
        "test_raft.py::test_a_vote_survives_a_power_cut_after_it_was_given",
    ),
    Mutant(
        "what was cut off is there again after a restart",
        "raft/log.py",
        "            self._cut_from = index  # lower",
        "            self._cut_from = None  # lower",
        "test_raftlog_sync.py::test_nothing_is_durable_before_sync_and_everything_after",
    ),
    Mutant(
        "a lost end of the log is not noticed",
        "raft/logstore.py",
        "        if (durable := self._watermark.read()) > self._batches:",
        "        if (durable := self._watermark.read()) > self._batches + 1000000:",
        "test_raftlog_damage.py::test_a_torn_tail_is_a_former_state_without_a_witness_and_corrupt_with_it",
    ),
    Mutant(
        "members that were changed by an entry stay changed when it is cut off",
        "raft/log.py",
        "            self._configurations.pop()",
        "            break",
        "test_members.py::test_a_change_whose_entry_is_cut_off_is_taken_back",
    ),
    Mutant(
        "a snapshot drops what the log holds beyond it",
        "raft/log.py",
        "        if self.term_at(index) == term and index <= self.synced_index:",
        "        if False:",
        "test_group_snapshots.py::test_a_snapshot_replaces_no_more_of_the_log_than_it_must",
    ),
    # The state machine
    Mutant(
        "the index is stored in a write of its own, after the data",
        "diskkv.py",
        "        store.put_meta(batch, _APPLIED_INDEX,",
        "        store.write(batch)\n        batch = store.batch()\n"
        "        store.put_meta(batch, _APPLIED_INDEX,",
        "test_torn_wal.py",
    ),
    Mutant(
        "a command does not see the ones before it in the same batch",
        "verbs/pending.py",
        "        return self.data[key] if key in self.data else self.store.get(key)",
        "        return self.store.get(key)",
        "test_diskkv.py",
    ),
    Mutant(
        "an entry that was applied before is applied again",
        "diskkv.py",
        "            if entry.index <= applied:",
        "            if entry.index <= applied - 1000:",
        "test_diskkv_durability.py",
    ),
    Mutant(
        "the pointer to the live database is replaced without waiting for the disk",
        "storage/generations.py",
        "        try:\n            sync_directory(self.path, self._disk)\n",
        "        try:\n            pass\n",
        "test_diskkv_snapshots.py",
    ),
    Mutant(
        "a write-ahead log that misses its end is taken, though another one follows",
        "storage/holes.py",
        "            if number > due:",
        "            if False:",
        "test_holes.py::test_a_log_that_was_copied_too_early_is_refused",
    ),
    # Sessions
    Mutant(
        "a command that a session has seen is applied again",
        "sessions.py",
        "        if decoded.sequence > record.sequence:",
        "        if decoded.sequence >= record.sequence:",
        "test_session_group.py::test_in_a_session_the_same_counts_once",
    ),
    Mutant(
        "a watch is not told that what it asks for is compacted",
        "verbs/changes.py",
        "        if query.after < since:",
        "        if False:",
        "test_verbs.py::test_the_history_is_bounded_and_says_what_is_gone",
    ),
    Mutant(
        "a transaction does not see the commands before it in the same batch",
        "verbs/txn.py",
        "        present = pending.get(compare.key)",
        "        present = pending.store.get(compare.key)",
        "test_verbs.py::test_a_transaction_does_one_branch_whole",
    ),
    Mutant(
        "a comparison asks a history that not every replica has",
        "verbs/changes.py",
        "        if since < max(history.since, history.agreed or 0, index - MAX_UNCHANGED):",
        "        if since < history.since:",
        "test_verbs.py::test_replicas_that_were_upgraded_at_different_entries_decide_alike",
    ),
    Mutant(
        "two who measure the same time count it twice",
        "verbs/keyleases.py",
        "        return command.seen == self._clock",
        "        return True",
        "test_keyleases.py::test_time_passes_once_whoever_says_so",
    ),
    Mutant(
        "a key that was set without its lease goes with it all the same",
        "verbs/pending.py",
        "        if self.leases.keys:",
        "        if False:",
        "test_keyleases.py::test_a_key_that_is_set_without_the_lease_is_free_of_it",
    ),
    Mutant(
        "a snapshot brings no leases along",
        "diskkv.py",
        "            history, leases = stored_history(new, index), stored_leases(new)",
        "            history, leases = stored_history(new, index), self._leases",
        "test_keyleases.py::test_leases_and_the_clock_outlive_a_restart_and_a_snapshot",
    ),
    Mutant(
        "sessions are not stored with the data",
        "diskkv.py",
        "            for session, record in sessions.records():",
        "            for session, record in ():",
        "test_session_group.py::test_a_restart_of_all_replicas_forgets_no_session",
    ),
    Mutant(
        "a snapshot brings no sessions along",
        "diskkv.py",
        "            sessions = _stored_sessions(new)",
        "            sessions = Sessions()",
        "test_session_group.py::test_a_replica_fed_by_a_stream_knows_the_sessions_and_may_lead",
    ),
    # Snapshots and the network
    Mutant(
        "a damaged chunk of a snapshot is taken",
        "snapshot/stream.py",
        "        if chunk.checksum != _checksum(chunk, self._before):",
        "        if False:",
        "test_snapshot_damage.py::test_a_reader_reports_every_damage_whatever_the_state_machine_thinks_of_it",
    ),
    Mutant(
        "a frame is believed whoever has sealed it",
        "net/channel.py",
        "        if not hmac.compare_digest(mac, bytes(self._received[end - _MAC_BYTES : end])):",
        "        if False:",
        "test_tcp_unauthenticated.py::test_a_frame_arrives_once_as_it_was_sealed_in_its_place_or_not_at_all",
    ),
    Mutant(
        "a caller is believed without a proof",
        "net/channel.py",
        "        if not hmac.compare_digest(proof, self._proof(peer)):",
        "        if False:",
        "test_tcp_unauthenticated.py::test_without_the_secret_nobody_joins",
    ),
    # Clients that are no members
    Mutant(
        "a client sends a command again that had left when its connection broke",
        "remote/courier.py",
        "            if ask.repeatable or end > line.lost_after:",
        "            if True:",
        "test_remote_retries.py::test_a_command_that_had_left_is_unknown_and_a_read_is_asked_elsewhere",
    ),
    Mutant(
        "a replica that stops in order does not wait for its clients",
        "node.py",
        "        while serving.has_clients and",
        "        while False and",
        "test_remote.py::test_a_replica_that_stops_in_order_fails_no_request_of_its_clients",
    ),
    Mutant(
        "a client is read from however much it has asked",
        "net/clients.py",
        "            load.requests < MAX_UNDER_WAY",
        "            True",
        "test_clients.py::test_who_asks_without_end_is_told_to_wait_and_holds_up_nobody",
    ),
    # The judge
    Mutant(
        "a write of what is there already is ordered at once",
        "linearizability/checker.py",
        "            if _changes_nothing(operations[move[0]]):",
        "            if move[1].state == now.state:",
        "test_linearizability.py::test_a_write_of_what_is_there_already_may_be_needed_later",
    ),
    # The simulator, and who reads histories
    Mutant(
        "a damaged chunk leaves as it was",
        "simulation/checked.py",
        "                return (self._damaged(message, to),)\n",
        "                return (message,)\n",
        "test_simulation.py::test_a_damaged_chunk_is_refused_and_the_snapshot_is_sent_again",
    ),
    Mutant(
        "a fault that waits for an occasion counts at once",
        "simulation/group.py",
        "        if fault.kind not in inject.ARMED:\n            self.counts",
        "        if True:\n            self.counts",
        "test_simulation.py::test_a_fault_that_waits_for_an_occasion_counts_only_when_that_has_come",
    ),
    Mutant(
        "a candidate's vote for itself is in no book",
        "simulation/invariants.py",
        "            self._votes_for(replica.id, replica, message.term)",
        "            pass",
        "test_invariants.py::test_a_candidate_that_votes_for_another_breaks_one_vote",
    ),
    Mutant(
        "the members before the newest ones decide for ever",
        "simulation/invariants.py",
        "[newest] if index >= since else [newest",
        "[newest",
        "test_invariants.py::test_the_new_members_alone_decide_about_the_entry_that_made_them_members_and_what_follows",
    ),
    Mutant(
        "what goes wrong in a client stays there",
        "simulation/clients.py",
        '            service.report(Violation("client", repr(error)))',
        "            del error",
        "test_simulation_clients.py::test_what_goes_wrong_in_a_client_is_a_violation",
    ),
    Mutant(
        "a violation that happens once is forgotten",
        "simulation/run.py",
        "    return again if again.rule == report.rule else report._replace(repeatable=False)",
        "    return again",
        "test_simulation.py::test_a_violation_that_happens_once_is_told_all_the_same",
    ),
    Mutant(
        "an iterator that was interrupted is taken for one that has ended",
        "bulk.py",
        "        iterator, self._iterator = self._iterator, None",
        "        iterator = self._iterator",
        "test_bulk.py::test_an_interrupt_at_any_bytecode_leaves_claims_that_hold_and_a_load_that_goes_on",
    ),
    Mutant(
        "what is sent again may undo what is called stored",
        "bulk.py",
        '            if batch.fate == "stored":\n',
        '            if batch.fate == "none":\n',
        "test_bulk.py::test_whatever_is_lost_or_late_the_last_values_stay_and_every_claim_holds",
    ),
    Mutant(
        "an innocent answer is accused",
        "linearizability/checker.py",
        "    answer = verdict.answer if verdict.smallest else None  #",
        "    answer = verdict.answer  #",
        "test_linearizability.py::test_nothing_is_said_about_the_first_contradiction_if_it_was_not_found",
    ),
    Mutant(
        "the answer to another write is taken",
        "linearizability/history.py",
        "            if len(values) != 1 if name",
        "            if False if name",
        "test_linearizability.py::test_a_bad_log_is_refused_with_its_line",
    ),
)


def check(mutant: Mutant) -> str | None:
    """Put the fault into a copy, and run the test. ``None`` if it was noticed, else what went wrong."""
    with tempfile.TemporaryDirectory(prefix="ondisk-mutant-") as folder:
        copy = Path(folder)
        for part in ("ondisk", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy / name)
        target = copy / "ondisk" / mutant.file
        text = target.read_text()
        if text.count(mutant.old) != 1:
            return f"the text to change stands {text.count(mutant.old)} times in {mutant.file}"
        target.write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
        done = subprocess.run(
            [*command, f"tests/{mutant.test}"],
            cwd=copy,
            env={"PYTHONPATH": folder, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    if done.returncode == 1:
        return None
    return f"pytest ended with {done.returncode}: {done.stdout.splitlines()[-1:]}"


def main() -> int:
    """Check those that are named, or all."""
    chosen = [mutant for mutant in MUTANTS if not sys.argv[1:] or mutant.name in sys.argv[1:]]
    survived = 0
    with ThreadPoolExecutor(2) as pool:
        for mutant, problem in zip(chosen, pool.map(check, chosen), strict=True):
            survived += problem is not None
            print(f"NOT NOTICED {mutant.name}: {problem}" if problem else f"noticed     {mutant.name}")
    print(f"{len(chosen)} faults, {survived} not noticed")
    return survived > 0


if __name__ == "__main__":
    sys.exit(main())

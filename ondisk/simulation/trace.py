"""The trace of a run: what happened, in words."""

from __future__ import annotations

from ondisk.raft.messages import (
    AppendEntries,
    AppendEntriesRejection,
    AppendEntriesResponse,
    Message,
    NewerTerm,
    Outcomes,
    Propose,
    RequestVote,
    RequestVoteResponse,
    SnapshotAck,
    SnapshotChunk,
    SnapshotNeeded,
    SnapshotRejection,
)


def describe(message: Message) -> str:
    """A message in a few words. Nothing in it differs from run to run."""
    match message:
        case AppendEntries():
            last = message.prev_index + len(message.entries)
            place = f"{message.prev_index}/{message.prev_term}..{last}"
            return f"append {place} commit {message.commit_index} t{message.term}"
        case AppendEntriesResponse():
            return f"equal to {message.index} t{message.term}"
        case AppendEntriesRejection():
            return f"try {message.hint} t{message.term}"
        case SnapshotNeeded():
            return f"snapshot needed t{message.term}"
        case NewerTerm():
            return f"newer term t{message.term}"
        case RequestVote():
            name = "prevote" if message.pre else "vote"
            return f"{name}? {message.last_index}/{message.last_term} t{message.term}"
        case RequestVoteResponse():
            return f"{'pre' if message.pre else ''}vote yes t{message.term}"
        case SnapshotChunk():
            return f"chunk {message.chunk.number} t{message.term}"
        case SnapshotAck():
            return f"chunks until {message.next}"
        case SnapshotRejection():
            return "stream rejected"
        case Propose():
            return f"propose {len(message.commands)}"
        case Outcomes():
            return "outcomes " + " ".join(outcome.verdict for outcome in message.outcomes)
    return type(message).__name__

"""What can go wrong, sorted by the one question a caller has to answer: may my write have happened?

==================  =========================================================
class               the write
==================  =========================================================
``NotDone``         did not happen and never will: it is safe to try again
``OutcomeUnknown``  may have happened, or may still happen: read before retrying
everything else     was not about one write (opening, configuration, damage)
==================  =========================================================

The split is the one that Jepsen's histories use: ``:fail`` against ``:info``.
"""

from __future__ import annotations


class OndiskError(Exception):
    """Base of every error that this package raises on purpose."""


class NotDone(OndiskError):
    """The request had no effect and never will have one. It is safe to try again."""


class NoLeader(NotDone):
    """No leader could be reached before the deadline, and nothing was proposed.

    Usually an election is going on (try again in a second) or a majority is gone.
    """


class Unreachable(NoLeader):
    """None of a client's endpoints could be reached before the deadline, and nothing was sent.

    It says of each why. Are the addresses and the secret right, and do the replicas run?
    """


class Rejected(NotDone):
    """The request was refused: by the state machine, or because a new leader discarded its entry."""


class Discarded(Rejected):
    """A new leader discarded its entry before it was committed. Try again."""


class CommandTooLarge(Rejected):
    """The command is larger than one log entry may be. Store the value in smaller pieces."""


class InvalidCommand(Rejected, ValueError):
    """A key, a value or an argument has the wrong type or size."""


class ReplicaStopped(NotDone):
    """The replica that was asked is stopped, failed or unknown, and took nothing in."""


class OutcomeUnknown(OndiskError):
    """The request was proposed, and nobody knows yet whether it will commit.

    It may take effect later, once, or never. Read the value before you try again, or use a session, which
    tries again by itself and takes effect once.
    """


class Timeout(OutcomeUnknown, TimeoutError):
    """The deadline passed after the request had been proposed."""


class LeaseEnded(Rejected):
    """There is no such key lease any more: nobody kept it in time, or it was ended. Its keys are gone."""


class Unfinished(Rejected):
    """The session has an earlier command whose outcome is unknown: ``resume`` it first."""


class SessionExpired(OndiskError):
    """The session is not known any more: closed, or pushed out by newer ones. Open another one.

    It is raised as one of the next two, which say whether the command may have happened.
    """


class SessionExpiredNotDone(SessionExpired, Rejected):
    """The session has expired, and the command did not happen."""


class SessionExpiredUnknown(SessionExpired, OutcomeUnknown):
    """The session has expired, and with it what was known of an earlier attempt at the same command.

    The command may have happened, once; it will not happen any more.
    """


class Compacted(OndiskError):
    """What was asked for lies further back than the history of changes, which is bounded.

    Read the contents anew, and watch from there on: see docs/verbs.md.
    """


class DirectoryInUse(OndiskError):
    """Another process, or another object in this one, has the data directory open."""


class WrongProcess(OndiskError):
    """A cluster, node or replica was used in a child of the process that opened it (``os.fork``).

    The child has a copy of the objects and none of the threads: only the parent can go on with them. Open
    clusters in the child instead, *before* the parent has opened any, or start the child by ``spawn``.
    """


class PortInUse(OndiskError):
    """The address of this replica is taken."""


class ConfigurationError(OndiskError, ValueError):
    """The members, addresses or options do not make a cluster."""


class MembersUnknown(ConfigurationError):
    """The directory does not tell who the members of its group are: name them."""


class StorageError(OndiskError):
    """The disk refused: full, read-only, gone, or failing."""


class Corrupt(StorageError):
    """Stored bytes are damaged or missing. They are reported here and never served."""


class UnknownVersion(StorageError):
    """Stored in a format that this version does not know yet: a later one wrote it. Nothing was changed."""


class ResourceError(OndiskError):
    """The operating system has no more of something: threads, say. Nothing was changed; try again later."""


class StoreClosed(OndiskError):
    """The database was closed while, or before, it was asked."""


class SnapshotStopped(OndiskError):
    """Saving or recovering a snapshot was ended before its end, because nobody needs it any more."""

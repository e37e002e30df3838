"""What is looked at when a replica is opened, before it takes part in anything."""

from __future__ import annotations

from collections.abc import Sequence

from ondisk.errors import ConfigurationError
from ondisk.raft.log import RaftLog
from ondisk.raft.members import LEGACY, short


def first_members(log: RaftLog, members: Sequence[int] | None) -> tuple[int, ...]:
    """The first members, whatever it is told later. Raises ``ConfigurationError``."""
    identity = log.identity
    assert identity is not None
    told = identity.first if members is None else tuple(sorted(members))
    known = log.members
    now = tuple(sorted(known.all))
    right = told in ((), identity.first, known.voters, now)
    if not identity.first:  # it was added, and may be told those that it was to ask
        right = right or set(told) <= known.all | set(known.removed)
    if known.group not in (b"", LEGACY) and not right:
        raise ConfigurationError(
            f"{log.path.parent}: this replica was told the members {list(told)}, and its group "
            f"{short(known.group)} has {list(now)}: leave them out, or name these. To change them, add "
            "and remove replicas while the group runs"
        )
    voted = tuple(number for number, _, _ in identity.roster)
    if not known.group and voted and told != voted:
        raise ConfigurationError(
            f"{log.path.parent}: this replica was told the members {list(told)}, and has voted for a "
            f"group of {list(voted)}, which may exist by now. Name these, or delete this directory, "
            "which holds nothing yet"
        )
    if not known.group or not identity.first:
        log.identify(first=told)
    return told


def finish_install(log: RaftLog, opened_index: int) -> None:
    """Complete, or forget, the installation of a snapshot that a crash cut short.

    The state machine replaces its state in one step, and so does the log. This holds the two together.
    """
    if log.installing is None:
        return
    if opened_index >= log.installing[0]:
        log.install(*log.installing)
    else:
        log.abandon_install()
    log.sync()

"""RaftLog: what Raft must not forget, on RocksDB: its entries, its term, its vote and the members.

Four promises, and the rest follows from them:

* **Nothing counts before ``sync``.** Appends, truncations, term and vote gather in memory; ``sync`` writes
  them as one atomic batch and waits for the disk. The replica syncs before any message leaves, so one wait
  covers however many entries came meanwhile (group commit).
* **Truncate and append is one step.** A crash leaves the old tail or the new one, never a mixture.
* **Damage is reported**, with the place (``logstore``).
* **Compaction writes metadata only.** Before the first entry stands the *base*: index and term of the entry
  just before it, 0 and 0 at first (Raft paper, section 7: "last included index and term"). To compact is to
  move the base forward and to drop what it passes: the state machine has those outcomes on its own disk.

The members are part of the log, because a change of them takes effect where it stands in it: cutting the end
off takes the change back, and compaction must not forget it.

The log is also what a replica *is*: the memory of its votes and of what it has acknowledged. So its identity
stands here (``Identity``), and whoever loses the log comes back as somebody else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ondisk.errors import ConfigurationError, Corrupt, MembersUnknown
from ondisk.raft import members as encoding
from ondisk.raft.logstore import MAGIC, VERSION, LogStore
from ondisk.raft.members import LEGACY, Members, short
from ondisk.raft.records import MEMBERS, Base, Identity, LogEntry
from ondisk.raft.tail import Tail
from ondisk.storage.disk import Disk

_NONCES = 128  # so many lives are told apart
# Entries kept in memory, so that sending and applying the newest ones does not read the disk.
_TAIL_ENTRIES = 8192
_TAIL_BYTES = 8 << 20
_READ_ENTRIES = 16  # read from disk at a time; an entry may have 2 MB


class RaftLog:
    """The durable log of one replica. Used by one thread at a time."""

    def __init__(
        self,
        path: Path,
        disk: Disk | None = None,
        members: Sequence[int] | None = (),
        *,
        replica_id: int = 0,
        rng: random.Random | None = None,
    ) -> None:
        """Open or create. Raises ``Corrupt``, ``DirectoryInUse`` or ``StorageError``.

        ``members`` are the first voters of a log that stands alone, or was written before groups had ids:
        they count until it holds a change of the members. With a ``replica_id`` it gets an identity, which
        ``rng`` draws; raises ``ConfigurationError`` if it has that of another replica, and ``MembersUnknown``
        if ``members`` is ``None`` and it was written before groups had ids, without a word about the members.
        """
        self.path = path.absolute()
        self.store = LogStore(self.path, disk)  # what was synced
        self.syncs = 0  # how often ``sync`` had to wait for the disk
        self._bytes = 0  # of commands appended since the last compaction or opening
        # What the next ``sync`` makes durable, beside the entries after ``synced_index``.
        self._cut_from: int | None = None  # stored entries from here on are to be deleted
        self._drop_to: int | None = None  # stored entries up to here are to be deleted
        self._hard_state_changed = self._base_changed = False
        self._identity_changed = self._lives_changed = False
        try:
            self._load(Members(tuple(sorted(members or ()))))
            if replica_id:
                if members is None and self._is_older and not self.members.all:
                    raise MembersUnknown(
                        f"{self.path.parent}: written by a version that did not note the first members: name "
                        "them"
                    )
                self._identify(replica_id, rng or random.Random())
        except BaseException:
            self.store.close()
            raise
        self.synced_index = self.last_index

    def _load(self, first_members: Members) -> None:
        store = self.store
        self.term, self.voted_for = store.hard_state()
        self.identity: Identity | None = store.identity()
        self.lives = store.lives()  # of other disks: the newest boot and its nonce
        base = store.base() or Base(0, 0, [(0, first_members)], None)
        self.base_index, self.base_term, self._configurations = base.index, base.term, base.configurations
        # A snapshot (index, term, members) that the state machine may be about to install, or just has.
        self.installing: tuple[int, int, Members] | None = base.installing
        store.check_end()
        newest = store.newest(base.index, _TAIL_ENTRIES, _TAIL_BYTES)
        self._tail = Tail(newest[0].index if newest else base.index + 1, newest)
        self.last_index = self._tail.last_index  # durable or not; the base's if there is no entry
        # Whether there was nothing before it was opened this time.
        self.is_new = self.identity is None and not self.term and not self.last_index

    def _identify(self, replica_id: int, rng: random.Random) -> None:
        """Begin a new life: of the disk that this is, or of a new one."""
        if self._is_older:
            self._become_legacy()
        elif not self.members.group:
            self._configurations = [(self.base_index, Members(()))]  # nobody votes before there is a group
        if self.identity is None:
            disk = rng.getrandbits(128).to_bytes(16, "big")
            self.identity = Identity(MAGIC, VERSION, replica_id, disk, 0)
        elif self.identity.replica_id != replica_id:
            raise ConfigurationError(
                f"{self.path.parent}: this directory belongs to replica {self.identity.replica_id} (disk "
                f"{short(self.identity.disk)}), and was opened for replica {replica_id}: was it moved or "
                "copied? Put it back where it belongs"
            )
        if self.identity.refused:
            raise Corrupt(f"{self.path.parent}: {self.identity.refused}")
        nonces = (rng.getrandbits(62), *self.identity.nonces)[:_NONCES]
        self.identify(boot=self.identity.boot + 1, nonces=nonces)

    @property
    def _is_older(self) -> bool:
        """Whether it was written by a version that knew no identity."""
        return self.identity is None and not self.is_new

    def _become_legacy(self) -> None:
        """It was written before groups had ids: until its members are given one, all such are one group."""
        self._configurations = [
            (since, msgspec.structs.replace(members, group=LEGACY)) for since, members in self._configurations
        ]
        if self.installing is not None:
            index, term, members = self.installing
            self.installing = index, term, msgspec.structs.replace(members, group=LEGACY)
        self._base_changed = True

    def identify(self, **changes: object) -> None:
        """Change the identity, durably with the next ``sync``."""
        assert self.identity is not None
        self.identity = msgspec.structs.replace(self.identity, **changes)
        self._identity_changed = True

    @property
    def disk_id(self) -> bytes:
        """The disk that this log is."""
        assert self.identity is not None
        return self.identity.disk

    def begin_group(self, members: Members) -> None:
        """Belong to a group from now on: at the very beginning of the log these are its members."""
        assert not self.members.group and len(self._configurations) == 1, "a group is joined once"
        self._configurations = [(self.base_index, members)]
        self._base_changed = True

    def note_life(self, disk: bytes, boot: int, nonce: int) -> None:
        """Remember the newest life of another disk, durably with some later ``sync``."""
        self.lives[disk] = boot, nonce
        self._lives_changed = True

    def synced_boot(self, disk: bytes) -> int:
        """The newest life of another disk that is noted durably, as the number of its starts; 0: none."""
        return 0 if self._lives_changed else self.lives.get(disk, (0, 0))[0]

    @property
    def last_term(self) -> int:
        """Term of the last entry; the base's when there is none."""
        return self._tail[self.last_index].term if self.last_index > self.base_index else self.base_term

    @property
    def unsynced(self) -> bool:
        """Whether anything would be lost by a power cut now."""
        return (
            self.synced_index < self.last_index
            or self._hard_state_changed
            or self._base_changed
            or self._identity_changed
            or self._cut_from is not None
        )

    @property
    def only_entries_unsynced(self) -> bool:
        """Whether a power cut now would lose new entries, and nothing else: no term, no vote, no cut."""
        return self.synced_index < self.last_index and not (
            self._hard_state_changed
            or self._base_changed
            or self._identity_changed
            or self._cut_from is not None
        )

    @property
    def bytes_since_compaction(self) -> int:
        """Size of the commands that were appended since the last compaction, or since it was opened."""
        return self._bytes

    @property
    def members(self) -> Members:
        """The newest configuration in the log, committed or not: it is the one that counts."""
        return self._configurations[-1][1]

    @property
    def configuration(self) -> tuple[int, Members]:
        """The same, after the index of the entry that made it (or after the base's, if that was dropped)."""
        return self._configurations[-1]

    def members_at(self, index: int) -> Members:
        """The configuration as of an entry; before the base, the base's."""
        since, newest = self._configurations[-1]
        if since <= index:  # nearly always
            return newest
        oldest = self._configurations[0][1]
        return next((members for since, members in reversed(self._configurations) if since <= index), oldest)

    def term_at(self, index: int) -> int | None:
        """Term of an entry, or of the base; ``None`` where the log holds neither."""
        if self._tail.first <= index <= self.last_index:  # nearly always
            return self._tail[index].term
        if index == self.base_index:
            return self.base_term
        if not self.base_index < index <= self.last_index:
            return None
        return self.store.entries(index, index)[0].term

    def entries(self, first: int, last: int, max_bytes: int | None = None) -> list[LogEntry]:
        """Entries ``first`` to ``last``, both included; fewer if their commands exceed ``max_bytes``.

        At least one entry comes back however large it is, and at most 8192.
        """
        if not self.base_index < first <= last <= self.last_index:
            raise IndexError(f"the log holds {self.base_index + 1}..{self.last_index}, not {first}..{last}")
        last = min(last, first + _TAIL_ENTRIES - 1)
        found: list[LogEntry] = []
        size = 0
        while first <= last:
            if first >= self._tail.first:
                some = self._tail.between(first, last)
            else:
                some = self.store.entries(first, min(last, self._tail.first - 1, first + _READ_ENTRIES - 1))
            size += sum([len(entry.command) for entry in some])
            found += some
            first += len(some)
            if max_bytes is not None and size > max_bytes:
                while size > max_bytes and len(found) > 1:
                    size -= len(found.pop().command)
                break
        return found

    def newest(self, most: int) -> list[LogEntry]:
        """The last ``most`` entries that are in memory, for who watches: this one from any thread."""
        return self._tail.newest(most)

    def append(self, entries: Sequence[LogEntry]) -> None:
        """Add entries at the end. They are durable after the next ``sync``."""
        for expected, entry in enumerate(entries, self.last_index + 1):
            if entry.index != expected:
                raise IndexError(f"entry {entry.index} cannot follow entry {expected - 1}")
            if entry.command.startswith(MEMBERS):
                self._configurations.append((entry.index, self._of_this_group(entry)))
                self._base_changed = True
        before = self._tail.bytes
        self._tail.append(entries)
        self.last_index = self._tail.last_index
        self._bytes += self._tail.bytes - before

    def _of_this_group(self, entry: LogEntry) -> Members:
        """The members in an entry; one that was made before the group had an id does not take that back."""
        try:
            members = encoding.decode(entry.command[len(MEMBERS) :])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Corrupt(
                f"{self.path}: entry {entry.index} holds members that cannot be read ({error})"
            ) from None
        if not members.group or self.members.group not in (b"", LEGACY):
            members = msgspec.structs.replace(members, group=self.members.group)
        return members

    def truncate_from(self, index: int) -> None:
        """Remove the entry at ``index`` and all after it, durably together with the next ``sync``."""
        if not self.base_index < index <= self.last_index:
            raise IndexError(f"the log holds {self.base_index + 1}..{self.last_index}, not {index}")
        if index > self._tail.first:
            self._tail.cut_from(index)
        else:  # keep one entry in memory: the end of the log is asked for all the time
            kept = self.entries(index - 1, index - 1) if index - 1 > self.base_index else []
            self._tail = Tail(index - len(kept), kept)
        self.last_index = self._tail.last_index
        if index <= self.synced_index:
            self._cut_from = index  # lower than any before
            self.synced_index = index - 1
        while self._configurations[-1][0] >= index:
            self._configurations.pop()
            self._base_changed = True

    def compact(self, index: int) -> None:
        """Drop the entries up to ``index``, durably together with the next ``sync``.

        The caller has made sure that the state machine holds their outcomes durably.
        """
        term = self.term_at(index)
        if term is None or not self.base_index <= index <= self.synced_index:
            raise IndexError(
                f"the log holds {self.base_index + 1}..{self.synced_index} durably, not up to {index}"
            )
        self._tail.drop_to(index)
        self._set_base(index, term, self.members_at(index))
        self._bytes = self._tail.bytes

    def _set_base(self, index: int, term: int, members: Members) -> None:
        self.base_index, self.base_term = index, term
        later = [(since, changed) for since, changed in self._configurations if since > index]
        self._configurations = [(index, members), *later]
        self._drop_to = index
        self._base_changed = True

    def begin_install(self, index: int, term: int, members: Members) -> None:
        """Note that the state machine may be at this snapshot from now on, durably with the next ``sync``."""
        self.installing = (index, term, members)
        self._base_changed = True

    def abandon_install(self) -> None:
        """Note that the state machine has stayed where it was."""
        self.installing = None
        self._base_changed = True

    def install(self, index: int, term: int, members: Members) -> None:
        """Begin after a snapshot: what lies behind ``index`` stays if the log holds its entry.

        Otherwise the whole log goes: it belongs to another history (Raft paper, figure 13).
        """
        self.installing = None
        if index <= self.base_index:
            self._base_changed = True
            return
        if self.term_at(index) == term and index <= self.synced_index:
            self.compact(index)
        else:
            self._begin_after(index, term, members)

    def _begin_after(self, index: int, term: int, members: Members) -> None:
        self._tail, self._bytes = Tail(index + 1), 0
        self.last_index = index
        self._cut_from = self.base_index + 1
        self.synced_index = index
        self._configurations = []
        self._set_base(index, term, members)

    def set_hard_state(self, term: int, voted_for: int | None) -> None:
        """Change term and vote, durably with the next ``sync``."""
        self.term, self.voted_for = term, voted_for
        self._hard_state_changed = True

    def sync(self) -> None:
        """Make everything durable in one atomic write. Does nothing if there is nothing new."""
        if not self.unsynced:
            return
        self.store.write(
            self._tail.between(self.synced_index + 1, self.last_index),
            cut_from=self._cut_from,
            drop_to=self._drop_to,
            hard_state=self._hard_state() if self._hard_state_changed else None,
            base=self._base() if self._base_changed else None,
            identity=self.identity if self._identity_changed else None,
            lives=self.lives if self._lives_changed else None,
        )
        self._cut_from = self.synced_index + 1  # if the sync fails, the next batch replaces this one
        self._make_durable()
        self.synced_index = self.last_index
        self._cut_from = self._drop_to = None
        self._hard_state_changed = self._base_changed = False
        self._identity_changed = self._lives_changed = False
        self.syncs += 1
        self.store.note_durable()
        self._tail.trim(_TAIL_ENTRIES, _TAIL_BYTES)

    def _hard_state(self) -> tuple[int, int | None]:
        return self.term, self.voted_for

    def _base(self) -> Base:
        return Base(self.base_index, self.base_term, self._configurations, self.installing)

    def _make_durable(self) -> None:
        self.store.sync()

    def compaction_record(self) -> bytes:
        """All that is stored about the entries that were dropped: some dozens of bytes."""
        return msgspec.msgpack.encode(self._base())

    def start_of_last(self, entries: int, max_bytes: int) -> int:
        """Where the last ``entries`` of the log begin, or fewer that have ``max_bytes``."""
        return self._tail.start_of_last(entries, max_bytes)

    def close(self) -> None:
        """Sync and close. A second call does nothing."""
        if self.store.is_open:
            try:
                self.sync()
            finally:
                self.store.close()

    def crash(self) -> None:
        """Close as a power cut would: what was not synced is gone."""
        self.store.crash()

"""Origins: whose word counts, and whose does not (docs/protocol.md, O and W).

Every message is stamped with the group, the disk and the life of its sender. What comes from another group,
from a disk that was replaced, or from an old copy of a directory, is not heard, and its sender is told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from ondisk.raft import Raft
from ondisk.raft.log import RaftLog
from ondisk.raft.members import LEGACY, Members, short
from ondisk.raft.messages import Found, Membership, Message, Origin, Refused, Response, SnapshotAnswer

logger = logging.getLogger(__name__)


class Origins:
    """What one replica knows of the others' origins. Belongs to its step."""

    def __init__(
        self, replica_id: int, log: RaftLog, raft: Raft, send: Callable[[int, Message], None]
    ) -> None:
        self._id = replica_id
        self._log = log
        self._raft = raft
        self._send = send
        self.known: dict[int, Origin] = {}  # by number: the last one that was accepted, as the same object
        self.refused: str | None = None  # why this replica must stop
        self._as_of: tuple[Members, Members] | None = None  # what ``known`` was decided with
        self._other_groups: dict[int, tuple[bytes, str]] = {}  # by number: its group, another one, and words
        self._heir = b""  # of a directory from before groups had ids: the group that has come of it
        self._introduced: Origin | None = None

    # This side

    def own(self) -> Origin:
        """What this replica stamps its messages with."""
        identity = self._log.identity
        assert identity is not None
        group = self._raft.committed_members.group
        nonce, *former = identity.nonces
        self._introduced = Origin(group, identity.disk, identity.boot, nonce, tuple(former))
        return self._introduced

    def changed(self) -> Origin | None:
        """The same, if it is another one than at the last look."""
        committed = self._raft.committed_members
        before = self._introduced
        return None if before is not None and before.group == committed.group else self.own()

    def forget_what_is_outdated(self) -> None:
        """Other members count now: whom this replica hears must be decided again."""
        members = self._raft.members, self._raft.committed_members
        if self._as_of is None or members[0] is not self._as_of[0] or members[1] is not self._as_of[1]:
            self._as_of = members
            self.known.clear()

    # The other side

    def accept(self, sender: int, origin: Origin, message: Message) -> bool:
        """Whether what comes under this number from there is heard. Refuses it aloud if it is not."""
        if isinstance(message, Found) and not origin.group:
            return False
        newest, committed = self._raft.members, self._raft.committed_members
        if not self._is_ours(sender, origin, newest, committed):
            if origin.group and newest.group and not isinstance(message, Membership | Refused):
                self._on_other_group(sender, origin, newest)
            return False
        if not self._is_newest_life(sender, origin):
            return False
        if self._is_replaced(origin.disk, newest):
            if origin.disk not in committed.replaced:  # that may be taken back, and it may lead legally
                return not isinstance(message, Response | SnapshotAnswer)
            self._refuse(
                sender,
                origin.disk,
                f"the disk {short(origin.disk)} of replica {sender} was taken for lost, and replaced: delete "
                "its directory and start it again, and it catches up from the others",
            )
            return False
        self.forget_what_is_outdated()
        if sender in newest.voters and newest.disk_of(sender) != origin.disk and newest.group != LEGACY:
            self._raft.on_newcomer(sender, origin.disk)
            self.known.pop(sender, None)  # the other disk must be looked at again when it speaks
        else:
            self.known[sender] = origin
        self._other_groups.pop(sender, None)
        self._raft.membership.speaks(sender, origin.disk)
        return True

    def _is_ours(self, sender: int, origin: Origin, newest: Members, committed: Members) -> bool:
        """O1; and L: while an old group is given an id, some have it already and some have not."""
        if not origin.group or not newest.group:
            return False
        if origin.group in (newest.group, committed.group):
            return True
        if origin.group == LEGACY:
            return sender in newest.learners or newest.disk_of(sender) == origin.disk
        return committed.group == LEGACY and origin.group == self._heir

    @staticmethod
    def _is_replaced(disk: bytes, newest: Members) -> bool:
        """O3: whether another disk has taken its place, or may have."""
        return disk in newest.replaced

    def _is_newest_life(self, sender: int, origin: Origin) -> bool:
        """O4: each life knows the random numbers of those before it."""
        boot, nonce = self._log.lives.get(origin.disk, (0, 0))
        lives = (origin.nonce, *origin.former)
        ahead = origin.boot - boot
        if ahead < 0 or (boot and ahead < len(lives) and lives[ahead] != nonce):
            self._refuse(
                sender,
                origin.disk,
                f"replica {sender} (disk {short(origin.disk)}) has lived on since this copy of its directory "
                "was made, and may have promised what the copy does not know: delete the copy, and let it "
                "catch up from the others",
            )
            return False
        if ahead > 0:
            self._log.note_life(origin.disk, origin.boot, origin.nonce)
        return True

    def _refuse(self, sender: int, disk: bytes, reason: str) -> None:
        logger.warning("replica %d refuses replica %d: %s", self._id, sender, reason)
        self._send(sender, Refused(disk, reason))

    def _on_other_group(self, sender: int, origin: Origin, newest: Members) -> None:
        if self._raft.committed_members.group == LEGACY:
            return  # L: that may be what has come of it, as its membership will show
        if origin.group == LEGACY and sender in newest.voters and not newest.disk_of(sender):
            self.introduce_members(sender, origin)  # L3: it was away when the group got its id
            return
        words = (
            f"replica {sender} (disk {short(origin.disk)}) belongs to group {short(origin.group)}, and "
            f"replica {self._id} (disk {short(self._log.disk_id)}) to group {short(newest.group)}: was a "
            "directory put in from elsewhere, or an address mistyped?"
        )
        if self._note_other_group(sender, origin.group, words):
            logger.warning("%s", words)
        self._send(sender, Refused(origin.disk, words))
        self._send_membership(sender)
        self._stop_in_the_wrong_place()

    def _note_other_group(self, sender: int, group: bytes, words: str) -> bool:
        """Note which other group it is; return whether that is news. Both sides say it, in other words."""
        news = self._other_groups.get(sender, (b"", ""))[0] != group
        if news:
            self._other_groups[sender] = group, words
        return news

    def _stop_in_the_wrong_place(self) -> None:
        """A majority of this group's own numbers is one other group: this directory is in the wrong place.

        Replicas of several other groups are in the wrong place themselves.
        """
        voters = self._raft.members.voters
        others = [self._other_groups[number] for number in voters if number in self._other_groups]
        for group, words in others:
            if self._id in voters and 2 * sum(other == group for other, _ in others) > len(voters):
                self.refused = words

    # Who is outside, or was

    def introduce_members(self, sender: int, origin: Origin) -> None:
        """One without a group asks (F4, W1, W2). It may be a copy from before it had one."""
        if self._raft.members.group and self._is_newest_life(sender, origin):
            self._send_membership(sender)
            self._raft.on_newcomer(sender, origin.disk)

    def greet(self, connected: Iterable[int]) -> None:
        """Pass on the members to who has just come: it may not know where everybody is."""
        for replica_id in connected:
            self._send_membership(replica_id)

    def _send_membership(self, to: int) -> None:
        members = self._raft.committed_members
        if members.group and members.voters:
            self._send(to, Membership(self._raft.commit_index, members))

    def on_membership(self, origin: Origin, message: Membership) -> None:
        """A member of a group that is not this one, as far as is known."""
        members = message.members
        if origin.group != members.group:
            return
        mine = members.disk_of(self._id)
        if self._raft.committed_members.group == LEGACY:  # L: is that what has come of it?
            if (
                self._id in members.voters and mine in (b"", self._log.disk_id)
            ) or self._id in members.learners:
                self._heir = members.group
        elif self._founded_alone() and self._id in members.all:
            self.refused = (
                f"replica {self._id} is a member of group {short(members.group)} with "
                f"{sorted(members.all - {self._id})}, and this directory (disk {short(self._log.disk_id)}) "
                f"is a group {short(self._raft.members.group)} of its own: was the first one lost? Delete "
                "this one and start it with the present members, and it catches up from the others"
            )

    def _founded_alone(self) -> bool:
        """Whether this is a group of one, and not by the word of an operator who has imported it."""
        identity = self._log.identity
        assert identity is not None
        return self._raft.members.voters == (self._id,) and not identity.seed

    def on_refused(self, sender: int, origin: Origin, message: Refused) -> None:
        """Somebody outside this group, or who has one while this replica has none, sends it away."""
        if message.disk != self._log.disk_id:
            return
        if not self._raft.members.group:
            self.refused = message.reason
        elif origin.group not in (b"", self._raft.members.group, LEGACY):
            self._note_other_group(sender, origin.group, message.reason)
            self._send_membership(sender)
            self._stop_in_the_wrong_place()

    def believe(self, message: Refused) -> None:
        """A member of this group refuses this disk, for good."""
        if message.disk != self._log.disk_id:
            return
        self._log.identify(refused=message.reason)
        self._log.sync()
        self.refused = message.reason

    def problem(self) -> str | None:
        """Who is in another group, for people."""
        return next((words for _, words in self._other_groups.values()), None)

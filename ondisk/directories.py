"""Directories: what a data directory holds, and which group a cluster makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from ondisk.errors import ConfigurationError, MembersUnknown, ReplicaStopped, StorageError
from ondisk.node import Node
from ondisk.raft.members import LEGACY, Members, short

FIRST_MEMBERS = (1, 2, 3)  # of a new group, if nobody says otherwise


class Directories:
    """Opens the replicas of one data directory. ``nodes`` are those that it has made so far.

    Invariant: at the end all of them belong to one group, or are ``failed`` and their status says why.
    """

    def __init__(self, data_dir: Path, make_node: Callable[[int, Sequence[int] | None], Node]) -> None:
        """``make_node`` makes a node for a replica and its first members."""
        self._data_dir = data_dir
        self._make_node = make_node
        self.nodes: dict[int, Node] = {}

    def open(self, members: Sequence[int] | None) -> None:
        """Start whom the directories know, and the others of their group; or the first of a new one."""
        errors: list[StorageError] = []
        there = self._directories()
        if members is not None:
            if there and not set(there) & set(members):
                raise ConfigurationError(
                    f"{self._data_dir} holds replicas {there}, and none of the members {list(members)} that "
                    "were named: leave them out, or choose another directory"
                )
            there = [replica_id for replica_id in there if replica_id in members]
        for replica_id in there:
            node = self.nodes[replica_id] = self._make_node(replica_id, members)
            try:
                try:
                    node.start()
                except MembersUnknown:
                    node = self.nodes[replica_id] = self._make_node(replica_id, FIRST_MEMBERS)
                    node.start()
            except StorageError as error:
                errors.append(error)  # it is ``failed`` now, and can be rebuilt if there are others
        group = self._choose_group()
        if errors and len(errors) == len(self.nodes):
            raise errors[0]
        if group is None:
            wanted = tuple(FIRST_MEMBERS if members is None else members)
            first = next((node.first_members for node in self.nodes.values() if node.first_members), wanted)
            for replica_id in first:  # an empty directory knows nobody
                if replica_id in self.nodes and not self.nodes[replica_id].first_members:
                    self.nodes.pop(replica_id).stop()
        else:
            first = tuple(group.all)
        for replica_id in sorted(set(first) - self.nodes.keys()):
            there_already = replica_id in self._directories()
            knows = there_already and group is not None
            node = self._make_node(replica_id, None if knows else sorted(first))
            self.nodes[replica_id] = node
            with suppress(StorageError) if there_already else nullcontext():
                node.start()
        if group is not None:
            for removed in self.nodes.keys() & set(group.removed):
                self.nodes.pop(removed).stop()

    def _directories(self) -> list[int]:
        """The ids of the replicas that have a directory here."""
        names = (re.fullmatch(r"replica-([1-9][0-9]*)", folder.name) for folder in self._data_dir.glob("*"))
        return sorted(int(name[1]) for name in names if name)

    def _choose_group(self) -> Members | None:
        """The newest members of the group that most directories belong to; the others are stopped.

        Raises ``ConfigurationError`` if nobody can tell which one is meant.
        """
        known: dict[bytes, list[tuple[int, int, Members]]] = {}
        for replica_id, node in self.nodes.items():
            with suppress(ReplicaStopped):  # failed, or it has been told already that it was removed
                index, members = node.configuration
                if members.group:
                    known.setdefault(members.group, []).append((index, replica_id, members))
        imports = [replica_id for replica_id, node in self.nodes.items() if node.holds_import]
        if imports and any(node_id not in imports for found in known.values() for _, node_id, _ in found):
            raise ConfigurationError(
                f"{self._data_dir}: replicas {imports} hold an import, and others here belong to a group "
                "from before it: delete the directories of those, or import into them, too"
            )
        if not known:
            return None
        legacy = known.pop(LEGACY, []) if len(known) > 1 else []
        most = max(len(found) for found in known.values())
        groups = [group for group, found in known.items() if len(found) == most]
        words = "; ".join(
            f"group {short(group)}: replicas {[replica_id for _, replica_id, _ in found]}"
            for group, found in known.items()
        )
        if len(groups) > 1:
            raise ConfigurationError(
                f"{self._data_dir}: the directories belong to different groups ({words}): take out those "
                "that do not belong here"
            )
        for group, found in known.items():
            if group != groups[0]:
                for _, replica_id, _ in found:
                    self.nodes[replica_id].reject(
                        f"replica {replica_id}'s directory belongs to group {short(group)}, and the others "
                        f"here to group {short(groups[0])} ({words}): was it put in from elsewhere? Put back "
                        "what belongs here, or rebuild it from the others"
                    )
        newest = max(known[groups[0]], key=lambda found: found[:2])[2]
        for _, replica_id, _ in legacy:  # it was away when the others were given an id
            if replica_id not in newest.all or newest.disk_of(replica_id):
                self.nodes[replica_id].reject(
                    f"replica {replica_id}'s directory is from before groups had ids, and not of group "
                    f"{short(newest.group)} ({words}): rebuild it from the others"
                )
        return newest

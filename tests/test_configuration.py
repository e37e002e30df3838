"""The rules of ``Members`` by themselves: what a change makes of a configuration, and which it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ondisk.errors import ConfigurationError
from ondisk.raft.members import LEGACY, MAX_ID, Members, check_id, check_ids, decode, encode, short

A, B, C, D = (bytes([number]) * 16 for number in (1, 2, 3, 4))
GROUP = Members(
    voters=(1, 2, 3),
    learners=(5,),
    removed=(7,),
    where=((1, "one:1"), (2, "two:2"), (5, "five:5")),
    group=b"g" * 16,
    disks=((1, A), (2, B), (3, C)),
    replaced=(D,),
)


def test_the_id_of_a_replica_is_a_whole_number_from_one_on() -> None:
    for good in (1, 2, MAX_ID):
        check_id(good)
    for bad in (0, -1, MAX_ID + 1, True, "1", 1.0, None):
        with pytest.raises(ConfigurationError, match="whole number from 1 on"):
            check_id(bad)
    assert MAX_ID == 2**63 - 1  # what a signed number of 64 bits can hold


def test_the_first_members_are_different_and_one_at_least() -> None:
    check_ids((1,))
    check_ids((3, 1, 2))
    for bad in ((), (1, 1), (1, 2, 1), (0,), (1, "2")):
        with pytest.raises(ConfigurationError):
            check_ids(bad)


def test_what_people_read_of_a_name_is_eight_digits() -> None:
    assert short(A) == "01010101" and short(b"") == "none" and short(LEGACY) == "legacy"


def test_a_configuration_is_read_as_it_was_written() -> None:
    assert decode(encode(GROUP)) == GROUP
    assert GROUP.all == {1, 2, 3, 5} and GROUP.addresses == {1: "one:1", 2: "two:2", 5: "five:5"}
    assert GROUP.disk_of(2) == B and GROUP.disk_of(5) == b""


def test_a_new_replica_is_a_learner_and_nothing_else_changes() -> None:
    assert GROUP.with_learner(4) == GROUP._with(learners=(4, 5))
    assert GROUP.with_learner(4, "four:4") == GROUP._with(
        learners=(4, 5), where=(*GROUP.where, (4, "four:4"))
    )
    assert GROUP.with_learner(5, "five:5") is GROUP  # there already
    assert GROUP.with_learner(1, "one:1") is GROUP


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: GROUP.with_learner(7), "7 was removed"),
        (lambda: GROUP.with_learner(7, "seven:7"), "7 was removed"),
        (lambda: GROUP.with_learner(3), "3 is a member already$"),
        (lambda: GROUP.with_learner(3, "three:3"), "3 is a member already$"),
        (lambda: GROUP.with_learner(1), "1 is a member already$"),
        (lambda: GROUP.with_learner(1, "other:1"), "1 is a member already, at one:1: .* move it"),
        (lambda: GROUP.with_learner(5), "5 is a member already"),
        (lambda: GROUP.with_learner(4, "two:2"), "another member has the address two:2"),
        (lambda: GROUP.with_voter(4, A), "4 is not a learner"),
        (lambda: GROUP.with_voter(1, A), "1 is not a learner"),
        (lambda: GROUP.with_voter(5, D), "disk 04040404 of replica 5 was taken for lost"),
        (lambda: GROUP.with_replaced(4, A), r"4 is not a member: \[1, 2, 3, 5\] are"),
        (lambda: GROUP.with_replaced(7, A), "7 is not a member"),
        (lambda: GROUP.with_address(4, "four:4"), r"4 is not a member: \[1, 2, 3, 5\] are"),
        (lambda: GROUP.with_address(1, "two:2"), "another member has the address two:2"),
        (lambda: GROUP.without(4), r"4 is not a member: \[1, 2, 3, 5\] are"),
        (lambda: Members((1,), (2,)).without(1), "1 is the last voter"),
        (lambda: Members((1,), (2,), disks=((1, A),)).with_replaced(1, A), "1 is the last voter"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(change: Callable[[], Members], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        change()


def test_a_learner_counts_with_the_disk_that_has_caught_up() -> None:
    new = b"n" * 16
    assert GROUP.with_voter(5, new) == GROUP._with(
        voters=(1, 2, 3, 5), learners=(), disks=((1, A), (2, B), (3, C), (5, new))
    )


def test_the_disk_that_was_lost_never_counts_again_and_its_number_learns() -> None:
    lost = GROUP.with_replaced(2, B)
    assert lost == GROUP._with(voters=(1, 3), learners=(2, 5), disks=((1, A), (3, C)), replaced=(D, B))
    assert lost.with_replaced(2, B) is lost  # done already
    assert lost.with_voter(2, A).with_replaced(2, B).disk_of(2) == A  # another disk has taken its place
    assert GROUP.with_replaced(5, B) is GROUP  # a learner has no disk that counts
    unnamed = Members((1, 2), disks=((1, A),))
    assert unnamed.with_replaced(2, b"") == Members((1,), (2,), disks=((1, A),))


def test_an_address_belongs_to_one_member() -> None:
    assert GROUP.with_address(2, "two:2") is GROUP
    assert GROUP.with_address(2, "new:2") == GROUP._with(where=((1, "one:1"), (5, "five:5"), (2, "new:2")))
    assert GROUP.with_address(3, "three:3") == GROUP._with(where=(*GROUP.where, (3, "three:3")))
    assert GROUP.with_address(5, "five:55").addresses == {1: "one:1", 2: "two:2", 5: "five:55"}


def test_a_removed_number_is_out_for_good_with_its_address_and_disk() -> None:
    smaller = GROUP.without(2)
    assert smaller == GROUP._with(
        voters=(1, 3), removed=(2, 7), where=((1, "one:1"), (5, "five:5")), disks=((1, A), (3, C))
    )
    assert smaller.without(2) is smaller
    assert GROUP.without(5) == GROUP._with(learners=(), removed=(5, 7), where=((1, "one:1"), (2, "two:2")))
    assert Members((1,), (2,)).without(2) == Members((1,), removed=(2,))


def test_an_old_group_gets_an_id_and_disks_in_order() -> None:
    old = Members((1, 2, 3), group=LEGACY)
    assert old.identified(b"g" * 16, [(3, C), (1, A)]) == Members(
        (1, 2, 3), group=b"g" * 16, disks=((1, A), (3, C))
    )

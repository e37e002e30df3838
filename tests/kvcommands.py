"""Commands of DiskKV as hypothesis makes them, well formed and malformed, and odd keys."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st

from ondisk.diskkv import (
    MAX_KEY_BYTES,
    compare_and_set,
    delete,
    incr,
    put,
    put_many,
)

INT64_MAX = 2**63 - 1


INT64_MIN = -(2**63)


ODD_KEYS = [
    b"", b"\0", b"\0\0", b"\xff", b"\xff" * 40, bytes(range(256)), b"applied_index", b"a\0b",
    "ключ".encode(), "🗝️".encode(), "e\u0301".encode(), "\u00e9".encode(), b"\n",
    b"k" * MAX_KEY_BYTES,
]  # fmt: skip


packed = msgspec.msgpack.encode


anything = settings(max_examples=60, deadline=None, derandomize=True, database=None)


commands = st.one_of(
    st.builds(put, st.binary(max_size=2), st.binary(max_size=3)),
    st.builds(put_many, st.lists(st.tuples(st.binary(max_size=2), st.binary(max_size=3)), max_size=4)),
    st.builds(delete, st.binary(max_size=2)),
    st.builds(incr, st.binary(max_size=1), st.integers(INT64_MIN, INT64_MAX)),
    st.builds(
        compare_and_set,
        st.binary(max_size=1),
        st.none() | st.binary(max_size=1),
        st.binary(max_size=2) | st.integers(-5, 5).map(lambda number: b"%d" % number),
    ),
)


trees = st.recursive(
    st.none() | st.booleans() | st.integers(INT64_MIN, 2**64 - 1) | st.floats() | st.text()
    | st.binary() | st.sampled_from(["put", "put_many", "delete", "incr", "cas"]),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)  # fmt: skip


malformed = st.one_of(
    st.binary(max_size=60),
    trees.map(packed),
    st.tuples(commands, st.integers(0, 30)).map(lambda both: both[0][: both[1]]),
    st.tuples(commands, st.binary(min_size=1, max_size=3)).map(lambda both: both[0] + both[1]),
    st.tuples(commands, st.integers(0, 30), st.integers(0, 255)).map(
        lambda all_: all_[0][: all_[1]] + bytes([all_[2]]) + all_[0][all_[1] + 1 :]
    ),
)

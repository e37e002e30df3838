"""Addresses are checked where they are given."""

from __future__ import annotations

import pytest

from ondisk.errors import ConfigurationError
from ondisk.net.addresses import format_address, is_loopback, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:63001", "localhost", 63001),
        (" 127.0.0.1:1 ", "127.0.0.1", 1),
        ("[::1]:65535", "::1", 65535),
        ("[fe80::1%eth0]:5", "fe80::1%eth0", 5),
        ("db-1.example.com.:80", "db-1.example.com.", 80),
        ("my_host:80", "my_host", 80),
        ("bücher.example:80", "bücher.example", 80),
    ],
)
def test_an_address_is_read_and_written(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert parse_address(format_address((host, port))) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":63001",
        "localhost",
        "localhost:",
        "localhost:0",
        "localhost:65536",
        "localhost:-1",
        "localhost:٣",
        "localhost:1e3",
        "a..b:63001",
        ".:63001",
        "..:63001",
        "-a:63001",
        "a b:63001",
        "a/b:63001",
        "x" * 64 + ":63001",
        ("a." * 130) + ":63001",
        "::1:63001",
        "[::1:63001",
        "[]:63001",
        "[localhost]:63001",
        "ü" * 70 + ":63001",
        "\udcff:63001",
        "a\0b:63001",
        "http://a:63001",
        None,
        63001,
    ],
)
def test_what_can_be_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_address(text)


def test_loopback_is_this_machine() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.9.9.9", "::1"]))
    assert not any(map(is_loopback, ["10.0.0.1", "example.com", "0.0.0.0", "::"]))

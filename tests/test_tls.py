"""TLS between replicas: both sides show a certificate, and who cannot is told why and left out."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

import ondisk
from ondisk import Cluster, ConfigurationError, Unreachable
from ondisk.net.addresses import format_address
from ondisk.net.channel import Refused
from ondisk.net.tcp import TcpEndpoint, TcpNetwork
from ondisk.net.tls import Certificates
from ondisk.raft.messages import Propose
from tests.processes import Terminal, free_ports
from tests.tcp import SECRET, attach, connect, ends, free_addresses, serve
from tests.waiting import wait_until

__all__ = ["attach"]  # a fixture

AUTHORITY = trustme.CA()  # making one takes a while
STRANGER = trustme.CA()


def certificates(
    directory: Path, *names: str, issuer: trustme.CA = AUTHORITY, believed: trustme.CA = AUTHORITY
) -> Certificates:
    """Files in a directory, for 127.0.0.1 if no other names are given."""
    directory.mkdir(parents=True, exist_ok=True)
    write(directory, *names, issuer=issuer)
    believed.cert_pem.write_to_path(directory / "ca.pem")
    return Certificates(directory / "cert.pem", directory / "key.pem", directory / "ca.pem")


def write(directory: Path, *names: str, issuer: trustme.CA = AUTHORITY) -> None:
    issued = issuer.issue_cert(*(names or ("127.0.0.1",)))
    for name, blobs in (("cert.pem", issued.cert_chain_pems), ("key.pem", [issued.private_key_pem])):
        (directory / name).write_bytes(b"".join(blob.bytes() for blob in blobs))
        os.utime(directory / name)


def pair(attach: Callable[..., TcpEndpoint], *tls: Certificates | None) -> tuple[TcpEndpoint, TcpEndpoint]:
    """Two members, each with its own certificates."""
    addresses = free_addresses(2)
    one, two = (TcpNetwork(addresses, secret=SECRET, tls=each) for each in tls)
    return attach(one, 1), attach(two, 2)


def test_messages_arrive_whole_and_in_order_in_both_directions(
    attach: Callable[..., TcpEndpoint], tmp_path: Path
) -> None:
    """Small ones and some that take many records of TLS."""
    tls = certificates(tmp_path)
    one, two = pair(attach, tls, tls)
    connect(one, two)
    sent = [Propose(number, [bytes(size)]) for number, size in enumerate((0, 1, 200_000, 3, 1_000_000, 7))]
    received: list[object] = []
    answers: list[object] = []
    for message in sent:
        assert one.send(2, message) and two.send(1, message)

    def all_there() -> bool:
        received.extend(message for _, _, message in two.receive())
        answers.extend(message for _, message in serve(one, two))
        return len(received) == len(answers) == len(sent)

    wait_until(all_there)
    assert received == answers == sent


def test_what_goes_over_the_wire_cannot_be_read(tmp_path: Path) -> None:
    """A listener between the two sees TLS and no word of the conversation."""
    tls = certificates(tmp_path)
    (caller, called) = tls.session("127.0.0.1"), tls.session(None)
    seen = b""
    for _ in range(4):
        for here, there in ((caller, called), (called, caller)):
            data = here.to_send()
            seen += data
            there.take_in(data)
    caller.write(b"a secret value")
    seen += (data := caller.to_send())
    called.take_in(data)
    assert called.read(8) == b"a secret" and called.read(100) == b" value" and called.read(1) == b""
    assert seen.startswith(b"\x16\x03") and b"secret" not in seen


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("another authority", "its certificate is not believed: "),
        ("another name", "its certificate is not believed: "),
        ("no TLS", "start all replicas with TLS, or none"),
    ],
)
def test_who_has_no_good_certificate_stays_out(
    attach: Callable[..., TcpEndpoint], tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str, why: str
) -> None:
    """Whichever side calls, and the log says why; the name is asked of who is called."""
    caplog.set_level(logging.WARNING)
    good = certificates(tmp_path / "good")
    bad = {
        "another authority": lambda: certificates(tmp_path / "bad", issuer=STRANGER),
        "another name": lambda: certificates(tmp_path / "bad", "elsewhere.example"),
        "no TLS": lambda: None,
    }[what]()
    for tls in [(bad, good)] if what == "another name" else [(bad, good), (good, bad)]:  # 2 calls 1
        caplog.clear()
        one, two = pair(attach, *tls)
        wait_until(lambda one=one, two=two: serve(one, two) or why in caplog.text)
        assert not one.connected() and not two.connected()


def test_the_secret_is_asked_for_in_tls_too(
    attach: Callable[..., TcpEndpoint], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tls = certificates(tmp_path)
    addresses = free_addresses(2)
    one = attach(TcpNetwork(addresses, secret=SECRET, tls=tls), 1)
    two = attach(TcpNetwork(addresses, secret=SECRET[::-1], tls=tls), 2)
    wait_until(lambda: serve(one, two) or "does not know the shared secret" in caplog.text)
    assert not one.connected()


def test_certificates_are_renewed_without_a_restart(
    attach: Callable[..., TcpEndpoint], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new connection has the new ones; half-written files change nothing."""
    tls = certificates(tmp_path, issuer=STRANGER)
    one, two = pair(attach, certificates(tmp_path / "one"), tls)
    wait_until(lambda: serve(one, two) or "its certificate is not believed" in caplog.text)
    write(tmp_path)
    connect(one, two)
    before = ends(one, 2)
    (tmp_path / "cert.pem").write_bytes((tmp_path / "cert.pem").read_bytes()[:100])
    two._drop(two._connections[1])
    wait_until(lambda: serve(one, two) or (one.connected() and two.connected() and ends(one, 2) != before))
    assert "TLS goes on with the old certificates" in caplog.text


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    certificates(tmp_path)
    names = [tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem")]
    with pytest.raises(ConfigurationError, match="No such file"):
        Certificates(tmp_path / "missing", *names[1:])
    with pytest.raises(ConfigurationError, match="TLS with"):
        Certificates(names[2], *names[1:])  # the key belongs to another one
    with pytest.raises(ConfigurationError, match="TLS with"):
        Certificates(names[0], names[1], names[1])


def test_a_group_works_in_tls(tmp_path: Path) -> None:
    tls = certificates(tmp_path)
    network = TcpNetwork(free_addresses(3), secret=SECRET, tls=tls)
    with Cluster(tmp_path / "data", network=network) as cluster:
        cluster.put("k", "v")
        cluster.put("large", b"x" * 1_000_000)
        for member in cluster.members:
            assert cluster.get("large", via=member) == b"x" * 1_000_000
        cluster.crash(cluster.wait_for_leader())
        cluster.put("k", "w", timeout=10)


def test_a_client_that_is_no_member_asks_in_tls(tmp_path: Path) -> None:
    """And one without is told what may be wrong."""
    tls, addresses = certificates(tmp_path), free_addresses(3)
    endpoints = [format_address(address) for address in addresses.values()]
    with (
        Cluster(tmp_path / "data", network=TcpNetwork(addresses, secret=SECRET, tls=tls)),
        ondisk.connect(endpoints, secret=SECRET, tls=tls) as client,
        ondisk.connect(endpoints, secret=SECRET) as plain,
        ondisk.connect(
            endpoints, secret=SECRET, tls=certificates(tmp_path / "x", issuer=STRANGER)
        ) as stranger,
    ):
        client.put("large", b"x" * 1_000_000, timeout=20)
        assert [client.get("large", via=member) for member in (1, 2, 3)] == [b"x" * 1_000_000] * 3
        for outside in (plain, stranger):
            with pytest.raises(Unreachable):
                outside.get("large", timeout=0.3)


def test_a_stranger_with_garbage_costs_a_connection_and_no_more(
    attach: Callable[..., TcpEndpoint], tmp_path: Path
) -> None:
    tls = certificates(tmp_path)
    one, two = pair(attach, tls, tls)
    connect(one, two)
    for garbage in (
        b"",
        b"\x16\x03\x01\xff\xff" + b"x" * 70_000,
        b"GET / HTTP/1.0\r\n\r\n",
        os.urandom(1000),
    ):
        with socket.create_connection(one.addresses[1]) as sock:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            wait_until(lambda: serve(one, two) or not one._unauthenticated)
    assert one.connected() == {2}


def test_a_service_with_tls(tmp_path: Path) -> None:
    """The three options go together; and a member without them stays out."""
    certificates(tmp_path)
    tls = ["--tls-cert", "cert.pem", "--tls-key", "key.pem", "--tls-ca", "ca.pem"]
    members = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    with (
        Terminal("--replica-id", "1", "--members", members, *tls, cwd=tmp_path) as one,
        Terminal("--replica-id", "2", "--members", members, *tls, cwd=tmp_path) as two,
    ):
        one.ready()
        two.ready()
        assert one.ask("put k v") == "ok"
        assert two.ask("get k") == "query key: k, result: v"
    with Terminal("--replica-id", "1", *tls[:4], cwd=tmp_path) as one:
        assert one.wait() == 2
        assert "error: --tls-cert, --tls-key and --tls-ca go together" in one.errors


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_the_certificates_of_the_manual_are_good(tmp_path: Path) -> None:
    """Its commands as they are written: b calls a under its name, and nobody calls it by another one."""
    manual = (Path(__file__).parents[1] / "docs" / "operating.md").read_text()
    commands = manual.partition("### TLS")[2].partition("```sh\n")[2].partition("```")[0]
    subprocess.run(["sh", "-ec", commands], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    a, b = (
        Certificates(*(tmp_path / name for name in (f"{host}.pem", f"{host}-key.pem", "ca.pem")))
        for host in "ab"
    )
    caller, called = b.session("a"), a.session(None)
    for _ in range(3):
        called.take_in(caller.to_send())
        caller.take_in(called.to_send())
    assert caller.established and called.established
    with pytest.raises(Refused, match="not believed"):
        stranger, called = b.session("c"), a.session(None)
        called.take_in(stranger.to_send())
        stranger.take_in(called.to_send())

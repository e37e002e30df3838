"""``ondisk``: opens one replica and serves it, until its input ends or a signal comes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ondisk.cli.console import USAGE, Console
from ondisk.cli.input import carry_out, piped_lines, typed_lines
from ondisk.cli.process import end, is_background_job, log_to_stderr, speak_utf8
from ondisk.cli.waiting import Hints, run_until_signal, wait_for_group
from ondisk.errors import ConfigurationError, Corrupt, StorageError
from ondisk.net.addresses import Address, format_address, parse_address
from ondisk.net.tcp import TcpNetwork
from ondisk.node import Node
from ondisk.snapshot.restore import import_snapshot
from ondisk.storage.paths import read_regular

if TYPE_CHECKING:
    from ondisk.net.tls import Certificates

_F = TypeVar("_F", bound=Callable[..., object])


def read_secret(path: Path) -> bytes:
    """What the file holds. A FIFO would keep everybody waiting, a device might never end."""
    try:
        return read_regular(path).strip()
    except (OSError, StorageError) as error:
        raise click.BadParameter(f"{path}: cannot be read ({error})", param_hint="'--secret-file'") from None


def _import(file: Path, data_dir: Path, members: tuple[int, ...], replica_id: int) -> None:
    with click.progressbar(length=file.stat().st_size, label=f"replica {replica_id}", file=sys.stderr) as bar:

        def progress(_: int, done: int) -> None:
            bar.update(done - bar.pos)

        snapshot = import_snapshot(
            file, data_dir, members=members, replica_ids=(replica_id,), progress=progress
        )
    print(f"replica {replica_id} holds the state after entry {snapshot.index}")
    print("do the same with the same file for every other member, then start them without --import-snapshot")


def _monitor(node: Node, where: Address) -> AbstractContextManager[object]:
    try:
        from ondisk.monitor import Monitor
    except ImportError as error:  # the extra is not installed
        raise ConfigurationError(str(error)) from None
    return Monitor(node, where)


def tls_option(name: str, what: str) -> Callable[[_F], _F]:
    kind = click.Path(exists=True, dir_okay=False, path_type=Path)
    return click.option(name, metavar="FILE", type=kind, help=what)


def certificates(certificate: Path | None, key: Path | None, authority: Path | None) -> Certificates | None:
    if certificate is not None and key is not None and authority is not None:
        from ondisk.net.tls import Certificates

        return Certificates(certificate, key, authority)
    if certificate is key is authority is None:
        return None
    raise click.UsageError("--tls-cert, --tls-key and --tls-ca go together")


def _addresses(members: str, replica_id: int, own: str | None) -> dict[int, Address]:
    addresses = {i: parse_address(text) for i, text in enumerate(members.split(","), 1)}
    if own is not None:
        addresses[replica_id] = parse_address(own)
    if replica_id not in addresses:
        last = len(addresses)
        raise click.UsageError(
            f"replica {replica_id} has no address: --members ends with replica {last}; give --addr HOST:PORT"
        )
    return addresses


version_option = click.version_option(
    package_name="ondisk", prog_name="ondisk", message="%(prog)s %(version)s"
)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Beside a replica: `ondisk get k`, `ondisk status` and the like ask a group that runs elsewhere "
    "(`ondisk --endpoints HOST:PORT,... --help` lists them all, and without a command there is a prompt). "
    "`ondisk inspect DIR` says what a stopped replica holds, `ondisk check perf DIR` whether a disk is fast "
    "enough.",
)
@version_option
@click.option("--replica-id", "-replicaid", type=click.IntRange(min=1), required=True, help="1, 2, 3, ...")
@click.option(
    "--members",
    metavar="HOST:PORT,...",
    default="localhost:63001,localhost:63002,localhost:63003",
    help="The addresses of all replicas, in the order of their ids. The same for every replica.",
)
@click.option(
    "--addr",
    "-addr",
    metavar="HOST:PORT",
    help="Where others call this replica, instead of what --members says.",
)
@click.option(
    "--bind",
    metavar="HOST:PORT",
    help="Listen here, if that is not the address that the others call: 0.0.0.0:63001, a container.",
)
@click.option(
    "--serve",
    is_flag=True,
    help="Run as a service: read no input, until SIGTERM or SIGINT.",
)
@click.option(
    "--join",
    "-join",
    is_flag=True,
    help="A new replica for a running group: it waits until a member is told `add ID HOST:PORT`.",
)
@click.option(
    "--import-snapshot",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Replace what this replica has by an exported snapshot, then exit. Do it for every member.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=Path("example-data"),
    help="Where data is kept. One may serve all: each replica has a folder of its own in it.",
)
@click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="ONDISK_SECRET_FILE",
    show_envvar=True,
    help="Holds at least 16 bytes that all replicas share. Required beyond loopback.",
)
@tls_option("--tls-cert", "The certificate of this machine (PEM), for server and client.")
@tls_option("--tls-key", "Its key, without a password.")
@tls_option("--tls-ca", "The authority that has issued the certificates of all replicas, and no others.")
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Answer /metrics, /livez and /readyz over HTTP here. Anybody who can connect may look.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What to tell on stderr.  [default: info with --serve, else warning]",
)
def run(
    replica_id: int,
    members: str,
    addr: str | None,
    bind: str | None,
    serve: bool,
    join: bool,
    import_snapshot: Path | None,
    data_dir: Path,
    secret_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_ca: Path | None,
    metrics: str | None,
    log_level: str | None,
) -> int:
    """One replica of a key-value store. Run it in three terminals, with ids 1, 2 and 3.

    Each line of input is a command: `put key value`, `get key`, ...; `help` lists them. The end of input,
    `exit` and SIGTERM close the replica, Ctrl-C does so with status 130. A command that fails ends nothing;
    but if commands come from a pipe or a file, the status at the end of the input tells of the worst one: 2 a
    line was misspelt, 3 something was not done, 4 an outcome is unknown. With --serve no input is read:
    SIGTERM and SIGINT close the replica. Status 1 means that the replica could not start or has failed, also
    after a signal, 2 wrong use.
    """
    log_to_stderr(log_level or ("info" if serve else "warning"), timed=serve)
    speak_utf8()
    addresses = _addresses(members, replica_id, addr)
    if import_snapshot is not None:
        _import(import_snapshot, data_dir, tuple(addresses), replica_id)
        return 0
    if sys.stdin is None and not serve:
        raise click.UsageError("standard input is closed: to run as a service, give --serve")
    if not serve and is_background_job():
        raise click.UsageError("the terminal belongs to another job: to run in the background, give --serve")
    monitored = None if metrics is None else parse_address(metrics)
    secret = read_secret(secret_file) if secret_file else None
    options: dict[str, Any] = {} if bind is None else {"bind": {replica_id: parse_address(bind)}}
    options["tls"] = certificates(tls_cert, tls_key, tls_ca)
    network = TcpNetwork(addresses, secret=secret, **options)
    node = Node(replica_id, () if join else tuple(addresses), data_dir, network)
    for number in (signal.SIGTERM, signal.SIGALRM, *([signal.SIGINT] if serve else [])):
        signal.signal(number, end)
    watched = ExitStack()
    started = False
    try:
        try:
            node.start()
        except Corrupt:
            raise StorageError(node.status.error) from None  # with what to do
        started = True
        if monitored is not None:
            watched.enter_context(_monitor(node, monitored))
        hints = Hints()
        address = format_address(addresses[replica_id])
        typed = not serve and sys.stdin.isatty() and sys.stdout.isatty()
        print(f"node address: {address}\n{USAGE}" if typed else f"node address: {address}", flush=True)
        if join and not node.status.group:
            hints.say(f"waiting until a member is told: add {replica_id} {address}")
        elif not serve:
            wait_for_group(node, hints)
        if serve:
            run_until_signal(node, hints)
            return 0
        console = Console(node, lambda: [node.status], node)
        lines = typed_lines(f"replica {replica_id}> ") if typed else piped_lines(node, hints)
        carry_out(console, lines, typed=typed)
        return 0 if typed else console.exit_status  # a person has seen it
    finally:
        for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # nothing may interrupt what follows
        node.hand_over()
        node.stop()
        watched.close()
        if node.status.role == "failed" and started:  # whatever else has ended it
            raise StorageError(f"replica {replica_id} failed: {node.status.error}")

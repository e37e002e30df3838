"""Is this a release? ``python -m tests.release``, which is ``make release-check``.

Built twice from what is committed, with one hash; installed into fresh environments on each Python from 3.11
that is here, without extras and with each; tried there: a group in one process, three processes with a client
and figures, a notebook. Nothing is published: .github/workflows/release.yml does that, with these very files.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import free_ports
from tests.test_pythons import find_python

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
EXTRAS = ("", "metrics", "cli", "cli,metrics", "lab")

# Licences that whoever installs ondisk can live with, as metadata and classifiers name them.
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|MPL|Mozilla|Unlicense|0BSD|HPND|CC0|Zlib"
)

GROUP = """
import tempfile
from ondisk import Cluster
with tempfile.TemporaryDirectory() as directory, Cluster(directory) as cluster:
    cluster.put("k", "v")
    assert cluster.get("k", via=3) == b"v"
    assert cluster.incr("n").value == 1
"""
LICENCES = """
from importlib.metadata import distributions
for each in distributions():
    found = each.metadata
    named = [name.split(" :: ")[-1] for name in found.get_all("Classifier") or () if "License ::" in name]
    said = found["License-Expression"] or ", ".join(named) or (found["License"] or "").split("\\n")[0]
    print(found["Name"], each.version, said, sep="\\t")
"""


def main() -> None:
    """All checks, in the order in which they are cheap; the first that fails ends it."""
    parser = argparse.ArgumentParser(description="Is this a release?")
    parser.add_argument("--quick", action="store_true", help="this Python only, without the lab")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="ondisk-release-") as name:
        scratch = Path(name)
        files = build_twice(scratch)
        run(sys.executable, "-m", "twine", "check", "--strict", *map(str, files))
        check_contents(files)
        for version in PYTHONS:
            here = f"{sys.version_info[0]}.{sys.version_info[1]}" == version
            if (python := sys.executable if here else find_python(version)) is None or (quick and not here):
                say(f"Python {version}: not here" if python is None else f"Python {version}: left out")
                continue
            for extra in EXTRAS[:-1] if quick else EXTRAS:
                try_out(files, python, version, extra, scratch)
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        (ROOT / "dist").mkdir()
        for file in files:
            shutil.copy(file, ROOT / "dist")
            print(f"{digest(file)}  dist/{file.name}")


def say(what: str) -> None:
    print(f"== {what}", flush=True)


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    """Run it to its end; its output only if it fails, which ends everything."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# What is built


def build_twice(scratch: Path) -> list[Path]:
    """The sdist, and the wheel that is made of it; from the newest commit, in two places, at two times."""
    commit = run("git", "rev-parse", "HEAD").strip()
    said = run("git", "show", "-s", "--format=%ct", commit).strip()
    built = []
    for name in ("one", "two"):
        source = scratch / name / "source"
        source.mkdir(parents=True)
        run("git", "archive", "--format=tar", "-o", str(scratch / "source.tar"), commit)
        with tarfile.open(scratch / "source.tar") as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2 has none
            tar.extractall(source)
        build = (sys.executable, "-m", "build", "--outdir", str(scratch / name / "dist"))
        run(*build, str(source), SOURCE_DATE_EPOCH=said)
        built.append(sorted((scratch / name / "dist").iterdir()))
    first, second = ([digest(file) for file in files] for files in built)
    if first != second or len(first) != 2:
        sys.exit(f"built twice, and not the same: {first}, {second}")
    say(f"built twice from {commit[:8]}, the same both times: {', '.join(file.name for file in built[0])}")
    return built[0]


def check_contents(files: list[Path]) -> None:
    """The wheel has the package, the licence and nothing else; PyPI knows the links of its page."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (wheel,) = [file for file in files if file.suffix == ".whl"]
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    tracked = set(run("git", "ls-files", "ondisk").splitlines())
    if missing := tracked - inside:
        sys.exit(f"{wheel.name} lacks {sorted(missing)}")
    if strangers := {
        name for name in inside if not name.startswith(("ondisk/", f"ondisk-{version}.dist-info/"))
    }:
        sys.exit(f"{wheel.name} has {sorted(strangers)}, too")
    if not any(name.endswith("licenses/LICENSE") for name in inside):
        sys.exit(f"{wheel.name} has no licence")
    with zipfile.ZipFile(wheel) as archive:
        page = archive.read(f"ondisk-{version}.dist-info/METADATA").decode().partition("\n\n")[2]
    if relative := re.findall(r"\]\((?!https://|#)([^)]*)\)", page):
        sys.exit(f"{wheel.name}: PyPI knows no {relative[0]}")
    say(f"{wheel.name}: {len(tracked)} files, {wheel.stat().st_size:,} bytes")


# What is installed


def try_out(files: list[Path], python: str, version: str, extra: str, scratch: Path) -> None:
    """In a fresh environment: install the wheel, and do what this extra is for."""
    what = f"Python {version}, ondisk[{extra}]" if extra else f"Python {version}, ondisk"
    home = scratch / f"{version}-{extra.replace(',', '-') or 'bare'}"
    run(python, "-m", "venv", str(home))
    inside = str(home / "bin" / "python")
    (wheel,) = [file for file in files if file.suffix == ".whl"]
    wanted = f"{wheel}[{extra}]" if extra else str(wheel)
    pip = (inside, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "-c", str(ROOT / "requirements.lock"), wanted)
    run(*pip, "check")
    check_licences(run(inside, "-c", LICENCES), what)
    work = home / "work"
    work.mkdir()
    run(inside, "-c", GROUP, cwd=work)
    if "cli" in extra or extra == "lab":
        three_processes(inside, work, metrics="metrics" in extra)
    else:
        said = subprocess.run([inside, "-m", "ondisk"], cwd=work, capture_output=True, text=True, check=False)
        if said.returncode != 2 or "pip install 'ondisk[cli]'" not in said.stderr:
            sys.exit(f"{what}: without click it says {said.stderr!r}")
    if extra == "lab":
        notebook = ROOT / "notebooks" / "02-replication-lag.ipynb"
        shutil.copy(notebook, work)
        path = f"{home / 'bin'}:{os.environ['PATH']}"
        run(inside, "-m", "jupyter", "execute", notebook.name, cwd=work, PATH=path)
    say(f"{what}: works")


def check_licences(listed: str, what: str) -> None:
    """Each package that came along says one that is permissive."""
    for line in listed.splitlines():
        name, version, said = line.split("\t")
        if not PERMISSIVE.search(said):
            sys.exit(f"{what}: {name} {version} has the licence {said!r}: is that all right?")


def three_processes(python: str, work: Path, *, metrics: bool) -> None:
    """As in three terminals: what one stores another one has, and figures are there."""
    *ports, figures = free_ports(4)
    members = ",".join(f"127.0.0.1:{port}" for port in ports)
    common = [python, "-m", "ondisk", "--members", members, "--data-dir", str(work / "data"), "--replica-id"]
    more = ["--metrics", f"127.0.0.1:{figures}"] if metrics else []
    with service([*common, "1", "--serve", *more]), service([*common, "2", "--serve"]):
        commands = "put k v\nget k\nstatus\n"
        done = subprocess.run(
            [*common, "3"], input=commands, capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode or "query key: k, result: v" not in done.stdout:
            sys.exit(f"three processes: {done.stdout}{done.stderr}")
        if metrics:
            ask = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{figures}/metrics').read().decode())"
            if "ondisk_server_has_leader 1.0" not in run(python, "-c", ask):
                sys.exit("the figures say that there is no leader")


@contextmanager
def service(command: list[str]) -> Iterator[None]:
    """Runs meanwhile, and ends with status 0 when it is told to."""
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.terminate()
            status = process.wait(60)
        if status:
            log.seek(0)
            sys.exit(f"{' '.join(command)}\nended with {status}: {log.read().decode()}")


if __name__ == "__main__":
    main()

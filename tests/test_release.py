"""The release: what is published is what was tried, and no licence comes along unseen."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.release import EXTRAS, ROOT, check_licences

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())


def test_the_workflow_publishes_the_files_that_were_tried() -> None:
    """Only the job that publishes may ask for a token, and it builds nothing."""
    jobs = WORKFLOW["jobs"]
    build, publish = ([step.get("run", step.get("uses")) for step in jobs[name]["steps"]] for name in jobs)
    assert "make release-check" in build and any("upload-artifact" in each for each in build)
    assert publish[0].startswith("actions/download-artifact") and "pypi-publish" in publish[1]
    assert len(publish) == 2 and jobs["publish"]["needs"] == "build"
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "permissions" not in jobs["build"] and jobs["publish"]["permissions"] == {"id-token": "write"}


def test_the_workflow_tries_the_pythons_that_the_package_names() -> None:
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    (setup,) = [step for step in WORKFLOW["jobs"]["build"]["steps"] if "setup-python" in step.get("uses", "")]
    assert sorted(setup["with"]["python-version"].split()) == sorted(named)


def test_every_extra_but_that_of_the_tests_is_tried() -> None:
    extras = re.search(
        r"^\[project.optional-dependencies\]\n(.*?)^\[", (ROOT / "pyproject.toml").read_text(), re.M | re.S
    )
    assert extras is not None
    named = set(re.findall(r"^(\w+) = \[", extras[1], re.M))
    assert named - {"test"} <= {each for extra in EXTRAS for each in extra.split(",")}


@pytest.mark.parametrize("licence", ["", "UNKNOWN", "GPL-3.0-only", "Proprietary"])
def test_a_licence_that_nobody_has_thought_of_ends_the_check(licence: str) -> None:
    check_licences("a\t1\tMIT\nb\t2\tApache-2.0", "here")
    with pytest.raises(SystemExit, match=f"c 3 has the licence '{licence}'"):
        check_licences(f"a\t1\tMIT\nc\t3\t{licence}", "here")

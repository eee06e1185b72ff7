"""The files around the package: pins, the targets of the Makefile, hosted CI, the top level."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS = PROJECT["dependency-groups"]
TARGETS = re.findall(r"^([a-z][a-z-]*):", MAKEFILE, flags=re.MULTILINE)
PIN = re.compile(r"([\w.-]+)==\d[\w.]*")
TOP_LEVEL = {
    *(
        "setup.py",
        "csrc",
        "ssd_ops",
        "tests",
        "benchmarks",
        "README.md",
        "pyproject.toml",
        "Makefile",
    ),
    *("docs", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md"),
}


def names(group: str) -> set[str]:
    """The packages of a group and of those it includes; every one has to be pinned."""
    found = set()
    for entry in GROUPS[group]:
        if isinstance(entry, dict):
            found |= names(entry["include-group"])
        else:
            pin = PIN.fullmatch(entry)
            assert pin, f"{group}: {entry} is not pinned to one version"
            found.add(pin[1])
    return found


@pytest.mark.parametrize("group", GROUPS)
def test_every_package_of_a_group_is_pinned(group):
    assert names(group)


def test_what_users_are_asked_to_install_is_pinned_for_the_tests():
    wanted = PROJECT["project"]["dependencies"] + PROJECT["build-system"]["requires"]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        wanted += extra
    packages = {re.match(r"[\w.-]+", requirement)[0] for requirement in wanted}
    assert packages - names("dev") == {"torch"}  # it stands in the Makefile


def test_the_makefile_and_hosted_ci_install_nothing_without_a_version():
    values = re.findall(r"^(\w*(?:PIN|TORCH)) [?:]= (.*)$", MAKEFILE, flags=re.MULTILINE)
    assert len(values) == 3
    for name, value in values:
        assert all(PIN.fullmatch(word) for word in value.split()), name
    for line in MAKEFILE.splitlines():
        if "$(PIP) install" in line:
            rest = line.partition("$(PIP) install ")[2]
            assert re.fullmatch(
                r"\$\(PIP_PIN\)|\$\(2\)|--group \$\(3\)|--no-deps --group \$\(4\)\)"
                r"|--no-build-isolation --no-deps -e \.",
                rest,
            ), line
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = workflow.read_text()
        assert "pip install" not in text
        assert re.findall(r"uses: (\S+)", text) == re.findall(r"uses: ([\w/-]+@v\d+)$", text, re.M)
        for target in re.findall(r"run: make ([\w-]+)", text):
            assert target in TARGETS, target


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_alone_prints_every_target_with_what_it_does():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    printed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert list(printed) == TARGETS
    assert all(len(text) > 10 for text in printed.values())


def test_every_target_is_phony():
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE)
    assert sorted(phony.split()) == sorted(TARGETS)


def test_commit_hooks_have_no_versions_of_their_own():
    """They run the tools of .venv, so that a commit and `make lint` agree."""
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", text) == ["local"]
    for entry in re.findall(r"entry: (\S+)", text):
        assert entry.removeprefix(".venv/bin/") in names("lint"), entry


def test_nothing_else_stands_at_the_top_level():
    try:
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout of git")
    found = {name.partition("/")[0] for name in listed}
    assert {name for name in found if not name.startswith(".")} <= TOP_LEVEL


def test_the_licence_is_named_and_there():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text and "Copyright 2026 the ssd_ops authors" in text


def test_the_changelog_knows_the_version():
    from ssd_ops.version import __version__

    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert __version__ in headings

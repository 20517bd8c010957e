"""The bounds that pyproject.toml declares are the versions that `make test-oldest` runs, and are given to users."""

import re
from pathlib import Path

from packaging.version import Version

import lsmooth

ROOT = Path(__file__).parents[1]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def bounds():
    """Return the lower bounds of what lsmooth, its extras and its tests need, by name."""
    project = text("pyproject.toml")
    project = project[project.index("\ndependencies = [") : project.index("\ndev = [")]
    # Some are declared twice, and alike.
    found = set(re.findall(r'"([\w-]+)>=([\w.]+)"', project))
    assert len(found) == len(dict(found))
    return dict(found)


def pins(name):
    return dict(re.findall(r"^([\w-]+)==(\S+)", text(name), re.MULTILINE))


def test_every_lower_bound_is_among_the_oldest_versions():
    oldest = pins("constraints-oldest.txt")
    assert {"torch", "numpy", "transformers", "ray", "pytest"} <= bounds().keys()
    for name, bound in bounds().items():
        assert Version(oldest[name]) == Version(bound), name


def test_readme_names_the_oldest_torch():
    assert f"PyTorch {bounds()['torch']} or newer" in text("README.md")


def test_the_version_is_the_same_everywhere():
    (newest, *_) = re.findall(r"^## \[([\d.]+)\] - (?:Unreleased|\d{4}-\d\d-\d\d)$", text("CHANGELOG.md"), re.MULTILINE)
    assert newest == lsmooth.__version__
    assert f"\nversion: {lsmooth.__version__}\n" in text("CITATION.cff")


def test_the_changelog_has_the_form_of_keep_a_changelog():
    headings = re.findall(r"^##+ .*$", text("CHANGELOG.md"), re.MULTILINE)
    kinds = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    version = r"## \[(Unreleased|\d+\.\d+\.\d+)\]( - (Unreleased|\d{4}-\d\d-\d\d))?"
    assert [line for line in headings if line[4:] not in kinds and not re.fullmatch(version, line)] == []


def test_classifiers_name_the_pythons_that_ran_all_tests():
    classified = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text("pyproject.toml"))
    (table,) = re.findall(r"^\| `make test` \|.*\| ([\d., ]+) \|$", text("CONTRIBUTING.md"), re.MULTILINE)
    assert classified == table.split(", ")

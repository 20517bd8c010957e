"""The bounds that pyproject.toml declares are the versions that `make test-oldest` runs, and are given to users."""

import re
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[1]


def bounds():
    """Return the lower bounds of what lsmooth, its extras and its tests need, by name."""
    text = (ROOT / "pyproject.toml").read_text()
    text = text[text.index("\ndependencies = [") : text.index("\ndev = [")]
    # Some are declared twice, and alike.
    found = set(re.findall(r'"([\w-]+)>=([\w.]+)"', text))
    assert len(found) == len(dict(found))
    return dict(found)


def pins(name):
    return dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


def test_every_lower_bound_is_among_the_oldest_versions():
    oldest = pins("constraints-oldest.txt")
    assert {"torch", "numpy", "transformers", "ray", "pytest"} <= bounds().keys()
    for name, bound in bounds().items():
        assert Version(oldest[name]) == Version(bound), name


def test_readme_names_the_oldest_torch():
    assert f"PyTorch {bounds()['torch']} or newer" in (ROOT / "README.md").read_text()

"""The scripts of the gallery, which is no package, as modules."""

import importlib.util
from pathlib import Path

import pytest

GALLERY = Path(__file__).parents[3] / "figures" / "gallery"


@pytest.fixture
def load_from_gallery():
    """A function that returns the module of a script's name."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, GALLERY / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load

"""Data sets from the Hugging Face hub, or from a local folder laid out like one of its repositories."""

from __future__ import annotations

from typing import Any

from lsmooth.errors import DataError


def load_hub(source: str, name: str, configuration: str | None = None, revision: str | None = None) -> dict[str, Any]:
    """Return the splits of a hub data set by their names ("train", "validation", "test").

    Args:
        source: What the user gave: "hub" for the data set `name`, or "hub:NAME" for another one, or for a folder.
        name: The data set's public name.
        configuration: Which of its configurations; only used with `name` itself.
        revision: Its branch; only used with `name` itself.

    Raises:
        DataError: The package `datasets` is not installed, or the data set cannot be fetched.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            "--data hub needs the package datasets, which is not installed; pip install 'lsmooth[data]'."
        ) from None
    _, _, other = source.partition(":")
    try:
        found = datasets.load_dataset(other) if other else datasets.load_dataset(name, configuration, revision=revision)
    except Exception as error:
        # Whatever the cause (no network, no such name, a broken cache), the user has the same remedies.
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise DataError(
            f"{other or name} could not be loaded with datasets ({reason}); check the name and the connection, or "
            "give a folder with --data DIR."
        ) from error
    return dict(found)

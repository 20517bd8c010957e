"""The results of a comparison: one HDF5 file, replaced whole with each run that ends, so that none is lost.

Reading it needs neither torch nor the task.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from lsmooth.errors import LsmoothError
from lsmooth.tasks.engines import RunResult
from lsmooth.trace.lock import lock_as_writer, unlock

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "lsmooth-comparison"
VERSION = "1.0"


class ResultsError(LsmoothError):
    """A file of results is missing, damaged, or of another comparison."""


class Results:
    """Results by the name of the run, in memory and in a file, which is this object's alone until it is closed.

    The file has one group a run under `runs`, with its plan (JSON) and outcome as attributes and one dataset for each
    number of its reports: step, epoch, train_loss, clipped, steps, seconds, and metrics/NAME.

    Args:
        path: The file.
        description: What is compared, as plain values; must be the same for a file that is continued.
        mode: "x" refuses an existing file, "w" begins anew, "a" continues one.

    Raises:
        ResultsError: The file exists, is damaged, belongs to another comparison, is being written by one, or cannot
            be written.

    Attributes:
        path: The file.
        description: What is compared.
    """

    def __init__(self, path: Path, description: Mapping[str, Any], mode: str = "x") -> None:
        self.path = path
        # Through JSON, so that it compares equal to what was read.
        self.description: dict[str, Any] = json.loads(json.dumps(description))
        self._runs: dict[str, tuple[dict[str, Any], RunResult]] = {}
        if not path.parent.is_dir():
            raise ResultsError(f"There is no folder {path.parent} to write {path.name} into; create it first.")
        # The holder of the lock on the file at this path may write it: each new version is locked before it is renamed.
        self._lock: int | None = None
        begun = self._begin(mode)
        try:
            try:
                self._lock = lock_as_writer(path, _busy)
            except OSError as error:
                raise _not_writable(path, error) from error
            if mode == "a" and not begun:
                theirs, self._runs = _read(path)
                for key, value in self.description.items():
                    if theirs.get(key) != value:
                        raise ResultsError(
                            f"{path} is another comparison: its {key} is {theirs.get(key)}, not {value}; choose "
                            "another -o, or --force to replace it."
                        )
            self._write()
        except BaseException:
            if begun:
                path.unlink(missing_ok=True)
            self.close()
            raise

    def _begin(self, mode: str) -> bool:
        """Return whether this object creates the file; of several that try at once, one does."""
        if self.path.exists() and mode != "x":
            return False
        try:
            self.path.touch(exist_ok=False)
        except FileExistsError:
            raise ResultsError(
                f"{self.path} exists already; choose another -o, or --resume it, or --force to replace it."
            ) from None
        except OSError as error:
            raise _not_writable(self.path, error) from error
        return True

    def close(self) -> None:
        """Let others write the file."""
        lock, self._lock = self._lock, None
        if lock is not None:
            unlock(lock)

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, name: str) -> bool:
        return name in self._runs

    def __getitem__(self, name: str) -> RunResult:
        return self._runs[name][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def check(self, name: str, plan: Mapping[str, Any]) -> None:
        """Raise a ResultsError if there is a run of this name that was made by another plan."""
        if name in self._runs:
            theirs, ours = self._runs[name][0], json.loads(json.dumps(plan))
            for key in [key for key in ours if theirs.get(key) != ours[key]]:
                raise ResultsError(
                    f"{self.path} holds a run with other settings ({key}: {_difference(theirs.get(key), ours[key])}); "
                    "choose another -o, or --force to replace it."
                )

    def add(self, name: str, plan: Mapping[str, Any], result: RunResult) -> None:
        """Take in a run and write the file; raise a ResultsError if it cannot be."""
        self._runs[name] = (json.loads(json.dumps(plan)), result)
        self._write()

    def curves(self, names: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
        """Return the reports of some runs as a table, one row for each run and report.

        Args:
            names: The runs, each with values for columns that say which it is.
        """
        import pandas as pd

        rows = [
            {**columns, **{key: value for key, value in report.items() if key != "metrics"}, **report["metrics"]}
            for name, columns in names.items()
            for report in self[name].reports
        ]
        return pd.DataFrame(rows)

    def _write(self) -> None:
        # In memory first: HDF5 crashes when the disk is full.
        content = io.BytesIO()
        with h5py.File(content, "w", track_order=True) as file:
            file.attrs["format"] = FORMAT
            file.attrs["format_version"] = VERSION
            file.attrs["description"] = json.dumps(self.description)
            runs = file.create_group("runs", track_order=True)
            for name, (plan, result) in self._runs.items():
                _put(runs.create_group(name, track_order=True), plan, result)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        lock: int | None = None
        try:
            temporary.write_bytes(content.getbuffer())
            lock = lock_as_writer(temporary, _busy)
            temporary.replace(self.path)
        except BaseException as error:
            if lock is not None:
                unlock(lock)
            with contextlib.suppress(OSError):
                temporary.unlink()
            if isinstance(error, OSError):
                raise _not_writable(self.path, error) from error
            raise
        before, self._lock = self._lock, lock
        if before is not None:
            unlock(before)


def _busy(path: Path) -> ResultsError:
    return ResultsError(
        f"{path} is being written by another `lsmooth compare`; wait for it to end, or choose another -o."
    )


def _not_writable(path: Path, error: OSError) -> ResultsError:
    return ResultsError(
        f"{path} cannot be written ({error.strerror}); choose another -o, or see to the permissions and the room there "
        "and go on with --resume."
    )


def _difference(theirs: Any, ours: Any) -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        key = next(key for key in [*theirs, *ours] if theirs.get(key) != ours.get(key))
        return f"{key} was {theirs.get(key)} there and is {ours.get(key)} here"
    return f"{theirs} there and {ours} here"


def _put(group: h5py.Group, plan: Mapping[str, Any], result: RunResult) -> None:
    group.attrs["plan"] = json.dumps(plan)
    group.attrs["outcome"] = result.outcome
    reports = result.reports
    for key in reports[0] if reports else ():
        if key == "metrics":
            for metric in reports[0][key]:
                group[f"metrics/{metric}"] = np.asarray([report[key][metric] for report in reports], dtype=np.float64)
        else:
            group[key] = np.asarray([report[key] for report in reports])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, tuple[dict[str, Any], RunResult]]]:
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise ResultsError(f"{path} holds no results of `lsmooth compare`.")
            description = json.loads(file.attrs["description"])
            runs = {}
            for name, group in file["runs"].items():
                metrics = {metric: values[:].tolist() for metric, values in group.get("metrics", {}).items()}
                columns = {key: values[:].tolist() for key, values in group.items() if key != "metrics"}
                reports = [
                    {key: values[row] for key, values in columns.items()}
                    | {"metrics": {metric: values[row] for metric, values in metrics.items()}}
                    for row in range(len(columns.get("step", [])))
                ]
                result = RunResult(str(group.attrs["outcome"]), reports)  # type: ignore[arg-type]
                runs[name] = (json.loads(group.attrs["plan"]), result)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise ResultsError(f"{path} cannot be read as results ({str(error).splitlines()[0]}).") from error
    return description, runs

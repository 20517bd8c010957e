"""Measure everything that docs/performance.md says, and rewrite its table.

    python benchmarks/run.py                    all, at full size; rewrites table and committed.json
    python benchmarks/run.py --only recorder    some of them; the other rows stay
    python benchmarks/run.py --only gpu         on a machine with a GPU: the table of GPUs
    python benchmarks/run.py --short            small sizes; rewrites what these are compared with in committed.json
    python benchmarks/run.py --short --check    small sizes; exit code 1 if a ratio is 25 % worse than the committed one

Each benchmark is a module here with a function `rows(short)` that returns `Row`s. Ratios are taken between things timed
side by side, interleaved, in one process, of which each benchmark has its own: what one has left in memory would weigh
on the next.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import multiprocessing
import os
import platform
import re
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from row import Row

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
COMMITTED = HERE / "committed.json"
MODULES = ("recorder", "optimizers", "trace", "fit", "figures", "commands", "growth")
# A ratio that has grown by more than this over the committed one fails the check, if it is so each time it is measured:
# another process may disturb one measurement, and what is really slower is slower every time.
TOLERANCE = 1.25
ATTEMPTS = 5
START, END = "<!-- table: made by `make bench` -->", "<!-- end of table -->"
GPU_START, GPU_END = "<!-- table: made by `make bench-gpu` -->", "<!-- end of table of GPUs -->"
README = HERE.parent / "README.md"
# What README quotes of the table: what somebody asks who thinks of attaching a recorder.
QUOTED = ("recorder.measured_5", "recorder.unmeasured_5", "recorder.memory_5", "trace.bytes")


def gpu() -> str:
    """Name the GPU that the numbers were taken on."""
    import torch

    source = torch.empty(1 << 28, device="cuda").normal_()
    target = torch.empty_like(source)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    target.copy_(source)
    start.record()
    for _ in range(10):
        target.copy_(source)
    end.record()
    torch.cuda.synchronize()
    rate = 10 * 2 * source.numel() * 4 / start.elapsed_time(end) / 1e6
    return (
        f"{torch.cuda.get_device_name()}, Python {platform.python_version()}, torch {torch.__version__}; copying its "
        f"memory runs at {rate:,.0f} GB/s (read and written bytes)"
    )


def machine() -> str:
    """Name what the numbers were taken on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*: (.+)", cpuinfo.read_text())
        processor = found.group(1) if found else processor
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "h5py", "scipy", "matplotlib"))
    return (
        f"{processor}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}; copying memory runs at "
        f"{copy_bandwidth():.1f} GB/s (read and written bytes)"
    )


def copy_bandwidth() -> float:
    """Return how many GB/s a copy of 256 MB reads and writes, the best of 7."""
    import time

    import torch

    source = torch.rand(1 << 26)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * 4 / best / 1e9


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| what | measured | target | |", "|---|---|---|---|"]
    for row in rows:
        verdict = "" if row.target is None else "met" if row.met() else "**missed**"
        target = "" if row.target is None else f"{row.sense} {row.target:,g} {row.unit}"
        lines.append(f"| {row.what} | {row.format(row.value)} | {target} | {verdict} |")
    return "\n".join(lines)


def notes(rows: list[Row]) -> str:
    """Return what the rows say of their floors as a Markdown list."""
    return "\n".join(f"- {row.what}: {row.note}" for row in rows if row.note)


def rewrite(path: Path, body: str, start: str = START, end: str = END) -> None:
    """Put a text between the marks on a page."""
    page = path.read_text()
    path.write_text(f"{page[: page.index(start)]}{start}\n\n{body}\n\n{page[page.index(end) :]}")


def check(rows: list[Row], committed: dict[str, float]) -> dict[str, str]:
    """Return by name a sentence for each ratio that is worse than the committed one by more than the tolerance."""
    found = {}
    for row in rows:
        before = committed.get(row.name)
        if before is None or row.unit != "x":
            continue
        worse = row.value / before if row.sense == "at most" else before / row.value
        if worse > TOLERANCE:
            found[row.name] = f"{row.name} ({row.what}) is {row.value:.3g}, was {before:.3g} when it was committed."
    return found


def run(module: str, short: bool) -> list[Row]:
    """Return the rows of one benchmark."""
    rows: list[Row] = importlib.import_module(module).rows(short)
    return rows


def measured(module: str, short: bool) -> list[Row]:
    """Run one benchmark in a process of its own."""
    print(f"{module} …", file=sys.stderr, flush=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rows = pool.apply(run, (module, short))
        # Let it end by itself, and its own processes with it.
        pool.close()
        pool.join()
    for row in rows:
        print(f"  {row.what}: {row.format(row.value)}", file=sys.stderr, flush=True)
    return rows


def checked(modules: list[str], short: bool, committed: dict[str, float]) -> int:
    """Compare with the committed figures, say what is worse, and return the exit code."""
    compared, worse = 0, []
    for module in modules:
        rows = measured(module, short)
        compared += sum(row.name in committed and row.unit == "x" for row in rows)
        found = check(rows, committed)
        for _ in range(ATTEMPTS - 1):
            if found:
                again = check(measured(module, short), committed)
                found = {name: again[name] for name in found if name in again}
        worse += found.values()
    print("\n".join(worse) if worse else f"{compared} ratios, none worse than the committed one by more than 25 %.")
    # Nothing compared is nothing checked.
    return int(bool(worse) or not compared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="small sizes, minutes in all")
    parser.add_argument("--check", action="store_true", help="compare with the committed numbers, write nothing")
    parser.add_argument("--only", default=",".join(MODULES), help="benchmarks to run, separated by commas")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    on_gpu = chosen == ["gpu"]
    size = "short" if arguments.short else "gpu" if on_gpu else "full"
    stored = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}
    before = {name: row["value"] for name, row in stored.get(size, {}).items()}
    if arguments.check:
        sys.exit(checked(chosen, arguments.short, before))
    order = (*MODULES, "gpu")
    for module in chosen:
        kept = {k: v for k, v in stored.get(size, {}).items() if k.split(".")[0] != module}
        found = kept | {row.name: asdict(row) for row in measured(module, arguments.short)}
        ordered = sorted(found, key=lambda name: order.index(name.split(".")[0]))
        stored[size] = {name: found[name] for name in ordered}
        # An error in a later module loses nothing.
        COMMITTED.write_text(json.dumps(stored, indent=1) + "\n")
    if not arguments.short:
        figures = {name: Row(**row) for name, row in stored[size].items()}
        taken = f"Taken on {datetime.date.today()}: {gpu() if on_gpu else machine()}."
        floors = f"Floors, and what the rest is spent on:\n\n{notes(list(figures.values()))}"
        if on_gpu:
            rewrite(PAGE, f"{taken}\n\n{table(list(figures.values()))}\n\n{floors}", GPU_START, GPU_END)
            print(f"Wrote {PAGE} and {COMMITTED}.")
            return
        rewrite(PAGE, f"{taken}\n\n{table(list(figures.values()))}\n\n{floors}")
        rewrite(README, f"{taken}\n\n{table([figures[name] for name in QUOTED])}")
        print(f"Wrote {PAGE}, {README} and {COMMITTED}.")


if __name__ == "__main__":
    main()

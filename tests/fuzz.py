"""Attacks on all that lsmooth reads (traces, checkpoints, options), for a given time.

    python tests/fuzz.py --seconds 3600       every kind in turn (`make fuzz SECONDS=3600`)
    python tests/fuzz.py --kind pages --seed 17 --count 1       one case again

Kinds: `edits` of a trace by structure (h5py), its `bytes`, its `pages` (older copies of themselves, as a loss of power
leaves them), `checkpoints` (bits, cuts, entries), `options` of commands. Each case runs in a process of its own, with a
limit on memory and time, so that a hang or a crash is a failure. A case is its kind and its number, nothing else.
"""

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import hostile
import stale_pages
from damaged import damaged, facts, judge
from forked import forked
from hostile_values import HOSTILE
from rows import header, rows

from lsmooth.trace.writer import TraceWriter

GOOD = ("read", "refused")
CHECKPOINT_STEPS = 3


class Traces:
    """Sound traces to start from, made once."""

    def __init__(self, folder):
        self.folder = folder
        hostile.secrets(folder)
        self.sound = {}
        for version, end in (("1.1", "cut off"), (None, "complete")):
            made = header(format_version="1.1") if version else header(norms=("linf",), densities=True)
            path = folder / f"sound-{version}.h5"
            writer = TraceWriter(path, made)
            writer.append(rows(made, 0, 70))
            writer.close() if end == "complete" else writer.abandon()
            self.sound[end] = path


class Edits(Traces):
    """Edits by structure, one to three at once."""

    def case(self, generator, seed):
        chosen = generator.choices(hostile.EDITS, k=generator.choice([1, 1, 2, 3]))
        path = self.folder / "edited.h5"
        hostile.prepare(self.sound[generator.choice(sorted(self.sound))], path, self.folder, chosen, seed)
        return hostile.tried(path)


class Bytes(Traces):
    """Cuts, bits, bytes, zeros and swaps: numbers that are read are the sound ones."""

    def __init__(self, folder):
        super().__init__(folder)
        self.good = {end: facts(path) for end, path in self.sound.items()}

    def case(self, generator, seed):
        end = generator.choice(sorted(self.sound))
        path = self.folder / "damaged.h5"
        path.write_bytes(damaged(self.sound[end].read_bytes(), seed)[0])

        def work():
            wrong, read = judge(path, self.good[end], 70)
            return wrong or GOOD[not read]

        return forked(hostile.quietly(work), hostile.SECONDS)


class Pages:
    """Pages of 4 KiB of earlier moments: numbers that are read are the last ones."""

    BLOCKS = (1, 31, 5, 64, 40, 3, 32, 33)

    def __init__(self, folder):
        self.path = folder / "stale.h5"
        self.histories = []
        for densities, close in itertools.product((True, False), repeat=2):
            made = header(parameters=[f"p{i}" for i in range(6 if densities else 70)], densities=densities)
            moments = stale_pages.history(self.path, made, self.BLOCKS, close=close)
            self.histories.append((made, moments, rows(made, 0, sum(self.BLOCKS))))

    def case(self, generator, seed):
        made, moments, truth = generator.choice(self.histories)
        self.path.write_bytes(stale_pages.with_stale_pages(moments, generator, stale_pages.some_pages(seed)))

        def work():
            wrong, read = stale_pages.wrong_numbers(self.path, made, truth, sum(self.BLOCKS))
            return ", ".join(wrong) or GOOD[not read]

        return forked(hostile.quietly(work), hostile.SECONDS)


class Checkpoints:
    """Bits, cuts and pages of a checkpoint, and edits of its entries with a checksum that fits: none is resumed."""

    def __init__(self, folder):
        import edited_checkpoint
        import torch

        from lsmooth.tasks.checkpoint import checkpoint_path
        from lsmooth.tasks.plan import make_plan
        from lsmooth.tasks.session import Session

        # OpenMP's threads do not survive a fork.
        torch.set_num_threads(1)
        self.module = edited_checkpoint
        words = random.Random(0).choices(["the", "market", "fell", "by", "some", "points"], k=600)
        for split in ("train", "valid", "test"):
            (folder / f"ptb.{split}.txt").write_text("\n".join(" ".join(words[i : i + 6]) for i in range(0, 600, 6)))
        changes = {"embedding": 6, "hidden": 6, "layers": 2, "bptt": 5, "batch_size": 4, "report_every": 2, "steps": 30}
        plan, data = make_plan("awd-lstm", data=str(folder), changes=changes)
        self.trace = folder / "trained.h5"
        with Session(plan, self.trace, {"every": 2, "coordinates": 1, "densities": True}, data=data) as session:
            for _ in itertools.islice(session.run.steps(session.recorder), CHECKPOINT_STEPS):
                pass
            session.save()
        self.path = checkpoint_path(self.trace)
        self.sound, self.rows = self.path.read_bytes(), self.trace.read_bytes()
        self.content = torch.load(self.path, weights_only=True)

    def case(self, generator, seed):
        self.trace.write_bytes(self.rows)
        data = bytearray(self.sound)
        kind = ("bit", "cut", "page", "entry", "entry")[seed % 5]
        if kind == "bit":
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        elif kind == "cut":
            del data[generator.randrange(len(data)) :]
        elif kind == "page":
            start = 512 * generator.randrange(len(data) // 512)
            data[start : start + 512] = generator.randbytes(512)
        if kind == "entry":
            ((place, what, wrong),) = self.module.edits(self.content, 1, generator)
            self.module.write(self.path, self.module.edited(self.content, place, what, wrong))
        else:
            self.path.write_bytes(data)

        def work():
            from lsmooth.errors import LsmoothError
            from lsmooth.tasks.session import Session

            try:
                Session.resume(self.trace).close()
            except LsmoothError as error:
                return "refused" if "\n" not in str(error) and str(error).endswith(".") else f"said: {error}"
            return f"resumed: {place, what, wrong}" if kind == "entry" else f"resumed after {kind}"

        return forked(hostile.quietly(work), 4 * hostile.SECONDS)


class Options(Traces):
    """Values that most programs forget, for one to three options of a command that reads a trace."""

    def __init__(self, folder):
        super().__init__(folder)
        import importlib

        names = ("advise", "estimate", "export", "info", "plot", "report", "tail")
        self.commands = {name: importlib.import_module(f"lsmooth.cli.{name}").command for name in names}

    def case(self, generator, seed):
        import click

        name, command = generator.choice(sorted(self.commands.items()))
        options = [item for item in command.params if isinstance(item, click.Option) and not item.is_flag]
        chosen = generator.sample(options, min(len(options), generator.choice([1, 1, 2, 3])))
        words = [name, str(self.sound[generator.choice(sorted(self.sound))])]
        kept = {"tail": ["--no-follow"], "export": ["--force"], "report": ["--force"], "plot": ["--force"]}.get(
            name, []
        )
        for option in chosen:
            value = generator.choice(HOSTILE)
            if isinstance(option.type, click.types.Choice) and generator.random() < 0.5:
                value = generator.choice([str(choice) for choice in option.type.choices])
            if "output" in option.name:
                value = str(
                    self.folder / generator.choice(["out.csv", "out.html", "out.json", "out.png", "nowhere/out.csv"])
                )
            words.append(f"{option.opts[0]}={value}")

        def work():
            os.chdir(self.folder)
            return self.ended(words + kept)

        return forked(hostile.quietly(work), 4 * hostile.SECONDS)

    @staticmethod
    def ended(words):
        """Run a command; return "read", "refused", or what is wrong with how it ended, warnings included."""
        import warnings

        from click.testing import CliRunner

        from lsmooth.cli import main

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            done = CliRunner().invoke(main, words)
        if not isinstance(done.exception, SystemExit | None):
            return f"{words}: {done.exception!r}"
        if done.exit_code and not ("Error: " in done.stderr and done.exit_code in (1, 2)):
            return f"{words}: exit code {done.exit_code}, {done.stderr!r}"
        return GOOD[bool(done.exit_code)]


KINDS = {"edits": Edits, "bytes": Bytes, "pages": Pages, "checkpoints": Checkpoints, "options": Options}


def tried(attack, kind, seed):
    """Return "read", "refused", or what went wrong in one case."""
    return attack.case(random.Random(f"{kind} {seed}"), seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on")
    parser.add_argument("--count", type=int, help="how many cases, in place of seconds")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", choices=KINDS, action="append", help="one kind of case (default: all in turn)")
    arguments = parser.parse_args()
    kinds = arguments.kind or list(KINDS)
    counts = {kind: dict.fromkeys((*GOOD, "wrong"), 0) for kind in kinds}
    with tempfile.TemporaryDirectory() as name:
        folders = {kind: Path(name) / kind for kind in kinds}
        for folder in folders.values():
            folder.mkdir()
        attacks = {kind: KINDS[kind](folders[kind]) for kind in kinds}
        end = time.monotonic() + arguments.seconds
        for seed in itertools.count(arguments.seed):
            if time.monotonic() > end if arguments.count is None else seed >= arguments.seed + arguments.count:
                break
            for kind in kinds:
                answer = tried(attacks[kind], kind, seed)
                if answer not in GOOD:
                    print(f"{kind} {seed}: {answer}", flush=True)
                counts[kind][answer if answer in GOOD else "wrong"] += 1
    for kind, found in counts.items():
        print(f"{kind}: {', '.join(f'{count} {answer}' for answer, count in found.items())}")
    return int(any(found["wrong"] for found in counts.values()))


if __name__ == "__main__":
    sys.exit(main())

"""A few cases of each kind of `make fuzz`, the same each time; and what it has found, kept."""

import os
import random
import signal
import time

import fuzz
import pytest

# Cases that went wrong once, by kind and number; none of them may again.
FOUND = {}


@pytest.fixture(scope="module", params=fuzz.KINDS)
def attack(request, tmp_path_factory):
    return request.param, fuzz.KINDS[request.param](tmp_path_factory.mktemp(request.param))


def test_the_first_cases_are_read_right_or_refused(attack):
    kind, made = attack
    for seed in [*range(6), *FOUND.get(kind, ())]:
        assert fuzz.tried(made, kind, seed) in fuzz.GOOD, seed


def test_a_case_is_its_kind_and_number(attack):
    kind, made = attack
    drawn = [random.Random(f"{kind} 7").random() for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert fuzz.tried(made, kind, 7) == fuzz.tried(made, kind, 7)


def test_what_goes_wrong_is_seen(tmp_path, monkeypatch, capsys):
    class Crashes:
        def __init__(self, folder):
            pass

        def case(self, generator, seed):
            return fuzz.forked(fuzz.hostile.quietly(self.work), 2)

    class Hangs(Crashes):
        def work(self):
            while True:
                pass

    class Waits(Crashes):
        def case(self, generator, seed):
            return fuzz.forked(self.work, 0.2)

        def work(self):
            time.sleep(60)

    class Fills(Crashes):
        def work(self):
            return str(len(bytearray(fuzz.hostile.MEMORY)))

    class Killed(Crashes):
        def work(self):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(fuzz, "KINDS", {"hangs": Hangs, "waits": Waits, "fills": Fills, "killed": Killed})
    monkeypatch.setattr("sys.argv", ["fuzz", "--count", "1"])
    assert fuzz.main() == 1
    told = capsys.readouterr().out
    assert "hangs 0: ended by SIGPROF" in told
    assert "waits 0: ended by SIGALRM" in told
    assert "MemoryError" in told
    assert "killed 0: ended by SIGKILL" in told
    assert told.count("0 read, 0 refused, 1 wrong") == 4

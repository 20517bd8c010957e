"""Work done in a process of its own, which may crash, hang or give up its rights."""

import contextlib
import os
import signal
import traceback


def forked(work, seconds=60):
    """Run `work` in a process of its own; return what it returned, or how it ended.

    It has so many seconds of processor time, and ten times as many by the clock: a machine that has other work to do is
    no hang.
    """
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        for number, timer, limit in (
            (signal.SIGPROF, signal.ITIMER_PROF, seconds),
            (signal.SIGALRM, signal.ITIMER_REAL, 10 * seconds),
        ):
            signal.signal(number, signal.SIG_DFL)
            signal.setitimer(timer, limit)
        try:
            answer = work()
        except BaseException:
            answer = traceback.format_exc()
        os.write(into, answer.encode()[-60_000:])
        os._exit(0)
    os.close(into)
    with open(out, "rb") as pipe:
        answer = pipe.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return answer if code == 0 else f"ended by {signal.Signals(-code).name}"


def without_rights(folder):
    """Drop the rights of root, which may read and write anything; leave the process the right to look into `folder`."""
    if os.geteuid() == 0:
        for above in (folder, *folder.parents):
            above.chmod(above.stat().st_mode | 0o555)
        os.setuid(65534)


@contextlib.contextmanager
def read_only(folder, mode=0o555):
    """Run a block in which this process may not write into a folder, or, with mode 0, not even look into it."""
    before = folder.stat().st_mode
    folder.chmod(mode)
    root = os.geteuid() == 0
    if root:
        for above in folder.parents:
            above.chmod(above.stat().st_mode | 0o555)
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(before)

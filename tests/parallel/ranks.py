"""Runs of `lsmooth` on several ranks without torchrun: a parent that has imported what each rank needs, and forks them.

A line holds a JSON object with the arguments of `start`; the answer is the ranks' exit codes. What the ranks print is
in the files `out` and `err`. Starting torchrun and importing PyTorch in every rank takes longer than the runs that
tests make.
"""

import json
import os
import socket
import sys
import traceback

import torch

# What an optimizer's first step imports.
import torch._dynamo

from lsmooth.cli import main


def rank_of(rank, size, port, arguments, folder, out, err):
    """Be one rank; return its exit code."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), descriptor)
    os.chdir(folder)
    try:
        main(arguments)
    except SystemExit as ended:
        return ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 1


def start(size, **others):
    """Run as many ranks; return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        children.append(os.fork())
        if children[-1] == 0:
            os._exit(rank_of(rank, size, port, **others))
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(start(**json.loads(line))), flush=True)

"""Checkpoints with a structure that no run writes, and with valid checksums."""

import copy
import hashlib
import io

import torch


def write(path, content, *, checksum=True):
    """Write a checkpoint as its format has it: what torch.save writes, a mark, and the SHA-256 of the former."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    path.write_bytes(payload + b"\nlsmooth-sha256:" + hashlib.sha256(payload).digest() if checksum else payload)


def _places(value, path=()):
    """Yield the path of every entry in nested dictionaries and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in entries:
        yield (*path, key)
        yield from _places(item, (*path, key))


def replaced(content, path, change):
    """Return a copy of nested containers in which `change(container, key)` was called on the one at a path."""
    content = copy.deepcopy(content)
    holder = content
    for key in path[:-1]:
        if isinstance(holder[key], tuple):
            holder[key] = list(holder[key])
        holder = holder[key]
    change(holder, path[-1])
    return content


def _removed(holder, key):
    del holder[key]


def putting(value):
    def put(holder, key):
        holder[key] = value

    return put


WRONG = (
    *("text", None, True, -7, 2**70, float("nan"), [], {}, {"a": 1}, [[1]]),
    *(torch.ones(3), torch.ones(2, 2, dtype=torch.int8), torch.ones(4, 4).to_sparse(), torch.ones(2, device="meta")),
)
# These are never read: hyperparameters come from the plan.
_UNREAD = ("run", "optimizer", "param_groups")


# Older lsmooth did not write them, or they have defaults.
_MAY_BE_MISSING = {
    *(("plan", name) for name in ("seed", "device", "amp", "compile", "hold_out")),
    *(("ranks",), ("recording", "densities"), ("recorder", "densities"), ("recorder", "seconds")),
    *(("run", "problem"), ("run", "problem", "averaging")),
}
_MAY_BE_NONE = {("plan", "settings", name) for name in ("steps", "report_every", "max_norm")}


def _could_be_right(place, value, kind, wrong):
    """Whether an edit leaves a checkpoint that a run could have written."""
    if kind == "remove":
        # Each validation loss stands for itself.
        in_losses = place[:4] == ("run", "problem", "averaging", "losses") and len(place) == 5
        return place in _MAY_BE_MISSING or (place[0] == "plan" and len(place) == 3) or in_losses
    if isinstance(value, torch.Tensor):
        return False
    return (
        type(value) is type(wrong)
        or (wrong.__class__ is list and not wrong and isinstance(value, tuple))
        or (wrong.__class__ is int and isinstance(value, float) and abs(wrong) < 2**63)
        or (wrong is None and place in _MAY_BE_NONE)
    )


def edits(content, count, rng):
    """Draw edits of the entries of a checkpoint: a place, what is done there, and with which value."""
    places = [place for place in _places(content) if place[:3] != _UNREAD]
    # A checkpoint may have been written before the last report was due.
    last_report = ("run", "reports", len(content["run"]["reports"]) - 1)
    while count:
        place, kind, wrong = rng.choice(places), rng.choice(["remove", "add", "put", "put", "put"]), rng.choice(WRONG)
        value = content
        for key in place:
            value = value[key]
        if kind == "remove" and place == last_report:
            continue
        if not _could_be_right(place, value, kind, wrong) and (kind != "add" or isinstance(value, dict)):
            count -= 1
            yield place, kind, wrong


def edited(content, place, kind, wrong):
    if kind == "add":
        return replaced(content, (*place, "one too many"), putting(wrong))
    return replaced(content, place, _removed if kind == "remove" else putting(wrong))

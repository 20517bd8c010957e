"""What an index of chunks claims is read without HDF5, which would walk through all of it."""

import h5py
import pytest
from forked import forked
from rows import header, rows

from lsmooth.errors import TraceError
from lsmooth.trace.chunk_index import claimed_chunks
from lsmooth.trace.layout import CHUNK_STEPS, FIELDS
from lsmooth.trace.reader import Trace
from lsmooth.trace.superblock import lookup3
from lsmooth.trace.writer import TraceWriter


@pytest.mark.parametrize("blocks", [0, 1, 2, 9, 200])
@pytest.mark.parametrize("end", ["growing", "closed"])
def test_a_sound_index_claims_what_hdf5_finds(tmp_path, blocks, end):
    made = header(parameters=[f"p{i}" for i in range(70 if blocks < 10 else 3)], coordinates=3)
    path = tmp_path / "run.h5"
    writer = TraceWriter(path, made)
    block = rows(made, 0, CHUNK_STEPS)
    for _ in range(blocks):
        writer.append(block)
    if end == "closed":
        writer.close(0)
    with h5py.File(path) as file, open(path, "rb") as raw:
        for field in FIELDS:
            if field.name in file:
                item = file[field.name].id
                claimed = claimed_chunks(raw.fileno(), h5py.h5o.get_info(item).addr)
                assert claimed == item.get_num_chunks(), field.name
    writer.close(0)


@pytest.mark.parametrize("claim", [10**6, 10**9, 10**18])
def test_an_index_that_claims_too_much_is_refused_at_once(tmp_path, claim):
    """HDF5 would go through a thousand million entries for minutes, with all checksums right."""
    made, path = header(), tmp_path / "run.h5"
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, 200))
    writer.close()
    data = path.read_bytes()
    places = [at for at in range(len(data)) if data.startswith(b"EAHD", at)]
    assert len(places) > 20
    for place in (places[0], places[-1]):
        changed = bytearray(data)
        changed[place + 44 : place + 52] = claim.to_bytes(8, "little")
        changed[place + 68 : place + 72] = lookup3(bytes(changed[place : place + 68])).to_bytes(4, "little")
        path.write_bytes(changed)

        def work():
            try:
                return f"{len(Trace(path))} rows"
            except TraceError as error:
                return str(error)

        assert "it claims more chunks than it could hold" in forked(work, seconds=20)


def test_other_indexes_and_other_bytes_are_refused(tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.create_dataset("fixed", shape=(100,), chunks=(10,))
        file.create_dataset("tree", shape=(10, 10), chunks=(10, 10), maxshape=(None, None))
        file.create_dataset("plain", shape=(100,))
        places = {name: h5py.h5o.get_info(item.id).addr for name, item in file.items()}
    with open(path, "rb") as raw:
        for name, said in (("fixed", "of another kind"), ("tree", "of another kind"), ("plain", "not that of a trace")):
            with pytest.raises(ValueError, match=said):
                claimed_chunks(raw.fileno(), places[name])
        for address in (0, 10**6, 2**60):
            with pytest.raises(ValueError, match="not that of a trace"):
                claimed_chunks(raw.fileno(), address)

"""Followed coordinates: chosen by seed and place alone, and read where they lie."""

import numpy as np
import pytest
import torch

from lsmooth.measure.coordinates import CoordinateReader, choose_coordinates
from lsmooth.parallel.shards import held

pytestmark = pytest.mark.usefixtures("device")

NAMES = ("a", "b", "c", "d")
SHAPES = ((5, 7), (3,), (), (2, 3, 4))


def test_so_many_of_each_tensor_are_chosen_and_all_of_a_smaller_one():
    chosen = choose_coordinates(NAMES, SHAPES, 4, seed=0)
    assert np.bincount(chosen.owners).tolist() == [4, 3, 1, 4]
    for owner, index, name in zip(chosen.owners, chosen.indices, chosen.names, strict=True):
        place = np.unravel_index(index, SHAPES[owner])
        assert name == f"{NAMES[owner]}[{', '.join(map(str, place))}]"
    for owner in range(4):
        mine = chosen.indices[chosen.owners == owner]
        assert (np.diff(mine) > 0).all()
    assert len(choose_coordinates(NAMES, SHAPES, 0, seed=0)) == 0


def test_the_choice_depends_on_seed_place_and_size_alone():
    first = choose_coordinates(NAMES, SHAPES, 2, seed=3)
    np.random.seed(1)
    torch.manual_seed(1)
    again = choose_coordinates(("w", "x", "y", "z"), ((35,), (3,), (1,), (24,)), 2, seed=3)
    np.testing.assert_array_equal(first.indices, again.indices)
    other = choose_coordinates(NAMES, SHAPES, 2, seed=4)
    assert first.indices.tolist() != other.indices.tolist()
    assert torch.initial_seed() == 1


def test_every_coordinate_is_as_likely():
    chosen = np.concatenate([choose_coordinates(("a",), ((10,),), 3, seed=seed).indices for seed in range(2_000)])
    # 600 of each, with a standard deviation of some 20.
    assert abs(np.bincount(chosen, minlength=10) - 600).max() < 100


@pytest.mark.parametrize("arriving", [[0, 1, 2, 3], [2, 0], [3], [1, 3, 2]], ids=str)
def test_coordinates_are_read_from_tensors_in_any_order_and_layout(arriving, device):
    torch.manual_seed(0)
    tensors = [torch.randn(shape) for shape in SHAPES]
    # As channels-last weights lie.
    tensors[3] = torch.randn(4, 3, 2).permute(2, 1, 0)
    chosen = choose_coordinates(NAMES, SHAPES, 4, seed=0)
    reader = CoordinateReader(chosen, tensors, torch.device(device), held)
    for _ in range(2):
        into = torch.full((len(chosen),), 7.0, dtype=torch.float64)
        reader.read(arriving, [tensors[i] for i in arriving], into)
        for place, (owner, index) in enumerate(zip(chosen.owners, chosen.indices, strict=True)):
            expected = float(tensors[owner].reshape(-1)[index]) if owner in arriving else 7.0
            assert float(into[place]) == expected


def test_of_a_sharded_tensor_only_what_is_here_is_read():
    whole = torch.arange(12.0)
    chosen = choose_coordinates(("a",), ((12,),), 5, seed=0)

    def second_half(tensor, indices):
        here = np.flatnonzero(indices >= 6)
        return here, indices[here] - 6

    into = torch.zeros(5)
    CoordinateReader(chosen, [whole], whole.device, second_half).read([0], [whole[6:]], into)
    assert into.tolist() == [float(i) if i >= 6 else 0.0 for i in chosen.indices]

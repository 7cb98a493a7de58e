"""What all worlds share."""

import numpy as np
import pytest

from dsr_toolkit.worlds import make_world, world_module
from dsr_toolkit.worlds.world import World


class Numbers(World):
    def sample(self, index):
        return self.generator(index).random(), self.generator(index, "wording").random()


def test_sample_depends_on_seed_index_and_purpose_alone():
    numbers = Numbers(5)
    fifth = numbers[5]
    [numbers[i] for i in range(4)]
    assert numbers[5] == fifth == Numbers(5)[5]
    others = [numbers[4], Numbers(4)[5]]
    assert len(np.unique([*fifth, *others[0], *others[1]])) == 6


def test_seed_and_index_are_whole_numbers():
    for wrong in (-1, 1.5, "3", None):
        with pytest.raises(ValueError, match="`seed` must be an integer of at least 0"):
            Numbers(wrong)
        with pytest.raises(ValueError, match="`index` must be an integer of at least 0"):
            Numbers(0)[wrong]


def test_unknown_world_is_named():
    with pytest.raises(ValueError, match="one of space, surround, parts; got 'moon'"):
        make_world("moon", 0)
    with pytest.raises(ValueError, match="got 'moon'"):
        world_module("moon")

"""Agreement of two models is of what is written, not of what pads it."""

import pytest
import torch

from benchmarks.quant_tiny import agreement

END, PAD = 9, 0


@pytest.mark.parametrize(
    "found, share",
    [
        ([[1, 2, 3, END], [4, END, PAD, PAD]], 1.0),
        ([[1, 2, 3, END], [5, END, PAD, PAD]], 5 / 6),
        ([[1, END], [4, END]], 3 / 6),  # what was not written is not alike
        ([[1, 2, 3, END, PAD], [4, 5, 6, 7, END]], 5 / 6),
    ],
)
def test_agreement_is_of_written_tokens(found, share):
    expected = torch.tensor([[1, 2, 3, END], [4, END, PAD, PAD]])
    assert agreement(torch.tensor(found), expected, [END]) == pytest.approx(share)

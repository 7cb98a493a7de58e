"""How clear an answer must be for its question to be asked."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Margins:
    """
    An answer counts where a change is larger than the first number, and "the same" where it is smaller than the second.

    Args:
        distance: ratio of the larger to the smaller distance. speed: of speeds.
        least_speed: metres a second, of what is called moving. least_way: metres, of a direction.
        axis: directions lie within this angle of left, right, towards, away.
        towards: least cosine between a way and the way to a place.
        bearing: shift in the camera's view. gap_shift: change of the angle between two things in it.
        turn: over the clip. facing: change of the angle between a front and where it points to.
        predicted: ratio of the distances at the end and a moment later.

    Angles in radians.
    """

    distance: tuple[float, float] = (1.25, 1.06)
    speed: tuple[float, float] = (1.8, 1.12)
    least_speed: float = 0.25
    least_way: float = 0.5
    axis: float = np.radians(30)
    towards: float = 0.6
    bearing: float = np.radians(9)
    gap_shift: float = np.radians(7)
    turn: tuple[float, float] = (np.radians(40), np.radians(5))
    facing: float = np.radians(30)
    predicted: float = 1.12


CLEAR = Margins(
    distance=(1.4, 1.06),
    speed=(2.5, 1.12),
    least_way=0.7,
    axis=np.radians(25),
    towards=0.75,
    bearing=np.radians(14),
    gap_shift=np.radians(12),
    turn=(np.radians(60), np.radians(5)),
    facing=np.radians(45),
    predicted=1.15,
)

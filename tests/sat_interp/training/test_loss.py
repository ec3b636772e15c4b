"""The loss' weights; its values and gradients are tested against the plain model's."""

from __future__ import annotations

import pytest

from sat_interp._util.errors import UserError
from sat_interp.training.loss import LossWeights


@pytest.mark.parametrize("weights", [(-1, 1, 0), (0, 0, 0), (float("nan"), 1, 0)])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(UserError, match="loss weights"):
        LossWeights(*weights)

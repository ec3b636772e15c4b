from __future__ import annotations

import pytest

from evaluations.core.activations import gather
from evaluations.core.excerpts import GatherConfig, Gathered
from evaluations.core.text import Text
from tests.evaluations.suite.neurons.planted import model_for, planted_text, planted_units


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return planted_text(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def gathered(planted: Text, tmp_path_factory: pytest.TempPathFactory) -> Gathered:
    """What the planted units do."""
    cache = tmp_path_factory.mktemp("gathered")
    config = GatherConfig(width=24)
    return gather(model_for(planted), planted, planted_units(planted), config, "planted", cache)

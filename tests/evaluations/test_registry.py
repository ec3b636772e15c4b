"""The list of evaluations, and what each of them offers."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluations.core.records import collect
from evaluations.registry import SPECS, find_spec
from sat_interp._util.errors import UserError

BUILTIN = Path(__file__).parents[2] / "results" / "builtin"


def test_an_evaluation_is_found_by_its_name():
    for spec in SPECS:
        assert find_spec(spec.name) is spec
    with pytest.raises(UserError, match="unknown evaluation 'neuron': did you mean 'neurons'"):
        find_spec("neuron")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_its_tables_are_made_of_the_records_that_a_report_reads(spec):
    """Those are without what only figures show."""
    records = [one for one in collect(BUILTIN).records if one.evaluation == spec.name]
    assert records
    tables = spec.report.tables(records)
    assert tables
    assert all(table.rows for table in tables)

"""Names of the files of a command: other for what was asked otherwise."""

from __future__ import annotations

import dataclasses

from evaluations.tables import stem
from tests.evaluations.comparison.study_records import acdc, lm


def test_a_name_holds_task_method_models_and_a_hash():
    usual = acdc("a", 0, 3, config={"method": "acdc"}, data={"spec": "ioi"})
    eap = dataclasses.replace(usual, config={"method": "eap"}, config_hash="f" * 12)
    assert stem("acdc", [usual]).startswith("acdc-ioi-a-")
    assert stem("acdc", [eap]).startswith("acdc-ioi-eap-a-")
    file = dataclasses.replace(usual, data={"spec": "/some/where/prompts.json"})
    assert stem("acdc", [file]).startswith("acdc-prompts-a-")


def test_what_is_asked_otherwise_has_another_name_and_the_same_the_same():
    one, other = lm("a", 0, 1.0), lm("b", 0, 1.0)
    changed = dataclasses.replace(one, config_hash="0" * 12)
    names = {stem("lm", records) for records in ([one], [other], [one, other], [changed])}
    assert len(names) == 4
    assert stem("lm", [one, other])[:8] == "lm-a-b-" + stem("lm", [one, other])[7]
    again = dataclasses.replace(one, started="2027", seconds=9.0)
    assert stem("lm", [again]) == stem("lm", [one])


def test_many_models_are_counted_and_odd_names_are_file_names():
    many = [lm(f"a-long-name-{seed}", seed, 1.0) for seed in range(9)]
    assert stem("lm", many).startswith("lm-9-models-")
    assert "/" not in stem("lm", [lm("../a b", 0, 1.0)])

"""Everything a configuration may hold is serialised alike in every process."""

from __future__ import annotations

import enum
import functools
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluations.core.canonical import canonical
from evaluations.core.record import hash_of


class Kind(enum.Enum):
    ROTARY = "rotary"
    ALIBI = "alibi"


class Plain:
    def __init__(self, base: float) -> None:
        self.base = base


class Slotted:
    __slots__ = ()


@dataclass
class Held:
    value: object


DIFFERENT = [
    None,
    True,
    False,
    0,
    1,
    2,
    2.5,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "None",
    "nan",
    "1",
    [],
    [1],
    [[1]],
    [1, 2],
    [2, 1],
    {},
    {"a": 1},
    {"a": None},
    {"a": {"b": 1}},
    {1, 2, 3},
    b"a",
    Kind.ROTARY,
    Kind.ALIBI,
    torch.float32,
    torch.float64,
    torch.device("cpu"),
    Path("a/b"),
    np.arange(3),
    np.arange(3.0, dtype=np.float32),
    np.arange(4).reshape(2, 2),
    torch.arange(5),
    torch.ones(2, 2),
    torch.ones(4),
    Plain(1.0),
    Plain(2.0),
    Slotted(),
    Plain,
    Slotted,
    torch.nn.functional.gelu,
    torch.nn.functional.relu,
    functools.partial(round, ndigits=1),
    functools.partial(round, ndigits=2),
    1j,
    range(3),
    Held(1),
    Held([2]),
    Held(None),
]


def test_what_differs_is_told_apart_and_is_plain_json() -> None:
    texts = [json.dumps(canonical(value), sort_keys=True, allow_nan=False) for value in DIFFERENT]
    assert len(set(texts)) == len(texts)
    assert not any("0x" in text for text in texts)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (8, 8.0),
        (np.float64(8.0), 8),
        (np.bool_(True), True),
        ((1, 2), [1, 2]),
        ({3, 1, 2}, {2, 3, 1}),
        (Plain(2.0), Plain(2)),
        (Held((1,)), {"value": [1]}),
        (torch.tensor([1.0]), torch.tensor([1.0], requires_grad=True)),
    ],
)
def test_what_means_the_same_is_the_same(one: object, two: object) -> None:
    assert canonical(one) == canonical(two)
    assert hash_of({"x": one}) == hash_of({"x": two})


def test_a_hash_is_the_same_in_another_process() -> None:
    program = (
        "from tests.evaluations.core.test_canonical import DIFFERENT\n"
        "from evaluations.core.record import hash_of\n"
        "print(hash_of([DIFFERENT, {'a', 'b', 'c', None, 2.5}]))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[3],
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": str(Path(__file__).parents[3])},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1

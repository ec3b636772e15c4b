"""Types that the fields of records are made of: numbers within bounds, names of files."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

LARGEST = 1e100
LAYERS = 1000
"""Upper limit of the number of layers, so that lists of layers stay small."""

Number = Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST, le=LARGEST)]
Whole = Annotated[int, Field(ge=-(2**64), le=2**64)]
Count = Annotated[int, Field(ge=0, le=2**63)]
Layer = Annotated[int, Field(ge=0, lt=LAYERS)]
Numbers = list[Number | None]
FileName = Annotated[str, Field(pattern=r"^[\w-][\w.-]*$", max_length=255)]

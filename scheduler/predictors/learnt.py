"""What a length predictor has learnt, as a value that travels from scheduler to scheduler."""

from __future__ import annotations

from typing import Any, Protocol

from msgspec import Struct

from accelgen.scheduler.predictors.estimate import LengthPredictor


class Regression(Struct, frozen=True):
    """A LengthRegressor without its class medians: requests seen; by how many tokens, lately, its errors were smaller
    than the class median's; the sums of its least squares; errors by bucket of predicted length."""

    observed: int
    lead: float
    gram: list[list[float]]
    moment: list[float]
    errors: dict[int, list[int]]


class Learnt(Struct, frozen=True):
    """Each kind of predictor takes of it what it can use: output lengths seen last by class, the newest last, serve
    all of them."""

    outputs: dict[str, list[int]] = {}  # msgspec copies it
    regression: Regression | None = None


class Learner(LengthPredictor, Protocol):
    """A predictor that learns, and says what."""

    name: str

    @property
    def params(self) -> dict[str, Any]:
        """What makes another one like it (`kinds.make_predictor`)."""

    def learnt(self) -> Learnt:
        """All that it has learnt."""

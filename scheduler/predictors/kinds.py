"""The predictors that learn, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from accelgen.scheduler.predictors.class_quantiles import ClassMedian, ClassQuantiles
from accelgen.scheduler.predictors.estimate import LengthPredictor
from accelgen.scheduler.predictors.learnt import Learner, Learnt
from accelgen.scheduler.predictors.regressor import LengthRegressor

PREDICTORS: dict[str, Callable[..., Learner]] = {
    ClassMedian.name: ClassMedian,
    ClassQuantiles.name: ClassQuantiles,
    LengthRegressor.name: LengthRegressor,
}


def make_predictor(
    name: str, params: Mapping[str, Any] | None = None, learnt: Learnt | None = None
) -> Learner:
    """The predictor `name` with its parameters, and with what one of any kind has learnt before. Raises ValueError."""
    if name not in PREDICTORS:
        raise ValueError(f"length predictor: {name!r}, must be one of {', '.join(PREDICTORS)}")
    try:
        return PREDICTORS[name](learnt, **(params or {}))
    except TypeError as error:
        raise ValueError(f"length predictor {name}: {error}") from error


def is_learner(predictor: LengthPredictor) -> TypeGuard[Learner]:
    """Whether what it has learnt can be kept. The simulator's have learnt nothing."""
    return isinstance(predictor, ClassQuantiles | LengthRegressor)

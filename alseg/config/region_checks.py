"""Checks of settings that ask for regions: what works on whole volumes only is refused."""

from __future__ import annotations

from alseg.active.plan import Plan
from alseg.active.pseudo_labels import SemiSupervised
from alseg.core.errors import ConfigError
from alseg.data.folds import CrossValidation
from alseg.data.splits import Splits
from alseg.oracles.base import Oracle
from alseg.strategies.regions import check_for_regions
from alseg.strategies.strategy import Strategy


def check_regions(
    plan: Plan,
    strategy: Strategy,
    semi_supervised: SemiSupervised | None,
    oracle: Oracle,
    splits: Splits,
    cross_validation: CrossValidation | None,
) -> None:
    """Check that all parts can work with regions, where units are some.

    Raises:
        ConfigError: naming the first that cannot.
    """
    if not plan.unit_shape.is_region or strategy.full_data:
        return
    check_for_regions(strategy)
    with_unit = f"with pool.unit={plan.unit_shape.unit}"
    if semi_supervised is not None:
        raise ConfigError(
            "semi_supervised takes the unlabelled part of a volume for unknown and a labelled "
            f"volume for known; {with_unit} use semi_supervised=none"
        )
    if oracle.annotates_unlabelled:
        raise ConfigError(
            f"the oracle {type(oracle).__name__} hands out whole volumes; {with_unit} use "
            "oracle=simulated"
        )
    validates = "validation=cross" if cross_validation is not None else "data.splits"
    if cross_validation is not None or not splits.validation:
        raise ConfigError(
            f"{validates} validates with annotated cases, which must be labelled as a whole; "
            f"{with_unit} use validation=held_out and a split with a validation part of its own, "
            "such as data/splits=fraction with a data.validation_share above 0"
        )

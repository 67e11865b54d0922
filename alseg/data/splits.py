"""Which cases train, validate and test."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alseg.core.errors import ConfigError, DataError, check_whole_number
from alseg.data.formats.dataset_json import read_json_object
from alseg.data.naming import matching_case, short


@dataclass(frozen=True)
class Splits:
    """Case ids for training (the active-learning pool), validation and test.

    Validation and test are the same in all rounds, seeds and strategies.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_by_fraction(
    case_ids: Iterable[str], *, validation: float, test: float, seed: int
) -> Splits:
    """Split cases at random into training, validation and test.

    Args:
        case_ids: all cases; their order does not matter.
        validation: the share of validation cases, in (0, 1).
        test: the share of test cases, in (0, 1).
        seed: the split's own seed. It is not the run's, so that all seeds share one test set.

    Raises:
        ConfigError: if a share is out of range or a part would be empty.
    """
    ids = sorted(case_ids)
    for name, share in (("validation", validation), ("test", test)):
        if type(share) is not float or not 0 < share < 1:
            raise ConfigError(f"data.splits.{name} is {share!r}; it must lie between 0 and 1")
    check_whole_number("data.splits.seed", seed, at_least=0)
    order = np.random.default_rng(seed).permutation(len(ids))
    n_validation, n_test = round(validation * len(ids)), round(test * len(ids))
    if min(n_validation, n_test, len(ids) - n_validation - n_test) < 1:
        raise ConfigError(
            f"data.splits leaves a part empty: {len(ids)} cases with validation={validation} and "
            f"test={test}"
        )
    shuffled = [ids[i] for i in order]
    return Splits(
        training=tuple(sorted(shuffled[n_validation + n_test :])),
        validation=tuple(sorted(shuffled[:n_validation])),
        test=tuple(sorted(shuffled[n_validation : n_validation + n_test])),
    )


def split_from_file(case_ids: Iterable[str], *, file: str | Path) -> Splits:
    """Read an explicit split: a JSON file with the lists ``training``, ``validation``, ``test``.

    An entry is a case id, or an object with an ``image`` path, as in the MONAI tutorial's file.

    Raises:
        DataError: if the file is missing or broken, names an unknown case, or names one twice.
    """
    if not isinstance(file, (str, Path)):
        raise ConfigError(f"data.splits.file is {file!r}; it must be the path of a JSON file")
    path = Path(file)
    content = read_json_object(path)
    known, seen = set(case_ids), set()
    parts: dict[str, tuple[str, ...]] = {}
    for part in ("training", "validation", "test"):
        entries = content.get(part)
        if not isinstance(entries, list) or not entries:
            raise DataError(f"{path}: '{part}' must be a list with at least one case")
        ids = []
        for entry in entries:
            name = entry.get("image") if isinstance(entry, dict) else entry
            if not isinstance(name, str):
                raise DataError(f"{path}: '{part}' holds {short(entry)}, which names no case")
            ids.append(matching_case(name, known))
        for case_id in ids:
            if case_id not in known:
                raise DataError(
                    f"{path}: '{part}' names {short(case_id)}, which the data set has not"
                )
            if case_id in seen:
                raise DataError(f"{path} names {case_id} twice")
            seen.add(case_id)
        parts[part] = tuple(ids)
    return Splits(**parts)

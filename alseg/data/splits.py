"""Which cases train, validate and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alseg.core.counts import counted
from alseg.core.errors import ConfigError, DataError, check_number, check_whole_number
from alseg.core.groups import grouped_by, members_by_group
from alseg.core.pool import random_start
from alseg.data.findings import Finding, warning
from alseg.data.formats.dataset_json import read_json_object
from alseg.data.naming import matching_case, short

SPLIT_FILE = "split.json"  # in the folder of a data set
PARTS = ("training", "validation", "test")


@dataclass(frozen=True)
class Parts:
    """The annotated cases of a round, by what they are for.

    Attributes:
        training: those that it trains on, in the order in which they were acquired; one that was
            acquired again comes again.
        validation: those that choose its best weights, each once.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """Case ids for training (the active-learning pool), validation and test.

    Validation and test are the same in all rounds, seeds and strategies. Without a validation part
    the annotated cases validate each other in folds.

    Attributes:
        training: the pool.
        validation: what chooses the weights of a round; may be empty.
        test: what judges them; may be empty.
        groups: which cases belong together, as ``grouped_by`` takes it.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    groups: str | None = field(default=None, kw_only=True)

    def group_of(self, case_id: str) -> str:
        """The name of a case's group: its id, where it is a group of its own."""
        return grouped_by(self.groups)(case_id)

    def parts(self, annotated: Sequence[str]) -> Parts:
        """What a round trains and validates with.

        Args:
            annotated: the annotated cases of the pool, in the order in which they were acquired.
        """
        return Parts(training=tuple(annotated), validation=self.validation)

    @property
    def fewest_annotated(self) -> int:
        """How many cases a first round needs; two where they validate each other."""
        return 1 if self.validation else 2

    def lacks(self, annotated: Sequence[str]) -> str:
        """What a round has no case to do with: ``train``, ``validate``, or nothing (empty)."""
        # cases of one group cannot validate each other
        n_groups = len(set(map(self.group_of, annotated)))
        return "" if n_groups >= self.fewest_annotated else "validate" if n_groups else "train"

    def with_all_parts(self, initial: Sequence[str], seed: int) -> tuple[str, ...]:
        """The initial pool, changed if need be so that the first round has all it needs.

        Where the cases are to validate each other and are of one group, the last one makes room for
        a random one of another group, if the pool has one.

        Args:
            initial: the cases that were chosen, at least ``fewest_annotated``.
            seed: of a draw of another case.
        """
        if self.lacks(initial) != "validate":
            return tuple(initial)
        others = [i for i in self.training if self.group_of(i) != self.group_of(initial[0])]
        n_new = min(1, len(others))
        return (*initial[: len(initial) - n_new], *random_start(others, n_new, seed))


@dataclass(frozen=True)
class GrowingSplits(Splits):
    """A split in which a share of what is annotated validates; nothing tests.

    All cases are in the pool. A hash of its id, or of the name of its group, says whether a case
    will validate, so that is known before anybody annotates it, and stays as it is whatever is
    annotated or added later. A validating case is never trained on. Nothing but its id decides: a
    choice by the label, such as one that balances classes, would have to read labels that nobody
    has drawn yet.

    Attributes:
        share: of the cases that validate, in (0, 1); of a few groups it is met roughly.
        seed: the split's own seed. It is not the run's, so that all seeds share it.
    """

    share: float
    seed: int

    def validates(self, case_id: str) -> bool:
        """Whether a case validates once it is annotated."""
        # repr keeps the two apart: (1, "2a") and (12, "a") must differ
        digest = hashlib.sha256(repr((self.seed, self.group_of(case_id))).encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64

    def parts(self, annotated: Sequence[str]) -> Parts:
        """What a round trains and validates with: the annotated cases, shared out by their hash."""
        return Parts(
            training=tuple(i for i in annotated if not self.validates(i)),
            validation=tuple(sorted({i for i in annotated if self.validates(i)})),
        )

    @property
    def fewest_annotated(self) -> int:
        """How many cases a first round needs: one to train and one to validate with."""
        return 2

    def lacks(self, annotated: Sequence[str]) -> str:
        """What a round has no case to do with: ``train``, ``validate``, or nothing (empty)."""
        parts = self.parts(annotated)
        return "train" if not parts.training else "" if parts.validation else "validate"

    def with_all_parts(self, initial: Sequence[str], seed: int) -> tuple[str, ...]:
        """The initial pool, of which the share validates, rounded, and at least one; one trains.

        Of the part that has too many, the last cases make room for random ones of the other part,
        if the pool has as many. Rejected: a larger initial pool, with which seeds would have
        learning curves at different numbers of labelled cases.
        """
        wanted = min(max(round(self.share * len(initial)), 1), len(initial) - 1)
        n_missing = wanted - sum(self.validates(i) for i in initial)
        to_validate = n_missing > 0  # what the newcomers are for
        others = [i for i in self.training if self.validates(i) == to_validate and i not in initial]
        n_new = min(abs(n_missing), len(others))
        surplus = [i for i in initial if self.validates(i) != to_validate]
        leaving = surplus[len(surplus) - n_new :]
        return (*(i for i in initial if i not in leaving), *random_start(others, n_new, seed))


def annotated_split(case_ids: Iterable[str], *, groups: str | None = None) -> Splits:
    """Let all that is annotated train; for ``validation=cross``, as no case only validates.

    Args:
        case_ids: all cases; their order does not matter.
        groups: which cases belong together, as ``grouped_by`` takes it.

    Raises:
        ConfigError: if ``groups`` is no regular expression.
    """
    grouped_by(groups)  # refuses what is no regular expression
    return Splits(tuple(sorted(case_ids)), (), (), groups=groups)


def growing_split(
    case_ids: Iterable[str], *, validation_share: float, seed: int, groups: str | None = None
) -> GrowingSplits:
    """Let a share of what is annotated validate, see ``GrowingSplits``.

    Args:
        case_ids: all cases; their order does not matter.
        validation_share: the share of validating cases, in (0, 1).
        seed: the split's own seed.
        groups: which cases belong together, as ``grouped_by`` takes it; a group stays in one part.

    Raises:
        ConfigError: if the share is out of range, ``groups`` is no regular expression, or the cases
            leave a part empty.
    """
    ids = tuple(sorted(case_ids))
    check_share("validation_share", validation_share)
    check_whole_number("data.splits.seed", seed, at_least=0)
    splits = GrowingSplits(ids, (), (), validation_share, seed, groups=groups)
    if missing := splits.lacks(ids):
        raise ConfigError(
            f"data/splits=growing leaves no case to {missing} with: of {_in_groups(ids, groups)} "
            "none falls there by its hash; add cases, or set another "
            f"data.splits.validation_share (it is {validation_share}) or data.splits.seed"
        )
    return splits


def check_share(name: str, share: object) -> None:
    """Check a share of the cases.

    Raises:
        ConfigError: if it does not lie between 0 and 1.
    """
    check_number(f"data.splits.{name}", share, above=0, below=1)


def split_by_fraction(
    case_ids: Iterable[str],
    *,
    validation: float,
    test: float,
    seed: int,
    groups: str | None = None,
) -> Splits:
    """Split cases at random into training, validation and test; a group stays in one part.

    In random order each group goes to the first of validation and test that it brings nearer to its
    number of cases, and to training if to neither. So shares are met to half of a group's size, and
    exactly where each case is a group of its own.

    Rejected: scikit-learn's GroupShuffleSplit, whose shares are of the groups, however many cases
    they have, and which would change the splits of cases that are groups of their own.

    Args:
        case_ids: all cases; their order does not matter.
        validation: the share of validation cases, in (0, 1); 0 for ``validation=cross``.
        test: the share of test cases, in (0, 1).
        seed: the split's own seed. It is not the run's, so that all seeds share one test set.
        groups: which cases belong together, as ``grouped_by`` takes it.

    Raises:
        ConfigError: if a share is out of range, ``groups`` is no regular expression, or a part
            would be empty.
    """
    ids = sorted(case_ids)
    if type(validation) not in (int, float) or validation != 0:
        check_share("validation", validation)
    check_share("test", test)
    check_whole_number("data.splits.seed", seed, at_least=0)
    members = members_by_group(ids, groups)
    names = sorted(members)
    wanted = {"validation": round(validation * len(ids)), "test": round(test * len(ids))}
    parts: dict[str, list[str]] = {name: [] for name in PARTS}
    for index in np.random.default_rng(seed).permutation(len(names)):
        group = members[names[index]]
        part = next(
            (name for name, n in wanted.items() if len(group) < 2 * (n - len(parts[name]))),
            "training",
        )
        parts[part] += group
    if not all(parts[name] for name in PARTS if name != "validation" or validation):
        hint = "" if groups is None else "; set other shares, into which whole groups fit"
        raise ConfigError(
            f"data.splits leaves a part empty: {_in_groups(ids, groups)} with "
            f"validation={validation} and test={test}{hint}"
        )
    return Splits(**{name: tuple(sorted(part)) for name, part in parts.items()}, groups=groups)


def _in_groups(case_ids: Sequence[str], groups: str | None) -> str:
    """How many cases there are, for a sentence, and in how many groups if some belong together."""
    cases = counted(len(case_ids), "case")
    if groups is None:
        return cases
    return f"{cases} in {counted(len(members_by_group(case_ids, groups)), 'group')} of data.groups"


def shared_groups(splits: Splits) -> list[Finding]:
    """The groups that have cases in several parts, as a split of somebody's own may."""
    places: dict[str, dict[str, str]] = {}  # by group: in which part is which case
    for part in PARTS:
        for case_id in getattr(splits, part):
            places.setdefault(splits.group_of(case_id), {}).setdefault(part, case_id)
    shared = [name for name, parts in places.items() if len(parts) > 1]
    if not shared:
        return []
    cases = ", ".join(f"{case_id} in {part}" for part, case_id in places[shared[0]].items())
    return [
        warning(
            "group in several parts",
            f"{counted(len(shared), 'group of data.groups has', 'groups of data.groups have')} "
            f"cases in several parts of the split; the first is {shared[0]} ({cases}). Networks "
            "are judged by what they have been trained on; put the cases of a group into one part",
        )
    ]


def own_split(
    case_ids: Iterable[str],
    *,
    root: str | Path | None,
    validation: float,
    test: float,
    seed: int,
    groups: str | None = None,
) -> Splits:
    """The split that the data set comes with, or else ``split_by_fraction``.

    Args:
        case_ids: all cases.
        root: the folder of the data set; its ``SPLIT_FILE`` is read as by ``split_from_file``;
            None for data that has none.
        validation: the share of validation cases, where there is no such file.
        test: the share of test cases, likewise.
        seed: the split's own seed, likewise.
        groups: which cases belong together, as ``grouped_by`` takes it.
    """
    if root is not None and (path := Path(root).expanduser() / SPLIT_FILE).is_file():
        return split_from_file(case_ids, file=path, groups=groups)
    return split_by_fraction(case_ids, validation=validation, test=test, seed=seed, groups=groups)


def split_from_file(
    case_ids: Iterable[str], *, file: str | Path, groups: str | None = None
) -> Splits:
    """Read an explicit split: a JSON file with the lists ``training``, ``validation``, ``test``.

    An entry is a case id, or an object with an ``image`` path, as in the MONAI tutorial's file.
    ``validation`` may be empty, for ``validation=cross``. Groups that are in several parts stay
    there: ``shared_groups`` tells them.

    Args:
        case_ids: all cases.
        file: the JSON file.
        groups: which cases belong together, as ``grouped_by`` takes it.

    Raises:
        DataError: if the file is missing or broken, names an unknown case, or names one twice.
        ConfigError: if ``groups`` is no regular expression.
    """
    grouped_by(groups)  # refuses what is no regular expression
    if not isinstance(file, (str, Path)):
        raise ConfigError(f"data.splits.file is {file!r}; it must be the path of a JSON file")
    path = Path(file)
    content = read_json_object(path)
    known, seen = set(case_ids), set()
    parts: dict[str, tuple[str, ...]] = {}
    for part in PARTS:
        entries = content.get(part)
        if not isinstance(entries, list) or not (entries or part == "validation"):
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
                    f"{path}: '{part}' names {short(case_id)}, which the data set does not have, "
                    "or not with the label that a simulation needs"
                )
            if case_id in seen:
                raise DataError(f"{path} names {case_id} twice")
            seen.add(case_id)
        parts[part] = tuple(ids)
    return Splits(**parts, groups=groups)

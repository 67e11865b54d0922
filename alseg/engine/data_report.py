"""Looks at each case of a data set as training would, and reports what it finds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from rich.text import Text

from alseg.config.checks import check_transforms
from alseg.config.composition import instantiate
from alseg.config.planned import filled, open_settings, plan_of
from alseg.core.counts import counted
from alseg.core.errors import DataError, check_part, check_text, check_whole_number
from alseg.data.cache import VolumeCache
from alseg.data.findings import Finding
from alseg.data.oddities import oddities
from alseg.data.splits import Splits, shared_groups
from alseg.data.survey import Facts, look_at, set_findings
from alseg.data.task import Task
from alseg.system.console import console, say, track
from alseg.system.files import write_atomically
from alseg.system.isolation import Died, map_in_processes, n_usable_cores
from alseg.system.text import printable


@dataclass(frozen=True)
class Report:
    """What a look at a data set has found.

    Attributes:
        data_set: of the data set as a whole.
        cases: of each case, sorted; none for a case that is fine.
    """

    data_set: list[Finding]
    cases: Mapping[str, list[Finding]]

    def levels(self) -> Counter[str]:
        """How many cases are ok, have warnings, have errors."""
        return Counter(level(findings) for findings in self.cases.values())

    def kinds(self) -> Counter[str]:
        """In how many cases each kind of finding occurs, such as ``warning: anisotropic``."""
        return Counter(f"{f.level}: {f.kind}" for found in self.cases.values() for f in found)


def validate(config: DictConfig) -> Report:
    """Look at each case as training would, and print what was found.

    Returns:
        The findings.

    Raises:
        AlsegError: if the data set cannot be read at all, or a case cannot be used.
    """
    check_text("cache_dir", config.cache_dir)
    workers = n_usable_cores() if config.workers == "auto" else config.workers
    check_whole_number("workers", workers, at_least=1)
    if config.json is not None:
        check_text("json", config.json)
    if open_settings(config):
        config = filled(config, plan_of(config, Path.cwd()), "the plan")
    task: Task = instantiate(config.data.task)
    check_part("data.task", task, Task)
    of_splits: list[Finding] = []
    if task.labelled:  # else there is nothing to split by now
        splits = instantiate(config.data.splits, case_ids=list(task.cases))
        check_part("data.splits", splits, Splits)
        of_splits = shared_groups(splits)
    preprocess = instantiate(config.data.preprocess)
    check_transforms("data.preprocess", preprocess)
    cache = VolumeCache(
        task,
        preprocess,
        fingerprint=OmegaConf.to_yaml(config.data.preprocess, resolve=True),
        folder=config.cache_dir,
    )
    report = survey(cache, workers, of_splits)
    if config.json is not None:
        write_atomically(Path(config.json), as_json(task, report))
    print_report(task, report)
    if n_bad := report.levels()["error"]:
        raise DataError(f"{n_bad} of the {len(report.cases)} cases of {task.root} cannot be used")
    return report


def survey(cache: VolumeCache, n_processes: int, of_splits: Sequence[Finding] = ()) -> Report:
    """Look at all cases in processes of their own, with a progress bar.

    Args:
        cache: the data set and its preprocessing.
        n_processes: how many.
        of_splits: what has been found in how the cases are split.
    """
    results = map_in_processes(partial(look_at, cache), cache.task.cases, n_processes)
    facts: dict[str, Facts] = {}
    errors: dict[str, list[Finding]] = {}
    for case_id, result in track(results, "checking", "case", len(cache.task.cases)):
        if isinstance(result, Facts):
            facts[case_id] = result
        elif isinstance(result, Died):
            errors[case_id] = [Finding("error", "crash", f"the process that read it {result.end}")]
        else:
            errors[case_id] = [result]
    facts = dict(sorted(facts.items()))
    cases = errors | oddities(facts, cache.task.classes, cache.task.channels)
    return Report([*set_findings(cache, facts), *of_splits], dict(sorted(cases.items())))


def level(findings: list[Finding]) -> str:
    """The worst of a case's findings: error, warning or ok."""
    levels = {finding.level for finding in findings}
    return next((name for name in ("error", "warning") if name in levels), "ok")


def as_json(task: Task, report: Report) -> str:
    """The report as JSON."""
    cases = [
        {
            "case": case_id,
            "status": level(findings),
            "findings": [vars(finding) for finding in findings],
        }
        for case_id, findings in report.cases.items()
    ]
    summary = report.levels()
    content = {
        "data": task.name,
        "root": str(task.root),
        "summary": {name: summary[name] for name in ("ok", "warning", "error")},
        "kinds": dict(report.kinds()),
        "data_set": [vars(finding) for finding in report.data_set],
        "cases": cases,
    }
    return json.dumps(content, indent=1)


def print_report(task: Task, report: Report) -> None:
    """Print a line for each case with findings, the summary, and what concerns the whole set."""
    table = Table("case", "status", "kind", "what", title=Text(printable(str(task.root))))
    for case_id, findings in report.cases.items():
        for finding in findings:
            table.add_row(case_id, finding.level, finding.kind, printable(finding.message))
    if table.row_count:
        console().print(table)
    for kind, count in report.kinds().most_common():
        say(f"{kind}: {counted(count, 'case')}")
    counts = report.levels()
    say(
        f"{len(report.cases)} cases of {task.name}: {counts['ok']} ok, {counts['warning']} with "
        f"warnings, {counts['error']} with errors"
    )
    for finding in report.data_set:
        say(f"{finding.level}: data set: {printable(finding.message)}")

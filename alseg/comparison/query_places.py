"""Where in the volumes runs of regions ask: on foreground, on boundaries or in the background."""

from __future__ import annotations

import pandas as pd

from alseg.comparison.runs import RunSet

PLACES = ("inner", "boundary", "background")


def query_places(run_set: RunSet) -> pd.DataFrame:
    """One row a run of regions and query, the initial pool among them; empty without such runs.

    Columns: ``strategy``, ``seed``, ``round`` (0: initial), ``n_regions``, ``voxels``, the shares
    of them that lie ``inner`` (inside a foreground class), on a ``boundary`` (beside a voxel of
    another class) and in the ``background``, and ``n_classes``, the foreground classes in them.
    """
    rows = []
    for run in run_set.runs:
        queries = pd.DataFrame(run.state.queries)
        if run.full_data or "boundary_voxels" not in queries:
            continue
        for number, query in queries.groupby("round"):
            voxels = float(query["voxels"].sum())
            inner, boundary = (float(query[f"{n}_voxels"].sum()) for n in ("inner", "boundary"))
            rows.append(
                {
                    "strategy": run.strategy,
                    "seed": run.seed,
                    "round": number,
                    "n_regions": len(query),
                    "voxels": voxels,
                    "inner": inner / voxels,
                    "boundary": boundary / voxels,
                    "background": 1 - (inner + boundary) / voxels,
                    "n_classes": len(set(" ".join(query["classes"]).split())),
                }
            )
    return pd.DataFrame(rows)

"""Print, one JSON row a published run, what it reached and what this project would have predicted.

    python -m benchmarks.roofline

`mfu_estimate` is calibrated on the other runs of the platform. Runs of one source resemble each other, so
`mfu_estimate_other_sources` leaves out all runs of the same paper or repository: that is how a new team fares. The last
row counts how often each interval, which means to hold 80 % of runs, holds the published figure.
"""

import json

from bigjax.preflight.plan.roofline import PublishedRun, published_runs, roofline


def main():
    runs = published_runs()
    held = {}
    for run in runs:
        siblings = [other.name for other in runs if _origin(other) == _origin(run)]
        row = {
            "run": run.name,
            "published": run.published,
            "unit": run.unit,
            "mfu": round(run.mfu, 4),
            "mfu_limit": round(roofline(run.work, run.topology_used).mfu_limit, 4),
        }
        for key, without in (("mfu_estimate", [run.name]), ("mfu_estimate_other_sources", siblings)):
            estimate = roofline(run.work, run.topology_used, without=without).mfu_estimate
            row[key] = {name: round(value, 4) for name, value in estimate.items()}
            inside = estimate["low"] <= run.mfu <= estimate["high"]
            held.setdefault((key, run.topology_used.platform), []).append(inside)
        print(json.dumps(row | {"confirmed": run.confirmed, "source": run.source}))
    print(json.dumps({"inside": {f"{key} {platform}": f"{sum(x)} of {len(x)}" for (key, platform), x in held.items()}}))


def _origin(run: PublishedRun) -> str:
    return run.source.split(",")[0]


if __name__ == "__main__":
    main()

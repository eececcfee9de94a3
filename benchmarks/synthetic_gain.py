"""Rank-1 and mAP of direct transfer and of the adapted model on synthetic people, per seed, with the demo's images and network.

The loop ends by the recipe's stopping rule; --iterations N ends it after at most N iterations (the demo uses 4).

Usage: python benchmarks/synthetic_gain.py [--recipe NAME] [--iterations N] [SEED ...], by default `paper` and seeds 0 1 2. The
generator's difficulty was tuned on seeds 10 to 12 only, the recipes on seeds 10 to 14 and 20 to 24; seeds 0, 1 and 2 are reserved for
reported results.
"""

import argparse

from yaml import safe_load

from deployments.environment import configure, use_server
from deployments.servers import PREFECT_FILE


def main(recipe: str, seeds: list[int], iterations: int | None) -> None:
    configure()
    use_server(None)
    from deployments.errors import quieten
    from flows.pul import pul
    from tasks.tracking.results import read_results

    quieten()
    demo_parameters = safe_load(PREFECT_FILE.read_text(encoding="utf-8"))["deployments"][0]["parameters"]
    table_rows = []
    for seed in seeds:
        domains = {domain: f"synthetic:{seed}/{domain}" for domain in ("source", "target")}
        parameters = demo_parameters | domains | {"recipe": recipe, "seed": seed, "stopping": {"max_iterations": iterations}}
        results = read_results(pul(**parameters))
        first, last = results["iterations"][0], results["iterations"][-1]
        gains = [100 * (last[name] - first[name]) for name in ("rank_1", "mAP")]
        scores = [100 * row[name] for row in (first, last) for name in ("rank_1", "mAP")]
        table_rows.append(
            "{:4} | {:5.1f} {:5.1f} | {:5.1f} {:5.1f} | {:+5.1f} {:+5.1f} | {} after {}".format(
                seed, *scores, *gains, results["stop_reason"], last["iteration"]
            )
        )
    print("seed | direct      | loop        | gain        | stopped\n     | rank-1  mAP | rank-1  mAP | rank-1  mAP |")
    print("\n".join(table_rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="paper")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("seeds", type=int, nargs="*")
    options = parser.parse_args()
    main(options.recipe, options.seeds or [0, 1, 2], options.iterations)

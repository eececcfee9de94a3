"""Direct transfer and the loop's result on drawn people, with the demo's images and network: rank-1 and mAP by seed, and what was gained.

The loop stops as the recipe says; --iterations N stops it after N at the latest, as the demo does after four.

Usage: python benchmarks/synthetic_gain.py [--recipe NAME] [--iterations N] [SEED ...], by default `paper` and 0 1 2. The generator's
difficulty was tuned on seeds 10 to 12 only, recipes on 10 to 14 and 20 to 24; 0, 1 and 2 are there to judge them.
"""

import argparse

from yaml import safe_load

from deployments.environment import configure, use_server
from deployments.servers import PREFECT_FILE


def main(recipe: str, seeds: list[int], iterations: int | None) -> None:
    configure()
    use_server(None)
    from deployments.complaints import quieten
    from flows.pul import pul
    from tasks.tracking.results import read_results

    quieten()
    stored = safe_load(PREFECT_FILE.read_text(encoding="utf-8"))["deployments"][0]["parameters"]
    lines = []
    for seed in seeds:
        sides = {side: f"synthetic:{seed}/{side}" for side in ("source", "target")}
        found = read_results(pul(**stored | sides | {"recipe": recipe, "seed": seed, "stopping": {"max_iterations": iterations}}))
        first, last = found["iterations"][0], found["iterations"][-1]
        gains = [100 * (last[name] - first[name]) for name in ("rank_1", "mAP")]
        scores = [100 * row[name] for row in (first, last) for name in ("rank_1", "mAP")]
        lines.append(
            "{:4} | {:5.1f} {:5.1f} | {:5.1f} {:5.1f} | {:+5.1f} {:+5.1f} | {} after {}".format(
                seed, *scores, *gains, found["stop_reason"], last["iteration"]
            )
        )
    print("seed | direct      | loop        | gain        | stopped\n     | rank-1  mAP | rank-1  mAP | rank-1  mAP |")
    print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="paper")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("seeds", type=int, nargs="*")
    given = parser.parse_args()
    main(given.recipe, given.seeds or [0, 1, 2], given.iterations)

"""How the directional rule's settings were chosen: python benchmarks/rules_development.py [--over VARIANT] [--run VARIANT ...]

Prints, for every task and variant in benchmarks/results/rules_development.jsonl, the paired difference of its validation
results from those of another variant, positive where it is better. "final, no horizon" is a finish of 0 with eta 4. Seeds
are 100 and on; reports are about seeds 0 to 9. "--run" first trains some variants that today's code can make, and adds them;
others are of the day they were tried on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import metacurv  # noqa: E402
from metacurv.experiment.rules import catalogue, directional, training  # noqa: E402
from metacurv.experiment.rules.tasks import TASKS  # noqa: E402

KEPT = HERE / "results" / "rules_development.jsonl"
RULES = {
    "final": {},
    "final, sigma 2": {"sigma": 2.0},
    "final, sigma 3": {"sigma": 3.0},
    "final, search .4": {"search": 0.4},
    "final, search .5": {"search": 0.5},
    "final, interval a 200th": {"interval": 10},  # of 2000 steps
}
RUN_ON = ("mlp-adamw", "mlp-sgd", "mlp-relu", "friedman", "conv")
SEEDS = range(100, 108)

Results = dict[str, dict[str, dict[int, float]]]  # task -> variant -> seed -> validation result


def _read(variant: str) -> str:
    """Which iterate: after a finish that begins from the average, the last; else the average."""
    return "val_last" if variant.startswith("from the average") else "val_average"


def load() -> Results:
    found: Results = {}
    for line in KEPT.read_text().splitlines():
        record = json.loads(line)
        by_seed = found.setdefault(record["task"], {}).setdefault(record["variant"], {})
        by_seed[record["seed"]] = record[_read(record["variant"])]
    return found


def run(variant: str) -> None:
    def maker(setting):
        rule = metacurv.DirectionalRule(**RULES[variant])
        return directional.directional(setting, rule=rule, horizon=setting.task.steps, average=True)

    catalogue.METHODS[variant] = maker
    done = load()
    for task in RUN_ON:
        for seed in SEEDS:
            if seed in done.get(task, {}).get(variant, {}):
                continue
            record = training.run(task, variant, seed)
            kept = {"task": task, "variant": variant, "seed": seed}
            kept |= {name: record[name] for name in ("val_average", "val_last")}
            with KEPT.open("a") as file:
                file.write(json.dumps(kept) + "\n")


def show(over: str) -> None:
    for task, variants in load().items():
        sign = 1 if TASKS[task].higher_is_better else -1
        print(f"{task}, {TASKS[task].unit}")
        for name, by_seed in variants.items():
            shared = sorted(by_seed.keys() & variants.get(over, {}).keys())
            if len(shared) < 2:
                continue
            gains = [sign * (by_seed[seed] - variants[over][seed]) for seed in shared]
            error = statistics.stdev(gains) / len(gains) ** 0.5
            mean = statistics.mean(by_seed.values())
            print(
                f"  {name:<44} {mean:8.2f}   {statistics.mean(gains):+6.2f} ± {error:.2f} ({len(gains)} seeds)"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--over", default="base", metavar="VARIANT", help="(default: base)")
    parser.add_argument(
        "--run", nargs="+", default=[], choices=RULES, metavar="VARIANT", help=", ".join(RULES)
    )
    arguments = parser.parse_args()
    for name in arguments.run:
        run(name)
    show(arguments.over)

"""The command line: `python -m train.reproduce` performs all runs and writes the report."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from adapter.base.embedded import BASE
from adapter.base.llama import base_config
from adapter.errors import AdapterError, with_detail
from train.evaluate.tasks import unrelated_text
from train.job import Stopped
from train.reproduce.benchmark import drawn_benchmark, open_benchmark
from train.reproduce.report import Figures, write_report
from train.reproduce.runs import FULL, PLANS, QUICK, Study, planned_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        "python -m train.reproduce",
        description="Try the claims of LLaMA-Adapter, on a drawn benchmark or on ScienceQA.",
    )
    add = parser.add_argument
    add("--out", type=Path, help="folder of all files (default: runs/reproduce, or runs/quick)")
    add("--quick", action="store_true", help="a few steps of each run, in minutes; the figures mean nothing")
    add("--scienceqa", type=Path, metavar="DIR", help="the real data: problems.json, pid_splits.json and images/")
    add("--base", default=BASE, help=f"folder of another frozen base (default: {BASE})")
    add("--report", action="store_true", help="perform no run: write the report of those that are finished")
    args = parser.parse_args(arguments)
    try:
        print(reproduce(args, sys.argv[1:] if arguments is None else arguments))
    except (KeyboardInterrupt, Stopped):
        print("\nstopped; finished runs are kept, and the same command does the others", file=sys.stderr)
        return 130
    except (AdapterError, OSError) as error:
        print(f"error: {with_detail(error)}", file=sys.stderr)
        return 1
    return 0


def reproduce(args: argparse.Namespace, given: Sequence[str]) -> str:
    """Does everything that the parsed arguments ask for and returns the report. given: the arguments as typed."""
    if not (find_spec("peft") and find_spec("scipy")):  # said now, and not after the first runs
        raise AdapterError("peft or scipy is not installed. Install both: .venv/bin/pip install -e '.[train]'.")
    plan = QUICK if args.quick else FULL
    out: Path = args.out or Path("runs") / ("quick" if args.quick else "reproduce")
    layers = int(base_config(args.base).num_hidden_layers)
    benchmark = open_benchmark(args.scienceqa or drawn_benchmark(out / "benchmark"), plan.problems)
    study = Study(benchmark, out, unrelated_text()[: plan.text], args.base)
    runs = planned_runs(plan, layers)
    if not args.report:
        torch.set_num_threads(1)  # a run's time on the processor then means the same beside another process
        print(f"{len(runs)} runs; the same command in a second shell shares the work", flush=True)
        study.perform_all(runs)
    results = study.finished(runs)
    if not results:
        raise AdapterError(f"No run of '{out.name}' is finished. Leave out --report to perform them.", str(out))
    data = f"The problems are ScienceQA's, from {args.scienceqa}." if args.scienceqa else PLANS["drawn"]
    return write_report(
        Figures(results, benchmark.splits["test"], plan, layers),
        out,
        command=shlex.join([".venv/bin/python", "-m", "train.reproduce", *given]),
        base=args.base,
        data=f"{'This is a trial of a few steps: its figures mean nothing. ' * args.quick}{data}",
        sizes={split: len(part) for split, part in benchmark.splits.items()},
        missing=[run.name for run in runs if run.name not in results],
    )


if __name__ == "__main__":
    sys.exit(main())

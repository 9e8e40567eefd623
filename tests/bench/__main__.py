"""`python -m tests.bench [TABLE ...]`: measures and prints tables; without arguments all of them."""

from __future__ import annotations

import argparse
import importlib

from tests.bench.processor import describe_processor

TABLES = (
    *("base", "serving", "latency", "crowd", "cluster", "start", "training", "pictures"),
    *("form", "sampling", "xray", "gpu"),
)


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", choices=[*TABLES, []], help="default: all")
    for table in parser.parse_args().tables or TABLES:
        print(f"\n{table}: {describe_processor()}\n", flush=True)
        importlib.import_module(f"tests.bench.{table}").run()


if __name__ == "__main__":
    main()

"""`make soak`: sixteen honest visitors and every attack on the real base. Prints one table; 1 on any failure."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.app_process import ROOT
from tests.soak.people import questions
from tests.soak.siege import Siege, besieged

SHIPPED = ROOT / "assets" / "adapters"
PICTURE = ROOT / "assets" / "examples" / "traffic-light.png"
INTERMEDIATE_SIZE = 1536  # of the embedded base
ANSWER_TOKENS = 24


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=10, help="of attack")
    arguments = parser.parse_args()
    asked = questions(("pirate", "extract"), "see", PICTURE, ANSWER_TOKENS)
    honest = ("pirate", "extract", "see")
    with (
        tempfile.TemporaryDirectory() as folder,
        besieged(Path(folder), SHIPPED / "pirate", SHIPPED / "see", INTERMEDIATE_SIZE, PICTURE, honest) as (
            server,
            attacker,
        ),
    ):
        report = Siege(server, asked, attacker).run(
            60 * arguments.minutes, tell=lambda line: print(line, flush=True)
        )
    print(f"\n{report}\n")
    for problem in report.problems[:20]:
        print(problem)
    print("It stood." if not report.problems else f"IT FELL: {len(report.problems)} problems.")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())

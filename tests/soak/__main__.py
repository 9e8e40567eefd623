"""`make soak`: sixteen honest visitors and every attack on the real base. Prints one table; 1 on any failure."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.soak.people import questions
from tests.soak.siege import ANSWER_TOKENS, PICTURE, TEXT, VISUAL, Siege, besieged


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=10, help="of attack")
    arguments = parser.parse_args()
    asked = questions(TEXT, VISUAL, PICTURE, ANSWER_TOKENS)
    with tempfile.TemporaryDirectory() as folder, besieged(Path(folder)) as (server, attacker):
        report = Siege(server, asked, attacker).run(60 * arguments.minutes)
    print(f"\n{report}\n")
    for problem in report.problems[:20]:
        print(problem)
    print("It stood." if not report.problems else f"IT FELL: {len(report.problems)} problems.")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())

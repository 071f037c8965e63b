"""The command; see the package."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.drive import fuzz
from fuzz.readers import READERS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Read mutated inputs with every reader.")
    parser.add_argument("--inputs", type=int, default=1000, help="how many, of all readers together")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--reader", choices=sorted(READERS), help="this one alone")
    parser.add_argument("--number", type=int, help="this input alone; with --reader")
    asked = parser.parse_args()
    names = [asked.reader] if asked.reader else list(READERS)
    numbers = None if asked.number is None else [asked.number]
    result = fuzz(names, asked.inputs, asked.seed, numbers=numbers)
    print(result.table())
    for fault in result.faults:
        print(f"\n{fault}")
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())

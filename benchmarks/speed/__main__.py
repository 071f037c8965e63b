"""The speed of training beside other libraries, each with its own loop, in turn, in processes of their own.

    python -m speed                # in the folder `benchmarks`; `make bench` makes both environments, and runs this
    python -m speed --tiny --libraries lightsae --rounds 1

The same model, rows, site, width, batch, buffer, Adam, float32 and threads. Tokens per second are those trained on
over whole cycles of fills after the first (`window.py`), medians of the rounds. Beside them stand those per second of
CPU time, which other work on the machine changes less, and their ratio in brackets. Peak memory is the process's,
libraries included. The limit is the time of products of matrices that cannot be left out, in the same rounds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from speed.cases import CASES, TINY, Case
from speed.table import LIMIT, OURS, keep, load, machine, table

ROOT = Path(__file__).parents[2]
PEERS = {"sae_lens": ("TopK", "ReLU"), "sparsify": ("TopK",), "dictionary_learning": ("TopK", "ReLU")}
LAST = ROOT / "benchmarks" / "speed.json"


def measure(module: str, python: Path, folder: Path, threads: int) -> dict[str, Any] | None:
    """Return what a runner measured in a process of its own; None, said with its last line, where it failed."""
    out, count = folder / f"{module}.json", str(threads)
    out.unlink(missing_ok=True)
    paths = [str(ROOT / "benchmarks"), *([str(ROOT / "src")] if python == Path(sys.executable) else [])]
    environment = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), count),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    command = [str(python.absolute()), "-m", f"speed.{module}", str(folder), str(out)]
    ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if ended.returncode or not out.exists():
        lines = ended.stderr.strip().splitlines()
        print(f"{module} failed: {lines[-1] if lines else ended.returncode}", file=sys.stderr, flush=True)
        return None
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def runners(case: Case, peers: Path, libraries: list[str]) -> dict[str, tuple[str, Path]]:
    """Return the modules to run for a case, and in which environment, in their order."""
    here = Path(sys.executable)
    chosen = {OURS: ("with_lightsae", here)} if OURS in libraries else {}
    for library, variants in PEERS.items():
        if library in libraries and case.variant in variants and peers.exists():
            chosen[library] = (f"with_{library}", peers)
    return {**chosen, LIMIT: ("limit", here)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="Cases whose name has this in it.")
    parser.add_argument("--libraries", nargs="+", default=[OURS, *PEERS], choices=[OURS, *PEERS])
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers" / "bin" / "python")
    parser.add_argument("--tiny", action="store_true", help="Tiny shapes: whether everything runs.")
    parser.add_argument("--last", type=Path, default=LAST, help="The tables that were kept, by machine.")
    parser.add_argument("--keep", action="store_true", help="Keep the new table there.")
    args = parser.parse_args()
    cases = [case for case in (TINY if args.tiny else CASES) if args.only in case.name]
    name, measured = machine(args.threads), {}  # type: ignore[var-annotated]
    if not args.peers.exists() and args.libraries != [OURS]:
        print("The other libraries are not installed: make .venv-peers/.ready", file=sys.stderr)
    last = load(args.last, name)
    with tempfile.TemporaryDirectory() as temporary:
        folders = {case.name: Path(temporary, str(number)) for number, case in enumerate(cases)}
        for case in cases:
            case.save(folders[case.name])
        for turn in range(args.rounds):
            for case in cases:
                for library, (module, python) in runners(case, args.peers, args.libraries).items():
                    result = measure(module, python, folders[case.name], args.threads)
                    if result is not None:
                        measured.setdefault(case.name, {}).setdefault(library, []).append(result)
                        speed = f"{result['tokens_per_second']:,.0f} tokens/s, load {os.getloadavg()[0]:.1f}"
                        print(f"round {turn + 1}: {case.name}: {library}: {speed}", file=sys.stderr, flush=True)
            if args.keep:
                keep(args.last, name, measured)
    print(f"{name}, float32, {datetime.now(UTC):%Y-%m-%d}, {args.rounds} rounds\n")
    print(table(cases, measured, last))


if __name__ == "__main__":
    main()

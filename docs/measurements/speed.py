"""The whole `idfx init` against building the model with timm and saving it: ratios of pairs, run in turn.

    python docs/measurements/speed.py resnet50 vit_large_patch16_224 --runs 5

For each model it prints the median seconds of both commands, the median of the ratios pair by pair with their
range, and the peak memory of both; then the time of `idfx --help` against an empty Python.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BASELINE = "import timm, torch; torch.save(timm.create_model('{name}').state_dict(), '{file}')"


def measured(command: list[str]) -> tuple[float, float]:
    """Return the seconds and the peak memory in MiB of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{command}: ended with status {status}")
    return seconds, usage.ru_maxrss / 1024


def compare(label: str, ours: list[str], theirs: list[str], runs: int) -> None:
    """Run the two in turn after one warm-up of each, and print medians and ratios."""
    pairs = [(measured(ours), measured(theirs)) for _ in range(runs + 1)][1:]
    ratios = [a[0] / b[0] for a, b in pairs]
    seconds = [statistics.median(pair[side][0] for pair in pairs) for side in (0, 1)]
    memory = [max(pair[side][1] for pair in pairs) for side in (0, 1)]
    print(
        f"{label:28} {seconds[0]:8.2f} s {seconds[1]:8.2f} s   ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})   peak {memory[0]:.0f} and {memory[1]:.0f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["resnet50"])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    idfx = str(Path(sys.executable).with_name("idfx"))
    print(f"{'':28} {'idfx':>10} {'baseline':>10}")
    compare("idfx --help / python -c pass", [idfx, "--help"], [sys.executable, "-c", "pass"], max(arguments.runs, 5))
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/weights.pt"
        for name in arguments.models:
            Path(file).unlink(missing_ok=True)
            ours = ["sh", "-c", f"rm -f {file}; exec {idfx} init timm:{name} -o {file} --device cpu"]
            code = BASELINE.format(name=name, file=file)
            theirs = ["sh", "-c", f'rm -f {file}; exec {sys.executable} -c "{code}"']
            compare(name, ours, theirs, arguments.runs)


if __name__ == "__main__":
    main()

"""`python -m benchmarks [NAME…]`: run `bench_*.figures()`, print a table, write bench.json."""

import importlib
import json
import os
import pkgutil
import platform
import sys
from pathlib import Path

import benchmarks


def main(wanted: list[str]) -> int:
    """Run the benchmarks whose module name contains one of ``wanted`` (all without any)."""
    figures = []
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if module.name.startswith("bench_") and (not wanted or any(w in module.name for w in wanted)):
            for figure in importlib.import_module(f"benchmarks.{module.name}").figures():
                figures.append(figure)
                ratio = f"{figure.ratio:6.2f}x" if figure.ratio is not None else "       "
                met = "met" if figure.met else "NOT MET"
                print(f"{figure.name:58} {figure.value:10.1f} {figure.unit:4} {ratio}  {figure.target:30} {met}")
    machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "machine": platform.machine()}
    report = {"schema": "cvars.bench/1", "machine": machine, "figures": [f.as_json() for f in figures]}
    Path("bench.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(f.met for f in figures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

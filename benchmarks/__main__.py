"""`python -m benchmarks [compare|kernels|ffhq]`: speed on this machine, against published code and plain PyTorch.

compare    published code, plain PyTorch and this repository side by side (ten minutes); writes reports/bench.json
kernels    errors, times and bytes of the CUDA kernels, on a GPU; writes reports/gpu/kernels.json
ffhq       the method in the published sizes, with random weights, on a GPU; writes reports/gpu/ffhq_shapes.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import compare, ffhq, gpu, kernels
from pipeline.networks import Networks
from pipeline.runtime import processes
from pipeline.runtime.errors import InputError
from pipeline.storage import domains, params


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark, a line per item; returns the exit code, 2 for bad input."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__, formatter_class=formatter)
    parser.add_argument("benchmark", nargs="?", default="compare", choices=("compare", "kernels", "ffhq"))
    parser.add_argument("rows", nargs="*", help="only these rows of `compare`")
    parser.add_argument("--device", default=processes.device(), help="cpu, cuda or cuda:N (default: %(default)s)")
    options = parser.parse_args(arguments)
    root = params.root()
    try:
        if options.benchmark == "compare":
            networks = Networks(domains.load("portraits", root), root, options.device)
            for name, row in compare.run(networks, root / "reports" / "bench.json", options.rows):
                print(compare.line(name, row), flush=True)
            return 0
        if options.rows:
            raise InputError(f"`{options.benchmark}` has no rows to choose from: leave out {' '.join(options.rows)}")
        run, file = (ffhq.run, "ffhq_shapes.json") if options.benchmark == "ffhq" else (kernels.run, "kernels.json")
        for name, item in run(root / "reports" / "gpu" / file, root, options.device):
            print(gpu.line(name, item), flush=True)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

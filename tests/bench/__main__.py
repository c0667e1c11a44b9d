"""The benchmark: `python -m tests.bench` measures everything and writes docs/benchmarks.md (about 20 minutes).

With `--only` some parts are measured and the page is printed. `--gpu` measures the toy part with compute=cuda and
writes docs/benchmarks-gpu.md.
"""

import argparse
import os
import sys

import torch

from tests.bench import analysing, end_to_end, floor, large, logs, startup, tabular, toy
from tests.bench.commands import NotMeasured
from tests.bench.page import GPU_PAGE, PAGE, Section, lm_of, page, put_lm

PARTS = {
    "toy": toy.measure, "tabular": tabular.measure, "endtoend": end_to_end.measure, "logging": logs.measure,
    "startup": startup.measure, "floor": floor.measure, "large": large.measure,
    "analysis": analysing.measure,
}  # fmt: skip
LARGE = ("large", "analysis")  # minutes each
ROUNDS, QUICK_ROUNDS = 3, 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", help=f"some of {','.join(PARTS)}; the page is printed, not written")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_ROUNDS} round instead of {ROUNDS}; printed, not written"
    )
    parser.add_argument("--large", action="store_true", help="with the sweeps of 2,000 runs")
    parser.add_argument("--gpu", action="store_true", help="the toy part with compute=cuda")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else [name for name in PARTS if name not in LARGE or options.large]
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--only: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if options.gpu and not torch.cuda.is_available():
        sys.exit("bench-gpu: torch sees no CUDA device here; nothing was measured")

    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    load = f"{os.getloadavg()[0]:.1f}"
    command = " ".join(["python -m tests.bench", *sys.argv[1:]])
    torch.set_num_threads(1)
    known: dict[str, float] = {}
    sections: list[Section] = []
    failed: list[str] = []
    for name in ["toy"] if options.gpu else chosen:
        print(f"{name}:", flush=True)
        try:
            sections.append(toy.measure(rounds, known, "cuda") if options.gpu else PARTS[name](rounds, known))
        except NotMeasured as error:  # the other parts have cost minutes
            print(f"{name}: {error}", file=sys.stderr)
            failed.append(name)
            sections.append(Section(name, f"**Not measured:** {str(error).splitlines()[0]}"))
    text = page(sections, command, rounds, load, gpu=options.gpu)
    if options.only or options.quick:
        print(text)
    else:
        if not options.gpu and (lm := lm_of(PAGE.read_text())):
            text = put_lm(text, lm)
        (GPU_PAGE if options.gpu else PAGE).write_text(text)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()

"""What a part of the benchmark reports, and docs/benchmarks.md made of it."""

import datetime
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil

from tests.bench.commands import REPO
from tests.bench.timing import Spread

PAGE = REPO / "docs" / "benchmarks.md"
GPU_PAGE = REPO / "docs" / "benchmarks-gpu.md"
LM = "<!-- what follows is written by python -m tests.bench.lm -->"
LIBRARIES = ("torch", "transformers", "trl", "wandb", "hydra-core", "numpy")

HOW = """\
Written by `{command}` on {date}; not edited by hand.

What is compared ran by turns (A B C, C B A, …) in one benchmark process, {rounds}; whole commands are its
subprocesses. Ratios are formed within a round. Numbers are medians, in brackets the smallest and the largest round,
and a target is met when the median meets it. No run counts unless its history has every row and its W&B folder a
file.

Machine: {machine}. Load when it began: {load}. Versions: {versions}."""

NO_GPU = (
    "On a GPU: not run. `make bench-gpu` measures the toy part with `compute=cuda` and writes docs/benchmarks-gpu.md."
)
GPU = "On a GPU: see [benchmarks-gpu.md](benchmarks-gpu.md)."


@dataclass(frozen=True)
class Target:
    """A promise, and what was measured. `need` and `aim` bound the median from below, or from above if `at_most`."""

    what: str
    need: float
    measured: Spread
    unit: str = "x"
    aim: float | None = None
    at_most: bool = False

    def meets(self, bound: float) -> bool:
        return self.measured.median <= bound if self.at_most else self.measured.median >= bound

    def row(self) -> list[str]:
        bound = f"{'at most' if self.at_most else 'at least'} {self.need:g} {self.unit}"
        verdict = "yes" if self.meets(self.need) else "**no**"
        if self.aim is not None:
            bound += f"; aim {self.aim:g}"
            verdict += "; aim too" if self.meets(self.aim) else "; aim no"
        return [self.what, bound, f"{self.measured:.3g} {self.unit}", verdict]


@dataclass
class Section:
    """One part in detail: prose, and a table whose first row is its head."""

    title: str
    prose: str
    table: list[list[str]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def page(sections: Sequence[Section], command: str, rounds: int, load: str, gpu: bool = False) -> str:
    targets = [target.row() for section in sections for target in section.targets]
    how = HOW.format(
        command=command,
        rounds=f"{rounds} round{'s' if rounds > 1 else ''}",
        load=load,
        machine=machine(),
        versions=versions(),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    parts = ["# Benchmarks" + (" on a GPU" if gpu else ""), how]
    if targets:
        parts += ["## Targets", table([["target", "wanted", "measured", "met"], *targets])]
    for section in sections:
        parts += [f"## {section.title}", section.prose]
        if section.table:
            parts.append(table(section.table))
    if not gpu:
        parts.append(GPU if GPU_PAGE.exists() else NO_GPU)
    return "\n\n".join(parts) + "\n"


def put_lm(page: str, section: str) -> str:
    """The page with this as its section on language models, which another command measures."""
    return f"{page.partition(LM)[0].rstrip()}\n\n{LM}\n\n{section}"


def lm_of(page: str) -> str:
    """That section of a page, or nothing."""
    return page.partition(LM)[2].lstrip()


def machine() -> str:
    """CPU, cores, memory and cache; nothing that names the machine."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    facts = dict(re.findall(r"^(.+?)\s*: (.+)$", info, re.MULTILINE))
    model = facts.get("model name", platform.processor() or platform.machine())
    extensions = [name for name in ("amx_tile", "avx512f", "avx2") if name in facts.get("flags", "").split()]
    family = f", family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else ""
    return (
        f"{model}{family}{', ' + extensions[0] if extensions else ''}; {len(os.sched_getaffinity(0))} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GB{_last_level_cache()}"
    )


def _last_level_cache() -> str:
    size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return f", last-level cache {size.read_text().strip()}" if size.exists() else ""


def versions() -> str:
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)])

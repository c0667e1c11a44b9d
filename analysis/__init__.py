"""Reads the run directories of a sweep and draws them. Knows `docs/run-directory.md`, and neither `src` nor torch."""

from analysis.load import load

__all__ = ["load"]

"""`python -m src.runs`: the runs on disk, listed, shown, trained again, removed.

Listing reads only JSON files (docs/run-directory.md) and never waits for torch.
"""

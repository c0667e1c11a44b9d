"""Studies: each a question, claims with what would refute them, a sweep or a computation, and a verdict.

`python -m experiments` runs them; experiments/study.py says what a study is made of.
"""

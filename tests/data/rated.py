"""Small files in the exact schemas of the rated data sets."""

import json
from pathlib import Path

CRITERIA = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def long(text: str) -> str:
    """Long enough not to be dropped as too short."""
    return f"{text}: " + "word " * 5


def helpsteer_row(prompt: str, response: str, *ratings: int) -> dict[str, object]:
    """As in train.jsonl.gz. `ratings` in the order of CRITERIA, integers 0 to 4."""
    return {"prompt": prompt, "response": response, **dict(zip(CRITERIA, ratings, strict=True))}


def completion(response: str, *ratings: str, overall: float | None = None) -> dict[str, object]:
    """`ratings` in the order of ASPECTS, "1" to "5" or "N/A"."""
    annotations = {aspect: {"Rating": r, "Rationale": "why"} for aspect, r in zip(ASPECTS, ratings, strict=True)}
    for aspect in ("truthfulness", "helpfulness"):
        annotations[aspect] |= {"Type": ["None"], "Rationale For Rating": "why"}
    return {
        "annotations": annotations,
        "custom_system_prompt": "You are honest.",
        "model": "a model",
        "principle": "honesty",
        "response": response,
        "critique": "fine",
        "fine-grained_score": 4.0,
        "overall_score": overall,
    }


def ultrafeedback_row(instruction: str, *completions: dict[str, object]) -> dict[str, object]:
    return {
        "source": "evol_instruct",
        "instruction": instruction,
        "models": [c["model"] for c in completions],
        "completions": list(completions),
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


def write(file: Path, *rows: object) -> str:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)

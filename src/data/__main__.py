"""`python -m src.data report data=… [--against data.split=test] [--json]`: what is in a data set, before training."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import hydra

from src.config import Choice, run_config
from src.data.characters import Characters
from src.data.pairs import PairData
from src.data.printing import console, drawn
from src.data.report import data_report
from src.errors import BadInput
from src.run import give_up

CONF = Path(__file__).parents[2] / "conf"
ANY_LENGTH = 10**9


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        give_up(BadInput(message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on bad input."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        report(options.overrides, options.against, options.json)
    except BrokenPipeError:  # `| head` has read enough
        sys.stderr.close()
    except Exception as error:
        give_up(error)
    return 0


def report(overrides: Sequence[str], against: Sequence[str], as_json: bool) -> None:
    """Print the report of the data that the overrides choose.

    Lengths are in tokens of the model that the overrides choose; without `model=` in characters, and nothing is cut.

    Args:
        against: overrides that make of it the other data set, whose prompts are looked for in this one.
    """
    with_model = any(override.startswith("model=") for override in overrides)
    tokenizer, data = _load(overrides, with_model)
    other = _load([*overrides, *against], with_model)[1] if against else None
    made = {"unit": "tokens" if with_model else "characters", **data_report(data, other)}
    if as_json:
        print(json.dumps(made, indent=1))
    else:
        console().print(drawn(made, made["unit"], tokenizer.decode))


def _load(overrides: Sequence[str], with_model: bool) -> tuple[Any, PairData]:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = run_config(hydra.compose("config", overrides=list(overrides)))[0]
    if not config.data.needs("tokenizer"):
        raise BadInput(f"data={config.data.name} is not text: there is nothing to report; give data=…")
    tokenizer = config.model.build().tokenizer() if with_model else Characters()
    choice = config.data if with_model else _uncut(config.data)
    return tokenizer, choice.build(tokenizer=tokenizer)


def _uncut(data: Choice) -> Choice:
    """`max_length` is in tokens, and says nothing of characters."""
    params: dict[str, Any] = {**data.params, **({"max_length": ANY_LENGTH} if "max_length" in data.params else {})}
    if "parts" in params:
        params["parts"] = {name: _uncut(part) for name, part in params["parts"].items()}
    return replace(data, params=params)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m src.data", description=__doc__)
    parser.add_argument("command", choices=["report"], help="counts, lengths, duplicates, contradictions")
    parser.add_argument("overrides", nargs="*", help="as for src.run: data=hh_rlhf data.path=… model=smollm2")
    parser.add_argument(
        "--against", action="append", default=[], metavar="OVERRIDE",
        help="find prompts shared with the data changed so: data.split=test, data.path=…; may be repeated",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    return parser


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.exit(main())

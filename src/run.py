"""The command line: `python -m src.run` trains one run, `python -m src.run -m` a sweep."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from src.errors import BadInput


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent.parent / "conf"), config_name="config")
def main(config: DictConfig) -> None:
    from src.launching.jobs import run_jobs  # imports torch, which --help should not wait for

    run_jobs([(config, tuple(HydraConfig.get().overrides.task))])


def cli() -> None:
    # Hydra prints several lines and exits with 1; with this set it raises, and one line with code 2 is ours to print.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        main()
    except (BadInput, HydraException, OmegaConfBaseException) as error:
        print(f"margincall: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    cli()

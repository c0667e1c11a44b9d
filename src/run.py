"""The command line: `python -m src.run` trains one run, `python -m src.run -m` a sweep."""

import gc
import os
import re
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from src.errors import BadInput


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent.parent / "conf"), config_name="config")
def main(config: DictConfig) -> None:
    from src.launching.jobs import run_jobs  # imports torch, which --help should not wait for

    try:
        launched = run_jobs([(config, tuple(HydraConfig.get().overrides.task))])
    except BadInput as error:  # here, because Hydra adds a line of its own to what leaves a job
        _refuse(str(error))
    if launched.code:
        sys.exit(launched.code)


def cli() -> None:
    # Hydra prints several lines and exits with 1; with this set it raises, and one line with code 2 is ours to print.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if {"-m", "--multirun"} & set(sys.argv) and not together:
        _warm_up()
    try:
        refuse_idle(sys.argv[1:])
        if together:
            _among_several()
        else:
            main()
    except KeyboardInterrupt:  # before training began; `launch` handles the rest
        sys.exit(130)
    except Exception as error:
        give_up(error)
    finally:
        gc.freeze()  # else Python looks through all of torch once more before it exits, for most of a second


def give_up(error: Exception) -> NoReturn:
    """One line and exit code 2 if it is what was typed that is wrong; otherwise raise it again."""
    if not isinstance(error, BadInput | HydraException | OmegaConfBaseException) and not _raised_by_hydra(error):
        raise error
    _refuse(_in_our_words(error))


def _among_several() -> None:
    """As one of torchrun's processes: the first does what it does alone, the others follow it."""
    from src import distributed
    from src.launching.follow import follow

    if distributed.rank() > 0:
        follow()
        return
    main()
    distributed.tell(None)
    distributed.leave()


# Of Hydra's own settings, those that mean something here. Hydra writes no files here and changes no folder.
TAKE_EFFECT = (
    "sweeper",
    "launcher",
    "help",
    "mode",
    "verbose",
    "searchpath",
    "callbacks",
    "job_logging",
    "hydra_logging",
)


def refuse_idle(arguments: Sequence[str]) -> None:
    """Raises BadInput for a setting of Hydra that would do nothing, a misspelt one included."""
    for override in arguments:
        group, *path = re.split("[./@]", override.lstrip("+~").partition("=")[0])
        if group == "hydra" and path and path[0] not in TAKE_EFFECT:
            raise BadInput(
                f"{override}: has no effect here; output=… and sweep=… say where results go, and of hydra.* there are "
                + ", ".join(TAKE_EFFECT)
            )


def _warm_up() -> None:
    """Start the process that workers are forked from: it imports torch while this one reads configurations.

    Workers are not forked from this process, which has threads and may have a GPU open.
    """
    forkserver.set_forkserver_preload(["src.launching.preload"])
    forkserver.ensure_running()


def _refuse(reason: str) -> NoReturn:
    print(f"margincall: {' '.join(reason.split())}", file=sys.stderr)
    sys.exit(2)


def _raised_by_hydra(error: Exception) -> bool:
    """Hydra refuses some command lines with a bare ValueError."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].startswith("hydra.")


def _in_our_words(error: Exception) -> str:
    """Hydra advises to append an unknown key with `+`, which would be refused next; say what there is instead."""
    from src.config import no_such_key

    unknown = error.__cause__
    if isinstance(unknown, ConfigAttributeError | ConfigKeyError) and isinstance(unknown.parent_node, DictConfig):
        prefix = str(unknown.full_key).removesuffix(str(unknown.key))
        keys = [str(key) for key in unknown.parent_node if key not in {"_target_", "name", "hydra"}]
        return no_such_key(str(error).rsplit("use +", 1)[-1], [prefix + key for key in keys])
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group}={name}: no such choice; allowed are {', '.join(error.options)}"
    return str(error)


if __name__ == "__main__":
    cli()

"""What the other processes of `torchrun` do: train along, write nothing."""

from pathlib import Path

from src import distributed
from src.checkpoint import Checkpoints
from src.config import RunConfig
from src.launching.loading import Loaded, load_data
from src.reference import References
from src.train import train_stack

Told = tuple[list[RunConfig], Path, Path]


def tell(configs: list[RunConfig], references: Path, checkpoints: Path) -> None:
    """Have the other processes, if there are any, train these runs along with this one."""
    distributed.tell((configs, references, checkpoints))


def follow() -> None:
    """Train what the first process says, until it says that was all."""
    loaded: Loaded = {}
    while (told := distributed.told()) is not None:
        configs, references, checkpoints = told
        compute = configs[0].compute.build()
        device = compute.prepare()
        compute.use_threads(configs[0].model.build().threads)
        train_stack(
            configs,
            load_data(configs, loaded),
            emit=lambda *_: None,
            device=device,
            references=References(references),
            checkpoints=Checkpoints(checkpoints, None, None),
            keep=lambda *_: None,
        )
    distributed.leave()

"""From the cells of a sweep, as lists of overrides, to composed configurations.

Hydra takes 60 ms to compose one. It needs to do so once for each combination of group choices only: a plain value, such
as `beta=0.5`, is put into a copy by the function that Hydra uses for it.
"""

import copy
from collections.abc import Sequence
from functools import cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from src.config import GROUPS

Job = tuple[DictConfig, tuple[str, ...]]


def compose_jobs(loader: ConfigLoader, master: DictConfig, cells: Sequence[Sequence[str]]) -> list[Job]:
    """Compose every cell.

    A parameter that only some choices have may be swept with the others: `loss=dpo,cdpo loss.epsilon=0.1,0.2` asks for
    three runs. Cells whose choice lacks it do without the override, and are then equal to one another.

    Returns:
        For each cell its configuration and the overrides that took effect.
    """
    bases: dict[tuple[str, ...], DictConfig] = {}

    @cache
    def parse(override: str) -> Override:
        return OverridesParser.create(config_loader=loader).parse_override(override)

    def base_of(cell: Sequence[str]) -> DictConfig:
        choices = tuple(o for o in cell if not _is_value(parse(o)))
        if choices not in bases:
            whole = loader.load_sweep_config(master, list(choices))
            bases[choices] = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
            OmegaConf.set_struct(bases[choices], True)
        return bases[choices]

    used = {parse(o).key_or_group for cell in cells for o in cell if _has(base_of(cell), parse(o))}
    jobs = []
    for cell in cells:
        base = base_of(cell)
        kept = tuple(o for o in cell if _has(base, parse(o)) or parse(o).key_or_group not in used)
        config = copy.deepcopy(base)
        ConfigLoaderImpl._apply_overrides_to_config([parse(o) for o in kept if _is_value(parse(o))], config)
        jobs.append((config, kept))
    return jobs


def _is_value(override: Override) -> bool:
    """A plain `key=value`, which cannot change what is composed."""
    plain = not (override.is_add() or override.is_force_add() or override.is_delete())
    name = override.key_or_group
    return plain and override.package is None and "/" not in name and name not in GROUPS


def _has(base: DictConfig, override: Override) -> bool:
    """Can the override take effect? All but a parameter that this cell's choice of a group does not have."""
    if not _is_value(override):
        return True
    group, *path = override.key_or_group.split(".")
    if group not in GROUPS or not path:
        return True
    parent = OmegaConf.select(base, ".".join([group, *path[:-1]]))
    return OmegaConf.is_dict(parent) and path[-1] in parent

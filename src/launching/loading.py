"""The data of a sweep's runs."""

from collections.abc import MutableMapping, Sequence

from src.config import RunConfig
from src.data.pairs import PairData

Loaded = MutableMapping[str, PairData]


def load_data(configs: Sequence[RunConfig], loaded: Loaded | None = None) -> list[PairData]:
    """Each run's data; runs that name the same data share one object.

    Args:
        loaded: what was loaded before, to share and to add to.

    Raises:
        BadInput: the data cannot be used.
    """
    loaded = {} if loaded is None else loaded
    result = []
    for config in configs:
        needs_tokenizer = config.data.needs("tokenizer")
        model = {k: v for k, v in config.model.plain().items() if k != "seed"} if needs_tokenizer else None
        key = repr((config.data.plain(), model))
        if key not in loaded:
            extra = {"tokenizer": config.model.build().tokenizer()} if needs_tokenizer else {}
            loaded[key] = config.data.build(**extra)
        if config.objective == "sft":
            whole, key = loaded[key], f"chosen of {key}"
            loaded.setdefault(key, whole.only_chosen())
        result.append(loaded[key])
    return result

"""Hydra's DictConfig becomes a RunConfig once, strictly; nothing downstream sees OmegaConf.

Every config group's choice is a YAML file with a `_target_`, a `name` and parameters. The target's own signature says
which parameters exist, their types and their ranges, so a typo is an error that names the key.
"""

import hashlib
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pkgutil import resolve_name
from typing import Annotated, Any, Literal

import pydantic
from annotated_types import Ge, Gt
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.errors import BadInput

STRICT = pydantic.ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)

# Parameters a target receives while training; all its others are configuration.
RUN_TIME = {"pairs", "params", "step", "total", "tokenizer"}


@dataclass(frozen=True)
class Choice:
    """One choice of a config group: what to call and with which (checked) parameters."""

    name: str
    target: str
    params: Mapping[str, Any]

    @property
    def function(self) -> Callable[..., Any]:
        return typing.cast(Callable[..., Any], resolve_name(self.target))

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """Call the target with the configured parameters."""
        return self.function(*args, **kwargs, **self.params)

    def needs(self, name: str) -> bool:
        """Does the target take the run-time parameter `name`?"""
        return name in inspect.signature(self.function).parameters

    def plain(self) -> dict[str, Any]:
        return {"name": self.name, **self.params}


Positive = Annotated[float, Gt(0)]
Count = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything about one run. `beta` and `lr` are the values in force, whichever key set them."""

    loss: Choice
    optimizer: Choice
    scheduler: Choice
    model: Choice
    data: Choice
    compute: Choice
    tracking: Choice
    beta: Positive
    lr: Positive
    seed: Annotated[int, Ge(0)]
    steps: Count
    batch_size: Count | Literal["full"]
    sampling: Literal["shuffle", "replacement", "sequential"]
    logps: Literal["sequence", "notebook_per_token"]
    dtype: Literal["float32", "float64", "bfloat16"]
    max_grad_norm: Positive | None
    save: bool

    def plain(self) -> dict[str, Any]:
        """The resolved configuration as plain JSON types."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {key: value.plain() if isinstance(value, Choice) else value for key, value in values.items()}

    @property
    def id(self) -> str:
        """Hash of what can change the result.

        Not where it is written or shown, nor how many threads and runs a stack has. `beta` and `lr` count through the loss and the optimizer that use them.
        """
        cannot_matter = {"tracking", "compute", "beta", "lr", "save"}
        relevant = {key: value for key, value in self.plain().items() if key not in cannot_matter}
        relevant["device"] = self.compute.params["device"]
        canonical = json.dumps(relevant, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:10]


GROUPS = tuple(f.name for f in fields(RunConfig) if f.type is Choice)


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a sweep goes; no part of a run's identity."""

    output: str
    sweep: str | None


def run_config(config: DictConfig) -> tuple[RunConfig, Destination]:
    """Convert and check one composed configuration.

    Raises:
        BadInput: one line with the key, its value and what is allowed.
    """
    try:
        ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        plain = typing.cast(dict[str, Any], OmegaConf.to_container(ours, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise BadInput(one_line(error)) from error
    destination = {f.name: plain.pop(f.name, None) for f in fields(Destination)}
    # The top-level values first: loss.beta is usually a copy of beta, and the error should name what was typed.
    scalars = {key: value for key, value in plain.items() if key not in GROUPS}
    check(_model_of(RunConfig, exclude=GROUPS), scalars)
    checked_destination = check(_model_of(Destination), destination)
    values: dict[str, Any] = scalars | {group: choice(group, plain.get(group)) for group in GROUPS}
    values["beta"] = values["loss"].params.get("beta", values["beta"])
    values["lr"] = values["optimizer"].params.get("lr", values["lr"])
    return RunConfig(**values), Destination(**checked_destination)


def choice(group: str, node: Any) -> Choice:
    """Check one config group's node against the signature of its target."""
    if not isinstance(node, dict) or "_target_" not in node or "name" not in node:
        raise BadInput(f"{group}={node!r} is not a choice of conf/{group}: it needs `_target_` and `name`")
    target, name = node["_target_"], node["name"]
    given = {key: value for key, value in node.items() if key not in {"_target_", "name"}}
    params = check(_model_of(_resolve(group, target)), given, prefix=f"{group}.")
    made = Choice(name, target, params)
    if group == "optimizer":
        _try_optimizer(made)
    return made


def check(model: type[pydantic.BaseModel], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Validate without coercion beyond int to float; give the values back as plain types."""
    try:
        made = model.model_validate(values)
    except pydantic.ValidationError as error:
        raise BadInput("; ".join(dict.fromkeys(_explain(e, prefix, model) for e in error.errors()))) from error
    return {name: getattr(made, name) for name in type(made).model_fields}


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _explain(error: Any, prefix: str, model: type[pydantic.BaseModel]) -> str:
    key = prefix + str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"{key}={error['input']!r}: no such key; allowed are {', '.join(prefix + k for k in model.model_fields)}"
    if error["type"] == "missing":
        return f"{key} is missing"
    return f"{key}={error['input']!r} is not allowed: {error['msg'][0].lower()}{error['msg'][1:]}"


def _resolve(group: str, target: str) -> Callable[..., Any]:
    try:
        return typing.cast(Callable[..., Any], resolve_name(target))
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"{group}._target_={target!r} cannot be imported: {one_line(error)}") from error


@cache
def _model_of(target: Callable[..., Any], exclude: tuple[str, ...] = ()) -> type[pydantic.BaseModel]:
    """A pydantic model with one field for each configuration parameter of `target`."""
    hints = typing.get_type_hints(target, include_extras=True)
    definitions: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if name not in RUN_TIME and name not in exclude:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            definitions[name] = (_config_type(hints.get(name, Any)), default)
    return pydantic.create_model(getattr(target, "__name__", "Config"), __config__=STRICT, **definitions)


def _config_type(hint: Any) -> Any:
    """A loss's hyper-parameter is a Tensor (one value a run) when it is called, and a number in the configuration."""
    import torch

    if typing.get_origin(hint) is Annotated and typing.get_args(hint)[0] is torch.Tensor:
        return Annotated[(float, *typing.get_args(hint)[1:])]
    if typing.get_origin(hint) is tuple:  # YAML has lists only
        return list[typing.get_args(hint)[0]]  # type: ignore[misc]
    return hint


def _try_optimizer(optimizer: Choice) -> None:
    """torch.optim checks its own ranges when it is built; do that now rather than after a sweep has started."""
    import torch

    try:
        optimizer.build([torch.zeros(1, requires_grad=True)])
    except (ValueError, TypeError, RuntimeError) as error:
        raise BadInput(f"optimizer={optimizer.name} with {dict(optimizer.params)}: {one_line(error)}") from error

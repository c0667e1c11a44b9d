"""Hydra's DictConfig becomes a RunConfig once, strictly; nothing downstream sees OmegaConf.

Every config group's choice is a YAML file with a `_target_`, a `name` and parameters. The target's own signature says
which parameters exist, their types and their ranges, so a typo is an error that names the key.
"""

import hashlib
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache, cached_property
from pkgutil import resolve_name
from typing import Annotated, Any, Literal

import pydantic
from annotated_types import Ge, Gt, Len, Lt
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from src.errors import BadInput

# Defaults are validated too, so that 0 and 0.0 are one value with one hash, written or not.
STRICT = pydantic.ConfigDict(
    extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False, validate_default=True
)

# Parameters a target receives while training; all its others are configuration.
RUN_TIME = ("pairs", "params", "step", "total", "tokenizer")

# Parameters of data and model that cannot change a result, and those that do not at the value they have had all along:
# runs made before a parameter existed keep their identity.
NO_EFFECT = {"streaming", "num_proc"}
UNSET = {"subset": None, "holdout": 0.0, "trust_remote_code": False, "best_worst": False}


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
        return {"name": self.name, **{key: _plain(value) for key, value in self.params.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Choice):
        return value.plain()
    if isinstance(value, Evaluation | EarlyStop):
        return asdict(value)
    return {key: _plain(v) for key, v in value.items()} if isinstance(value, dict) else value


def _what_counts(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    kept = {key: value for key, value in data.items() if key not in NO_EFFECT and value != UNSET.get(key, ...)}
    return {key: _what_counts(value) for key, value in kept.items()}


Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Count = Annotated[int, Ge(1)]
CountFromZero = Annotated[int, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When and on what a run is evaluated while it trains; see conf/config.yaml. Nothing here changes training."""

    every: Count | None = None
    pairs: CountFromZero = 64
    probes: CountFromZero = 16
    samples: CountFromZero = 0
    max_new_tokens: Count = 64
    temperature: Positive = 1.0

    @property
    def on(self) -> bool:
        return self.every is not None


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """When a run ends before its last update; see conf/config.yaml and `src.evaluation.has_settled`."""

    patience: Count | None = None
    min_reward_gain: NonNegative = 0.0
    kl_tolerance: NonNegative = 0.05

    @property
    def on(self) -> bool:
        return self.patience is not None


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
    adapter: Choice
    beta: Positive
    lr: Positive
    seed: Annotated[int, Ge(0), Lt(2**63)]
    steps: Count
    batch_size: Count | Literal["full"]
    sampling: Literal["shuffle", "replacement", "sequential"]
    logps: Literal["sequence", "notebook_per_token"]
    dtype: Literal["float32", "float64", "bfloat16"]
    autocast: Literal["bfloat16", "float16"] | None
    max_grad_norm: Positive | None
    reference: Literal["always", "if_needed"]
    objective: Literal["preference", "reward_model", "sft"]
    kl_coef: NonNegative
    kl_form: Literal["reverse", "forward", "js", "k1", "k2", "k3"]
    save: bool
    evaluation: Evaluation = field(default_factory=Evaluation)
    early_stop: EarlyStop = field(default_factory=EarlyStop)

    def plain(self) -> dict[str, Any]:
        """The resolved configuration as plain JSON types."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {key: _plain(value) for key, value in values.items()}

    @cached_property
    def id(self) -> str:
        """Hash of what can change the result.

        Not where it is written or shown, nor how many threads and runs a stack has. `beta` and `lr` count through the
        loss and the optimizer that use them, and evaluations where the run may stop at one.
        """
        cannot_matter = {"tracking", "compute", "beta", "lr", "save"}
        if not self.early_stop.on:
            cannot_matter |= {"early_stop", "evaluation"}
        # What came later and is not in use does not count: runs made before keep their identity.
        cannot_matter |= set() if self.adapter.build() else {"adapter"}
        cannot_matter |= set() if self.autocast else {"autocast"}
        relevant = {key: value for key, value in self.plain().items() if key not in cannot_matter}
        relevant |= {group: _what_counts(relevant[group]) for group in ("data", "model")}
        if self.early_stop.on:
            del relevant["evaluation"]["probes"]
        relevant["targets"] = {group: getattr(self, group).target for group in GROUPS if group not in cannot_matter}
        if not self.kl_coef:
            del relevant["kl_form"]
        relevant["device"] = self.compute.params["device"]
        canonical = json.dumps(relevant, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:10]


GROUPS = tuple(f.name for f in fields(RunConfig) if f.type is Choice)
NODES: dict[str, type[Evaluation | EarlyStop]] = {"evaluation": Evaluation, "early_stop": EarlyStop}


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """How the stacks of a sweep are carried out; see conf/config.yaml. Nothing here changes a result."""

    engine: Literal["local", "ray", "slurm"] = "local"
    processes: Count | None = None
    cpus: Count = 1
    gpus: Annotated[float, Ge(0)] = 0.0
    retries: Annotated[int, Ge(0)] = 1
    checkpoint_minutes: Positive | None = 5.0
    checkpoint_steps: Count | None = None
    address: str | None = None
    slurm: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a sweep goes and how it gets there; no part of a run's identity."""

    output: str
    sweep: str | None
    launcher: Launcher = field(default_factory=Launcher)


def run_config(config: DictConfig) -> tuple[RunConfig, Destination]:
    """Convert and check one composed configuration.

    Raises:
        BadInput: one line with the key, its value and what is allowed.
    """
    try:
        if "hydra" in config:
            config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        plain = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise BadInput(f"{error.full_key} has no default: give {error.full_key}=…") from error
    except OmegaConfBaseException as error:
        raise BadInput(one_line(error)) from error
    known = [f.name for f in (*fields(RunConfig), *fields(Destination))]
    for key, value in plain.items():
        if key not in known:
            raise BadInput(no_such_key(f"{key}={value!r}", known))
    destination = {f.name: plain.pop(f.name, None) for f in fields(Destination)}
    # The top-level values first: loss.beta is usually a copy of beta, and the error should name what was typed.
    typed = {key: value for key, value in plain.items() if key not in {*GROUPS, *NODES}}
    scalars = check(_model_of(RunConfig, exclude=(*GROUPS, *NODES)), typed)
    nodes = {name: _node(name, plain.get(name)) for name in NODES}
    launcher = destination.pop("launcher") or {}
    checked_destination = check(_model_of(Destination, exclude=("launcher",)), destination)
    checked_destination["launcher"] = Launcher(**check(_model_of(Launcher), launcher, prefix="launcher."))
    values: dict[str, Any] = scalars | {group: _checked(group, plain.get(group)) for group in GROUPS}
    values["beta"] = values["loss"].params.get("beta", values["beta"])
    values["lr"] = values["optimizer"].params.get("lr", values["lr"])
    run = RunConfig(**values, **nodes)
    if run.objective == "sft" and (run.loss.name != "sft" or run.kl_coef):
        given = f"kl_coef={run.kl_coef}" if run.loss.name == "sft" else f"loss={run.loss.name}"
        raise BadInput(f"objective=sft trains on the chosen responses: it needs loss=sft and kl_coef=0, not {given}")
    return run, Destination(**checked_destination)


def _node(name: str, given: Any) -> Any:
    """One of NODES, checked; all of its defaults where nothing is given."""
    if not isinstance(given, dict | None):
        raise BadInput(f"{name}={given!r}: it has parts, such as {name}.{next(iter(fields(NODES[name]))).name}")
    made: Callable[..., Any] = NODES[name]
    return made(**check(_model_of(made, exclude=()), given or {}, f"{name}."))


def _checked(group: str, node: Any) -> Choice:
    """`choice`, once for each distinct node: thousands of runs share a few."""
    key = group, repr(node)
    if key not in _KNOWN:
        _KNOWN[key] = choice(group, node)
    return _KNOWN[key]


_KNOWN: dict[tuple[str, str], Choice] = {}


def choice(group: str, node: Any) -> Choice:
    """Check one config group's node against the signature of its target."""
    if not isinstance(node, dict) or "_target_" not in node or "name" not in node:
        raise BadInput(f"{group}={node!r} is not a choice of conf/{group}: it needs `_target_` and `name`")
    target, name = node["_target_"], node["name"]
    if not isinstance(target, str) or not isinstance(name, str):
        raise BadInput(f"{group}.name={name!r} and {group}._target_={target!r} must be strings")
    given = {key: value for key, value in node.items() if key not in {"_target_", "name"}}
    given = {key: _nested(f"{group}.{key}", value) for key, value in given.items()}
    params = check(_model_of(_resolve(group, target)), given, prefix=f"{group}.")
    made = Choice(name, target, params)
    if group == "optimizer":
        _try_optimizer(made, given)
    return made


def _nested(key: str, value: Any) -> Any:
    """Choices inside a choice, such as the terms of `loss=mix`."""
    if not isinstance(value, dict):
        return value
    if "_target_" in value:
        return choice(key, value)
    return {name: _nested(f"{key}.{name}", inner) for name, inner in value.items()}


def check(model: type[pydantic.BaseModel], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Validate without coercion beyond int to float; give the values back as plain types."""
    try:
        made = model.model_validate(values)
    except pydantic.ValidationError as error:
        raise BadInput(_explain(error, values, prefix, model)) from error
    return {name: getattr(made, name) for name in type(made).model_fields}


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def no_such_key(override: str, allowed: Iterable[str]) -> str:
    return f"{override}: no such key; allowed are {', '.join(allowed) or 'none'}"


def _explain(
    error: pydantic.ValidationError, values: Mapping[str, Any], prefix: str, model: type[pydantic.BaseModel]
) -> str:
    """One clause a key; a key of several types has an error for each, and any of them would do."""
    reasons: dict[Any, dict[str, None]] = {}
    for e in error.errors():
        key = e["loc"][0]
        if e["type"] == "extra_forbidden":
            return no_such_key(f"{prefix}{key}={e['input']!r}", [prefix + name for name in model.model_fields])
        if e["type"] == "missing":
            return f"{prefix}{key} is missing"
        reasons.setdefault(key, {})[e["msg"][0].lower() + e["msg"][1:]] = None
    return "; ".join(f"{prefix}{k}={values[k]!r} is not allowed: {' or '.join(why)}" for k, why in reasons.items())


def _resolve(group: str, target: str) -> Callable[..., Any]:
    try:
        return typing.cast(Callable[..., Any], resolve_name(target))
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"{group}._target_={target!r} cannot be imported: {one_line(error)}") from error


@cache
def _model_of(target: Callable[..., Any], exclude: tuple[str, ...] = RUN_TIME) -> type[pydantic.BaseModel]:
    """A pydantic model with one field for each configuration parameter of `target`."""
    # Of a class, the hints of what is called: its constructor.
    called = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    hints = typing.get_type_hints(called, include_extras=True)
    definitions: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if name not in exclude:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            default = list(default) if isinstance(default, tuple) else default
            definitions[name] = (_config_type(hints.get(name, Any)), default)
    return pydantic.create_model(getattr(target, "__name__", "Config"), __config__=STRICT, **definitions)


def _config_type(hint: Any) -> Any:
    """A hyper-parameter may be a Tensor (one value a run) when it is used, and is a number in the configuration."""
    import torch

    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated and args[0] is torch.Tensor:
        return Annotated[(float, *args[1:])]
    if origin in {typing.Union, types.UnionType}:  # torch.optim's `float | Tensor`
        return typing.Union[tuple(_config_type(arg) for arg in args if arg is not torch.Tensor)]  # noqa: UP007
    if origin is tuple:  # YAML has lists only
        items: Any = list[_config_type(args[0])]  # type: ignore[misc]
        return items if args[-1] is ... else Annotated[items, Len(len(args), len(args))]
    return hint


def _try_optimizer(optimizer: Choice, given: Mapping[str, Any]) -> None:
    """torch.optim checks its own ranges when it is built; do that now rather than after a sweep has started.

    Without parameters: at the first one torch imports its compiler, for more than a second.
    """
    try:
        optimizer.build([])
    except (ValueError, TypeError, RuntimeError) as error:
        if "empty parameter list" in str(error):  # the last of the checks
            return
        typed = " ".join(f"optimizer.{key}={value}" for key, value in given.items())
        raise BadInput(f"optimizer={optimizer.name} {typed}: {one_line(error)}") from error

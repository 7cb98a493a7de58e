r"""How an architecture says where its weights come from.

An architecture is a module `convert_weights/NAME.py` with

    SOURCES = (("trained",), ("backbone", "encoder"))       # the sets of sources that `--source` may name
    MODELS = {"MyModel": "modeling_dsr.modeling_my"}         # classes that a converted folder may hold, and their files

    def plan(sources: dict[str, Source], overrides: dict) -> Plan: ...
    def write_processor(sources: dict[str, Source], config, folder: Path) -> list[str]: ...   # returns notes

`plan` sees names, shapes, dtypes and JSON files, never weights. It builds the configuration, mostly from the source's
own and from shapes, and returns it with the rules:

    def plan(sources, overrides):
        trained = sources["trained"]
        config = MyConfig(**merge_config({"hidden_size": trained.shape("head.weight")[1]}, overrides))
        return Plan(
            config=config,
            model_class=MyModel,
            load={
                "trained": [
                    rename(r"encoder\.(.+)", r"model.encoder.\1"),
                    rename(r"blocks\.(\d+)\.(.+)", lambda m: f"model.layers.{int(m[1]) // 2}.{m[2]}"),
                    split(r"(.+)\.qkv\.(weight|bias)", [rf"model.\1.{name}_proj.\2" for name in "qkv"]),
                    transform(r"conv\.weight", r"model.linear.weight", flatten_kernel),
                    merge(r"(.+)\.base\.weight", [r"\1.lora_A", r"\1.lora_B"], r"model.\1.weight", add_lora),
                    drop(r"old_head\..+", "replaced by the new head"),
                ],
            },
            fill=[
                copy(r"model\.second\.(.+)", r"model.layers.\1"),
                init(r"model\.queries", normal(1.0)),
                init(r"model\..+\.bias", zeros),
            ],
        )

Every source key must meet a rule (the first that matches the whole key applies) and every parameter and persistent
buffer of the model must receive a value, in the right shape: whatever is left over on either side is an error, and so
are two values for one target, unless the later rule says `when_taken="replace"` or `"keep"`. Sources are worked
through in the order of `load`; `fill` serves what they left open. Tied parameters need no rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from .containers import DTYPE_NAMES, TensorInfo
from .sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# A name with `\1` groups, or a function of the match.
Template = str | Callable[[re.Match], str]
SHOWN = 8  # keys listed per kind of error
MAX_LAYERS = 10_000  # of a part of a model


# --------------------------------------------------------------------------------------
# Initial values
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Initialiser:
    """A named way to fill a new tensor. `fill(piece, generator, shape)` writes float32 values into one flat piece.

    The pieces of a tensor come in order from one generator, seeded by the plan's seed and the target's name, so the
    values depend on nothing else.
    """

    name: str
    fill: Callable[[torch.Tensor, torch.Generator, tuple[int, ...]], object]


def constant(value: float) -> Initialiser:
    return Initialiser(f"constant({value:g})", lambda piece, generator, shape: piece.fill_(value))


def normal(std: float, mean: float = 0.0) -> Initialiser:
    return Initialiser(
        f"normal(mean={mean:g}, std={std:g})",
        lambda piece, generator, shape: piece.normal_(mean, std, generator=generator),
    )


def truncated_normal(std: float) -> Initialiser:
    """Normal values of deviation `std`, cut at ±2 as PyTorch's `trunc_normal_` does by default."""

    def fill(piece, generator, shape):
        torch.nn.init.trunc_normal_(piece, std=std, generator=generator)

    return Initialiser(f"truncated_normal(std={std:g})", fill)


def linear_default() -> Initialiser:
    """PyTorch's default for the weight of a linear or convolution layer: uniform in ±1/sqrt(fan in)."""

    def fill(piece, generator, shape):
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        piece.uniform_(-bound, bound, generator=generator)

    return Initialiser("uniform(1/sqrt(fan_in))", fill)


def values(name: str, tensor: torch.Tensor) -> Initialiser:
    """Given numbers, for small buffers; `name` says in the report what they are."""
    # The position in the tensor is the number of elements handed out so far; small buffers come in one piece.
    return Initialiser(f"values({name})", lambda piece, generator, shape: piece.copy_(tensor.reshape(-1)))


zeros, ones = constant(0.0), constant(1.0)


# --------------------------------------------------------------------------------------
# Rules
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """One line of a recipe; made by the functions below.

    Attributes:
        pattern: matches whole source keys (`load`) or whole target names (`fill`).
        targets: names that the value goes to. Of several, the first counts as loaded, the others as copies of it.
        parts: for `split`: rows per target, or None for equal parts.
        partners: for `merge`: further source keys.
        function: pure function of the source tensors.
        reason: for `drop`.
        origin: for `copy`: the target to copy.
        initialiser: for `init`.
        when_taken: what to do about a target that already has a value: `"error"`, `"replace"` it or `"keep"` it.
    """

    kind: str
    pattern: str
    targets: tuple[Template, ...] = ()
    parts: tuple[int, ...] | None = None
    partners: tuple[Template, ...] = ()
    function: Callable[..., torch.Tensor] | None = None
    reason: str = ""
    origin: Template = ""
    initialiser: Initialiser | None = None
    when_taken: str = "error"

    def __post_init__(self):
        if self.when_taken not in ("error", "replace", "keep"):
            raise ValueError(f'`when_taken` must be "error", "replace" or "keep", got {self.when_taken!r}.')


def rename(pattern: str, target: Template | Iterable[Template], *, when_taken: str = "error") -> Rule:
    """The tensor as it is, under another name, or under several."""
    targets = (target,) if isinstance(target, str) or callable(target) else tuple(target)
    return Rule("rename", pattern, targets, when_taken=when_taken)


def split(
    pattern: str, targets: Iterable[Template], sizes: Iterable[int] | None = None, *, when_taken: str = "error"
) -> Rule:
    """Consecutive rows to several targets: equal parts, or `sizes` rows each. Only the needed rows are read."""
    return Rule("split", pattern, tuple(targets), tuple(sizes) if sizes else None, when_taken=when_taken)


def transform(
    pattern: str, target: Template, function: Callable[[torch.Tensor], torch.Tensor], *, when_taken: str = "error"
) -> Rule:
    """A pure function of one tensor. It is also called with meta tensors, to learn the shape."""
    return Rule("transform", pattern, (target,), function=function, when_taken=when_taken)


def merge(
    pattern: str,
    partners: Iterable[Template],
    target: Template,
    function: Callable[..., torch.Tensor],
    *,
    when_taken: str = "error",
) -> Rule:
    """A pure function of several tensors of a source: the one that matches, then its partners in their order."""
    return Rule("merge", pattern, (target,), partners=tuple(partners), function=function, when_taken=when_taken)


def drop(pattern: str, reason: str) -> Rule:
    """Leave a source key out, on purpose and for this reason."""
    return Rule("drop", pattern, reason=reason)


def copy(pattern: str, origin: Template) -> Rule:
    """For `fill`: give a target the value of another target."""
    return Rule("copy", pattern, origin=origin)


def init(pattern: str, initialiser: Initialiser) -> Rule:
    """For `fill`: give a target an initial value."""
    return Rule("init", pattern, initialiser=initialiser)


# --------------------------------------------------------------------------------------
# Plan
# --------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What an architecture's `plan` returns.

    Attributes:
        config: the model's configuration, complete.
        model_class: the class whose parameters and persistent buffers are the targets.
        load: rules per source name, in the order in which sources are worked through.
        fill: rules for the targets that no source filled.
        generation_config: content of `generation_config.json`, or None for models that do not generate.
        seed: seed of the initial values.
        notes: remarks for the report.
    """

    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    load: dict[str, list[Rule]]
    fill: list[Rule] = field(default_factory=list)
    generation_config: dict | None = None
    seed: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Read:
    """A tensor of a source, or its rows `[start, stop)`."""

    source: str
    key: str
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        rows = f"[{self.rows[0]}:{self.rows[1]}]" if self.rows else ""
        return f"{self.source}:{self.key}{rows}"


@dataclass(frozen=True)
class Entry:
    """One tensor of the output and where it comes from.

    Attributes:
        action: `"loaded"`, `"transformed"`, `"copied"` or `"initialised"`.
        origin: the same in words, for the report.
        info: shape and dtype in the output file.
    """

    target: str
    action: str
    origin: str
    info: TensorInfo
    reads: tuple[Read, ...] = ()
    function: Callable[..., torch.Tensor] | None = None
    initialiser: Initialiser | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.info.shape) * self.info.dtype.itemsize


@dataclass
class Resolution:
    """A plan applied to sources: every target and every source key accounted for.

    Attributes:
        entries: by target, in the order of the model.
        dropped: reason by `source:key`.
        equal: pairs that must hold equal numbers, because the configuration ties them.
        tied: stored target by the name that shares it.
    """

    entries: dict[str, Entry]
    dropped: dict[str, str]
    equal: list[tuple[Read, str]]
    tied: dict[str, str]


@dataclass(frozen=True)
class Skeleton:
    """Names, shapes and dtypes of a model, found on the meta device.

    Attributes:
        tensors: parameters and persistent buffers, tied names left out.
        tied: stored name by the name that shares it.
        keep_fp32: name patterns that stay float32 by dtype (the model's `_keep_in_fp32_modules`).
    """

    tensors: dict[str, TensorInfo]
    tied: dict[str, str]
    keep_fp32: dict[torch.dtype, tuple[str, ...]]


def check_depths(config: dict, place: str = "") -> None:
    """
    Refuse more layers than any model has: configurations list their kinds and models build them, one by one.

    Args:
        config: content of a config.json, or overrides.

    Raises:
        ValueError: a field that counts layers, however deep it lies, is beyond `MAX_LAYERS`.
    """
    for name, value in config.items():
        if isinstance(value, dict):
            check_depths(value, f"{place}{name}.")
        elif re.search(r"layers$|depth$|^depths$|blocks$|stages$", name):
            for number in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(number, (int, float)) and number > MAX_LAYERS:
                    raise ValueError(f"`{place}{name}` is {value!r:.80}, expected at most {MAX_LAYERS} layers.")


def skeleton(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> Skeleton:
    """Build the model without storage, in the contexts that `from_pretrained` builds it in."""
    with ExitStack() as stack:
        for context in model_class.get_init_context(torch.float32, False, False, None):
            stack.enter_context(context)
        model = model_class(config)
    tied = dict(model.all_tied_weights_keys)
    tensors = {
        name: TensorInfo(tuple(tensor.shape), tensor.dtype)
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    strict, fp16_only = (tuple(getattr(model, f"_keep_in_fp32_modules{kind}") or ()) for kind in ("_strict", ""))
    return Skeleton(tensors, tied, {torch.bfloat16: strict, torch.float16: strict + fp16_only})


def merge_config(config: dict, overrides: dict) -> dict:
    """`config` with the values of `overrides`; nested dictionaries are merged, anything else is replaced."""
    merged = dict(config)
    for key, value in overrides.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge_config(merged[key], value) if nested else value
    return merged


def build_config(config_class: type[PreTrainedConfig], content: dict, overrides: dict) -> PreTrainedConfig:
    """A configuration of `content` with the user's overrides.

    Raises:
        ValueError: an override names no field of the class or of its sub-configurations.
    """
    known = config_class(**content).to_dict()
    unknown = [key for key in overrides if key not in known]
    for name in config_class.sub_configs:
        if isinstance(overrides.get(name), dict):
            unknown += [f"{name}.{key}" for key in overrides[name] if key not in known[name]]
    if unknown:
        raise ValueError(
            f"Configuration overrides {unknown} are no fields of {config_class.__name__}; it has {sorted(known)}, "
            "those of its parts nested below their names."
        )
    return config_class.from_dict(merge_config(known, overrides))


def resolve(plan: Plan, sources: dict[str, Source], dtype: torch.dtype | None = None) -> Resolution:
    """Apply the rules of `plan` to the keys of `sources`.

    Args:
        dtype: floating-point tensors are stored in it; None keeps each one's own.

    Raises:
        ValueError: lists the source keys without a rule, the targets without a value, shapes and dtypes that differ.
    """
    if set(plan.load) != set(sources):
        raise ValueError(f"`load` of the plan must have rules for {sorted(sources)}, got {sorted(plan.load)}.")
    model = skeleton(plan.model_class, plan.config)
    resolver = _Resolver(plan, sources, model, dtype)
    for name, rules in plan.load.items():
        resolver.load(sources[name], rules)
    resolver.settle_tied()
    for rule in plan.fill:
        resolver.fill(rule)
    return resolver.finish()


class _Resolver:
    def __init__(self, plan: Plan, sources: dict[str, Source], model: Skeleton, dtype: torch.dtype | None):
        self.plan, self.sources, self.model, self.dtype = plan, sources, model, dtype
        self.entries: dict[str, Entry] = {}
        self.dropped: dict[str, str] = {}
        self.equal: list[tuple[Read, str]] = []
        self.problems: dict[str, list[str]] = {}
        for source in sources.values():
            self.dropped |= {f"{source.name}:{key}": reason for key, reason in source.ignored.items()}

    def problem(self, kind: str, what: str) -> None:
        self.problems.setdefault(kind, []).append(what)

    # ---- source keys

    def load(self, source: Source, rules: list[Rule]) -> None:
        matched, partners = {}, set()
        for key in source.keys():
            for rule in rules:
                match = re.fullmatch(rule.pattern, key)
                if match:
                    matched[key] = (rule, match)
                    partners.update(_expand(partner, match) for partner in rule.partners)
                    break
        for key in source.keys():
            if key in partners:
                continue
            if key not in matched:
                self.problem("source keys without a rule", f"{source.name}:{key} in {source.file(key)}")
                continue
            rule, match = matched[key]
            if rule.kind == "drop":
                self.dropped[f"{source.name}:{key}"] = rule.reason
            else:
                self.place(source, key, rule, match)

    def place(self, source: Source, key: str, rule: Rule, match: re.Match) -> None:
        """Assign the source key to the targets of its rule."""
        targets = [_expand(target, match) for target in rule.targets]
        keys = [key, *(_expand(partner, match) for partner in rule.partners)]
        absent = [k for k in keys if k not in source]
        if absent:
            self.problem("source keys that a rule needs beside another", f"{source.name}:{absent[0]} beside {key}")
            return
        infos = [source.info(k) for k in keys]
        if rule.kind == "split":
            rows = self.split_rows(source, key, infos[0], targets, rule.parts)
        else:
            rows = [None] * len(targets)
        for position, (target, part) in enumerate(zip(targets, rows)):
            reads = tuple(Read(source.name, k, part) for k in keys)
            if rule.function:
                name = getattr(rule.function, "__name__", repr(rule.function))
                origin = f"{name}({', '.join(map(str, reads))})"
                info = _result_of(rule.function, infos)
                action = "transformed"
            else:
                origin = str(reads[0])
                shape = infos[0].shape if part is None else (part[1] - part[0], *infos[0].shape[1:])
                info = TensorInfo(shape, infos[0].dtype)
                action = "transformed" if part else "copied" if position else "loaded"
            self.assign(Entry(target, action, origin, info, reads, rule.function), rule.when_taken)

    def split_rows(self, source, key, info, targets, sizes) -> list[tuple[int, int]]:
        count = info.shape[0] if info.shape else 0
        if sizes is None:
            sizes = (count // len(targets),) * len(targets)
        if sum(sizes) != count or len(sizes) != len(targets):
            self.problem(
                "source tensors that cannot be split", f"{source.name}:{key} {list(info.shape)} into {list(sizes)}"
            )
            return []
        stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [(stop - size, stop) for stop, size in zip(stops, sizes)]

    def assign(self, entry: Entry, when_taken: str) -> None:
        wanted = self.model.tensors.get(self.model.tied.get(entry.target, entry.target))
        where = f"{entry.origin} {list(entry.info.shape)}"
        if entry.reads and entry.reads[0].key in self.sources[entry.reads[0].source]:
            where += f" in {self.sources[entry.reads[0].source].file(entry.reads[0].key)}"
        if wanted is None:
            self.problem("source keys whose target the model does not have", f"{where} → {entry.target}")
            return
        if entry.info.shape != wanted.shape:
            self.problem("shapes that differ", f"{where} → {entry.target} {list(wanted.shape)}")
            return
        taken = self.entries.get(entry.target)
        if taken and when_taken == "error":
            self.problem("targets with two values", f"{entry.target} from {taken.origin} and {entry.origin}")
        elif taken and when_taken == "keep":
            self.drop_reads(entry, f"not used: {entry.target} already comes from {taken.origin}")
        else:
            if taken:
                self.drop_reads(taken, f"replaced: {entry.target} comes from {entry.origin}")
            dtype = self.stored_dtype(entry, wanted, where)
            self.entries[entry.target] = replace(entry, info=TensorInfo(entry.info.shape, dtype))

    def drop_reads(self, entry: Entry, reason: str) -> None:
        for read in entry.reads:
            self.dropped[str(read)] = reason

    def stored_dtype(self, entry: Entry, wanted: TensorInfo, where: str) -> torch.dtype:
        """The dtype on disk, after a check that source and model mean the same kind of number."""
        dtype = entry.info.dtype or wanted.dtype
        if dtype.is_floating_point != wanted.dtype.is_floating_point or (
            not dtype.is_floating_point and dtype != wanted.dtype
        ):
            self.problem("dtypes that differ", f"{where} is {dtype} → {entry.target} is {wanted.dtype}")
        elif dtype.is_floating_point and dtype.itemsize == 1:
            self.problem(
                "dtypes that differ",
                f"{where} is {dtype}: quantised weights need their scales; use an unquantised checkpoint",
            )
        return self.cast(entry.target, dtype)

    def cast(self, target: str, dtype: torch.dtype) -> torch.dtype:
        if self.dtype is None or not dtype.is_floating_point:
            return dtype
        kept = self.model.keep_fp32.get(self.dtype, ())
        if any(re.search(pattern.replace("*", ".*"), target) for pattern in kept):
            return torch.float32
        return self.dtype

    def settle_tied(self) -> None:
        """Store a tied value once: under its own name, after checking that a second copy holds the same numbers."""
        for alias, name in self.model.tied.items():
            entry = self.entries.pop(alias, None)
            if entry is None:
                continue
            if name not in self.entries:
                self.entries[name] = replace(entry, target=name)
                continue
            for read in entry.reads:
                self.dropped[str(read)] = f"tied to {name}"
                self.equal.append((read, name))

    # ---- targets that no source filled

    def fill(self, rule: Rule) -> None:
        for target, info in self.model.tensors.items():
            match = re.fullmatch(rule.pattern, target)
            if target in self.entries or not match:
                continue
            if rule.kind == "copy":
                origin = _expand(rule.origin, match)
                original = self.entries.get(origin)
                if original is None:
                    self.problem("targets to copy that have no value", f"{origin} for {target}")
                    continue
                entry = replace(original, target=target, action="copied", origin=f"copy of {origin}")
                if original.info.shape != info.shape:
                    self.problem(
                        "shapes that differ", f"{origin} {list(original.info.shape)} → {target} {list(info.shape)}"
                    )
            else:
                name = rule.initialiser.name
                dtype = self.new_dtype() if info.dtype.is_floating_point else info.dtype
                dtype = self.cast(target, dtype)
                entry = Entry(target, "initialised", name, TensorInfo(info.shape, dtype), initialiser=rule.initialiser)
            self.entries[target] = entry

    def new_dtype(self) -> torch.dtype:
        """The dtype of new tensors: the one most of the loaded parameters have."""
        counts: dict[torch.dtype, int] = {}
        for entry in self.entries.values():
            if entry.reads and entry.info.dtype.is_floating_point:
                counts[entry.info.dtype] = counts.get(entry.info.dtype, 0) + math.prod(entry.info.shape)
        return max(counts, key=counts.get, default=torch.float32)

    def finish(self) -> Resolution:
        for target, info in self.model.tensors.items():
            if target not in self.entries:
                self.problem("parameters of the model without a value", f"{target} {list(info.shape)}")
        if self.problems:
            lines = []
            for kind, items in self.problems.items():
                lines.append(f"{len(items)} {kind}:")
                lines += [f"    {item}" for item in items[:SHOWN]]
                lines += [f"    … and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
            model = self.plan.model_class.__name__
            raise ValueError(f"The sources do not make a {model} of this configuration.\n" + "\n".join(lines))
        entries = {target: self.entries[target] for target in self.model.tensors}
        return Resolution(entries, self.dropped, self.equal, self.model.tied)


def _expand(template: Template, match: re.Match) -> str:
    return template(match) if callable(template) else match.expand(template)


def _result_of(function: Callable[..., torch.Tensor], infos: list[TensorInfo]) -> TensorInfo:
    """Shape and dtype of `function`'s result, from a run on the meta device."""
    inputs = [torch.empty(info.shape, dtype=info.dtype or torch.float32, device="meta") for info in infos]
    result = function(*inputs)
    return TensorInfo(tuple(result.shape), result.dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """Its name in a safetensors header."""
    return DTYPE_NAMES[dtype]

"""`convert`: from checkpoints to a complete Hub folder, tensor by tensor."""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from .architectures.registry import architecture
from .recipe import Plan, Resolution, check_depths, resolve
from .remote_code import copy_code
from .report import REPORT_NAME, Report
from .sources import Source, open_source
from .staging import Staging, check_output, resolve_output
from .streams import check_equal, pieces
from .writer import INDEX_NAME, Shard, ShardWriter, index_of, parse_size, plan_shards, sha256_of

OTHER_FILES = 64 * 2**20  # bytes reserved for what lies beside the weights: tokenizer, code, reports
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def convert(
    arch: str,
    sources: Mapping[str, str | Path],
    output: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    config_overrides: dict | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> Report:
    """
    Convert published checkpoints to a folder that `from_pretrained(output, trust_remote_code=True)` loads.

    No model is instantiated: tensors pass from the mapped source files to the shards, so the memory in use does not
    grow with the checkpoint. `output` appears complete or not at all. A run that was killed is continued by the same
    call, without writing finished shards again.

    Args:
        arch: architecture, one of `ARCHITECTURES`.
        sources: path or Hub id by the names that the architecture knows (see `convert_weights.sources`).
        output: folder to make; it must not exist, or be empty. A link stands for the folder that it leads to.
        dtype: of floating-point tensors, such as `"bfloat16"`. None keeps each one's own.
        max_shard_size: bytes, or such as `"5GB"`.
        config_overrides: values for the configuration, nested as in `config.json`.
        overwrite: replace what an earlier conversion wrote to `output`, if nothing else is there and nothing was
            changed.
        dry_run: report what would be done, without reading weights or writing.
        progress: show a progress bar.

    Returns:
        What was done with every tensor; also saved as `conversion_report.json` in `output`.

    Raises:
        ValueError: a source is damaged or does not fit the architecture, holds a NaN, or was changed while it was read;
            files and keys are named.
        OSError: a file is missing, the disk is full, `output` exists or is in use. Nothing is left behind.
    """
    module = architecture(arch)
    _check_source_names(arch, module, sources)
    torch_dtype, shard_size = _parse_dtype(dtype), parse_size(max_shard_size)
    output, replaceable = Path(output), written_files if overwrite else None
    if not dry_run:
        check_output(output, replaceable)
    opened = {name: open_source(name, location) for name, location in sources.items()}
    for config in (*(source.config for source in opened.values()), config_overrides or {}):
        check_depths(config)
    with _told_as_value_error(arch, opened):
        plan: Plan = module.plan(opened, config_overrides or {})
        resolution = resolve(plan, opened, torch_dtype)
        _complete_config(plan, resolution, torch_dtype)
        _check_generation(plan.generation_config or {})
    shards = plan_shards(resolution.entries.values(), shard_size)
    report = _describe(arch, plan, resolution, opened, shards)
    if dry_run:
        return report
    for source in opened.values():
        if not source.has_weights:
            raise ValueError(f"{source.files[0]} lists names and shapes, not weights: it serves a dry run only.")
    _check_apart(output, opened)
    fingerprint = _fingerprint(arch, module, plan, resolution, opened, shards)
    with Staging(output, fingerprint, replaceable) as staging:
        _check_space(staging, shards)
        with _told_as_value_error(arch, opened):  # before the weights: what is wrong with it is known at once
            report.notes += module.write_processor(opened, plan.config, staging.folder)
            _write_generation_config(staging.folder, plan)
        for read, target in resolution.equal:
            check_equal(read, resolution.entries[target], opened)
        _write_weights(staging, shards, opened, plan, report, progress)
        _check_unchanged(opened, report)
        _write_other_files(staging.folder, plan, shards)
        _hash_outputs(report, staging)
        report.save(staging.folder)
        staging.commit()
    return report


def written_files(folder: Path) -> dict[str, dict]:
    """Bytes and sha256, by name, of the files that a conversion wrote into a folder."""
    return {**Report.load(folder).outputs, REPORT_NAME: {}}


@contextmanager
def _told_as_value_error(arch: str, sources: dict[str, Source]) -> Iterator[None]:
    """The files beside the weights, and the user's overrides, may hold anything: what comes of it is told in words."""
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError):
        raise
    except Exception as error:  # config classes, tokenizers and processors raise whatever their values make them
        places = ", ".join(f"`{source.name}` ({source.location})" for source in sources.values())
        words = " ".join(str(error).split()) or "no more is known"
        raise ValueError(
            f"No {arch} can be made from what config.json and the files beside it say of {places}, and from the "
            f"configuration overrides: {words:.500} ({type(error).__name__})."
        ) from error


def _check_apart(output: Path, sources: dict[str, Source]) -> None:
    """An input is never replaced, even if an earlier conversion wrote it."""
    place = resolve_output(output)
    for source in sources.values():
        for path in source.files:
            if place in path.resolve().parents:
                raise ValueError(
                    f"`output` {output} holds {path}, which source `{source.name}` reads: choose another output."
                )


def _check_source_names(arch: str, module: ModuleType, sources: Mapping) -> None:
    if set(sources) not in [set(names) for names in module.SOURCES]:
        accepted = " or ".join(" + ".join(f"`{name}`" for name in names) for names in module.SOURCES)
        raise ValueError(f"`sources` of {arch} must be {accepted}, got {sorted(sources) or 'none'}.")


def _parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    found = known.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and found not in known.values():
        raise ValueError(f"`dtype` must be one of {list(known)}, got {dtype!r}.")
    return found


def _check_generation(content: dict) -> None:
    """Ids of tokens are what every answer begins and ends with; transformers looks at them when it is too late."""
    for name, value in content.items():
        ids = value if isinstance(value, list) else [value]
        if name.endswith("_token_id") and not all(one is None or type(one) is int for one in ids):
            raise ValueError(f"generation_config.json of a source: {name} is {value!r:.80}, expected ids of tokens.")


def _complete_config(plan: Plan, resolution: Resolution, dtype: torch.dtype | None) -> None:
    """Record in the configuration which class and dtype to load.

    A note of how weights were once packed does not describe these, which are plain numbers (the recipes refuse others),
    and would keep `from_pretrained` from loading them.
    """
    for name in ("", *plan.config.sub_configs):
        config = getattr(plan.config, name, None) if name else plan.config
        if config is not None and hasattr(config, "quantization_config"):
            delattr(config, "quantization_config")
            where = f"`{name}.quantization_config`" if name else "`quantization_config`"
            plan.notes.append(f"{where} of the source is left out: its weights are not quantised")
    for config in (plan.config, *(getattr(plan.config, name, None) for name in plan.config.sub_configs)):
        known = getattr(config, "dtype", None)
        if known is not None and not isinstance(known, torch.dtype):
            raise ValueError(f"config.json of a source has the dtype {known!r:.80}, expected one such as bfloat16.")
    plan.config.architectures = [plan.model_class.__name__]
    if dtype is None and getattr(plan.config, "dtype", None) is None:
        sizes: Counter[torch.dtype] = Counter()
        for entry in resolution.entries.values():
            stored = entry.info.dtype
            if stored is not None and stored.is_floating_point:
                sizes[stored] += entry.nbytes
        dtype = sizes.most_common(1)[0][0] if sizes else torch.float32
    if dtype is not None:
        parts = [getattr(plan.config, name, None) for name in plan.config.sub_configs]
        for config in (plan.config, *parts):
            if config is not None:
                config.dtype = dtype


def _describe(arch: str, plan: Plan, resolution: Resolution, sources: dict[str, Source], shards: list[Shard]) -> Report:
    import safetensors
    import transformers

    file_of = {entry.target: shard.name for shard in shards for entry in shard.entries}
    return Report(
        architecture=arch,
        model_class=plan.model_class.__name__,
        sources=[
            {
                "name": source.name,
                "location": source.location,
                "files": [{"name": p.name, "bytes": p.stat().st_size, "sha256": None} for p in source.files],
            }
            for source in sources.values()
        ],
        tensors={
            entry.target: {
                "action": entry.action,
                "from": entry.origin,
                "shape": list(entry.info.shape),
                "dtype": str(entry.info.dtype).removeprefix("torch."),
                "file": file_of[entry.target],
            }
            for entry in resolution.entries.values()
        },
        tied=resolution.tied,
        dropped=resolution.dropped,
        notes=list(plan.notes),
        versions={
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "safetensors": safetensors.__version__,
        },
    )


def _fingerprint(arch, module, plan, resolution, sources, shards) -> str:
    """Of all that determines the weight files: an interrupted run is continued only if nothing of it changed."""
    converter = [path.read_text() for path in sorted(Path(__file__).parent.rglob("*.py"))]
    content = {
        "arch": arch,
        "recipe": [inspect.getsource(module), *converter],
        "config": plan.config.to_json_string(use_diff=False),
        "seed": plan.seed,
        "files": [
            [source.name, str(path.resolve()), *state]
            for source in sources.values()
            for path, state in source.states.items()
        ],
        "tensors": [[entry.target, entry.origin] for entry in resolution.entries.values()],
        "shards": [[shard.name, hashlib.sha256(shard.header).hexdigest()] for shard in shards],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_space(staging: Staging, shards: list[Shard]) -> None:
    needed = OTHER_FILES + sum(shard.nbytes for shard in shards if shard.name not in staging.finished)
    free = shutil.disk_usage(staging.folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free", str(staging.output)
        )


def _write_weights(
    staging: Staging,
    shards: list[Shard],
    sources: dict[str, Source],
    plan: Plan,
    report: Report,
    progress: bool,
) -> None:
    """Write the shards that are not finished yet, hashing the source files in threads beside it."""
    from tqdm.auto import tqdm

    total = sum(shard.nbytes for shard in shards)
    done = sum(shard.nbytes for shard in shards if shard.name in staging.finished)
    bar = tqdm(total=total, initial=done, unit="B", unit_scale=True, desc="converting", disable=not progress)
    stop = threading.Event()
    with bar, _one_compute_thread(), ThreadPoolExecutor(2, thread_name_prefix="sha256") as pool:
        try:
            hashes = [
                (record, pool.submit(_source_hash, staging, path, stop))
                for source, description in zip(sources.values(), report.sources)
                for path, record in zip(source.files, description["files"])
            ]
            with ShardWriter(
                staging.folder, lambda s, digest: staging.finish(s.name, sha256=digest), bar.update
            ) as writer:
                for shard in shards:
                    if shard.name not in staging.finished:
                        writer.write(shard, partial(pieces, sources=sources, seed=plan.seed))
            bar.set_description("hashing sources")
            for record, future in hashes:
                record["sha256"] = future.result()
        except OSError as error:
            if error.errno in DISK_FULL:
                raise OSError(
                    error.errno, f"{error.strerror} while writing the weights", str(staging.output)
                ) from error
            raise
        finally:
            stop.set()


@contextmanager
def _one_compute_thread() -> Iterator[None]:
    """Threads of torch's own have nothing to do here that is worth their waiting loops, which take processors from the
    threads that hash and write."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _source_hash(staging: Staging, path: Path, stop: threading.Event) -> str:
    fact = f"sha256 of {path.resolve()}"
    if fact not in staging.facts:
        digest = sha256_of(path, stop)
        if stop.is_set():
            return ""
        staging.remember(fact, digest)
    return staging.facts[fact]


def _check_unchanged(sources: dict[str, Source], report: Report) -> None:
    """
    Refuse sources that were changed while they were read: by size, times and place on disk, and by their hash where a
    file had been written so lately that times may not tell.

    Raises:
        ValueError: one was.
    """
    for source, description in zip(sources.values(), report.sources):
        for path, record in zip(source.files, description["files"]):
            if source.changed(path) or (source.is_fresh(path) and sha256_of(path) != record["sha256"]):
                raise ValueError(
                    f"{path} of source `{source.name}` was changed while it was read: convert again once it is "
                    "complete."
                )


def _write_generation_config(folder: Path, plan: Plan) -> None:
    if plan.generation_config is not None:
        from transformers import GenerationConfig

        GenerationConfig.from_dict(plan.generation_config).save_pretrained(folder)


def _write_other_files(folder: Path, plan: Plan, shards: list[Shard]) -> None:
    """Index, configuration and code: with them the folder is a model, so they come last."""
    if len(shards) > 1:
        (folder / INDEX_NAME).write_text(json.dumps(index_of(shards), indent=2) + "\n")
    plan.config.save_pretrained(folder)
    copy_code(folder, plan.config.model_type)


def _hash_outputs(report: Report, staging: Staging) -> None:
    for path in sorted(staging.folder.rglob("*")):
        if path.is_file() and path.name != REPORT_NAME:
            name = path.relative_to(staging.folder).as_posix()
            known = staging.finished.get(name)
            digest = known["sha256"] if known else sha256_of(path)
            report.outputs[name] = {"bytes": path.stat().st_size, "sha256": digest}

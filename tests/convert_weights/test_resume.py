"""Interruptions: no folder that looks complete, and no shard written twice."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert_weights import convert, verify
from tests.convert_weights import toy
from tests.convert_weights.forks import run_script


@pytest.fixture
def partial(output):
    return output.with_name(f".{output.name}.partial")


@pytest.fixture
def interrupted(run, output, partial, monkeypatch):
    """A conversion into shards of 600 bytes, stopped in the middle of a shard by `how()`."""

    def interrupt(how):
        with monkeypatch.context() as patch:
            patch.setattr(toy, "interrupt", lambda: how() if partial.exists() else None)
            run(max_shard_size=600)

    return interrupt


def keyboard():
    raise KeyboardInterrupt


def identity(path):
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def finished_shards(output):
    lines = output.with_name(f".{output.name}.journal").read_text().splitlines()
    return [line["file"] for line in map(json.loads, lines) if "file" in line]


def test_an_interruption_leaves_no_output(interrupted, output, partial):
    with pytest.raises(KeyboardInterrupt):
        interrupted(keyboard)
    assert not output.exists() and not (partial / "config.json").exists()


def test_a_second_run_keeps_finished_shards(interrupted, run, output, partial):
    with pytest.raises(KeyboardInterrupt):
        interrupted(keyboard)
    shards = finished_shards(output)
    before = {shard: identity(partial / shard) for shard in shards}
    assert len(shards) >= 3
    run(max_shard_size=600)
    assert {shard: identity(output / shard) for shard in shards} == before
    assert verify(output, progress=False) == []


def test_a_continued_run_gives_the_same_files_as_an_undisturbed_one(interrupted, run, output, source, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(keyboard)
    continued = run(max_shard_size=600)
    straight = convert("toy", {"toy": source}, tmp_path / "straight", max_shard_size=600, progress=False)
    assert continued.outputs == straight.outputs and continued.sources == straight.sources


def test_an_error_removes_everything(interrupted, output):
    def fail():
        raise RuntimeError("broken rule")

    with pytest.raises(RuntimeError, match="broken rule"):
        interrupted(fail)
    assert not output.parent.exists()


def test_other_options_start_afresh(interrupted, run, output, partial):
    with pytest.raises(KeyboardInterrupt):
        interrupted(keyboard)
    before = identity(partial / finished_shards(output)[0])
    with pytest.warns(UserWarning, match="other settings"):
        run(max_shard_size=600, dtype="bfloat16")
    first = sorted(output.glob("*.safetensors"))[0]
    assert identity(first) != before
    assert verify(output, progress=False) == []


def test_a_changed_source_starts_afresh(interrupted, run, output, source, state):
    with pytest.raises(KeyboardInterrupt):
        interrupted(keyboard)
    state["emb.weight"] += 1
    save_file(state, source / "model.safetensors")
    run(max_shard_size=600)
    assert torch.equal(load_file(sorted(output.glob("*.safetensors"))[0])["embed.weight"], state["emb.weight"])


def test_a_journal_cut_off_in_the_middle_of_a_line_is_read_up_to_there(interrupted, run, output, partial):
    with pytest.raises(KeyboardInterrupt):
        interrupted(keyboard)
    journal = output.with_name(f".{output.name}.journal")
    os.truncate(journal, journal.stat().st_size - 7)
    lines = journal.read_text().splitlines()
    kept = [json.loads(line)["file"] for line in lines[:-1] if '"file"' in line]
    before = {shard: identity(partial / shard) for shard in kept}
    run(max_shard_size=600)
    assert {shard: identity(output / shard) for shard in kept} == before
    assert verify(output, progress=False) == []


def test_a_shard_that_lost_bytes_is_written_again(interrupted, run, output, partial):
    with pytest.raises(KeyboardInterrupt):
        interrupted(keyboard)
    os.truncate(partial / finished_shards(output)[0], 5)
    run(max_shard_size=600)
    assert verify(output, progress=False) == []


def test_an_interruption_between_the_last_shard_and_the_rename(run, output, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(toy.ToyConfig, "save_pretrained", lambda *_: keyboard())
        with pytest.raises(KeyboardInterrupt):
            run(max_shard_size=600)
    assert not output.exists()
    run(max_shard_size=600)
    assert verify(output, progress=False) == []


def test_an_interruption_after_the_rename_leaves_a_complete_folder(run, output, source):
    """What a kill between rename and clean-up leaves: the journal. The next run removes it."""
    run()
    journal = output.with_name(f".{output.name}.journal")
    journal.write_text("")
    assert verify(output, progress=False) == []
    with pytest.raises(FileExistsError):
        run()


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from convert_weights import ARCHITECTURES, convert
from tests.convert_weights import toy
ARCHITECTURES["toy"] = "tests.convert_weights.toy"
source, output, size, kill = sys.argv[1:5]
partial = Path(output).with_name("." + Path(output).name + ".partial")
if kill == "self":
    toy.interrupt = lambda: os.kill(os.getpid(), signal.SIGKILL) if partial.exists() else None
elif kill != "never":
    # Processor time, not the clock: the same moment of the work on a busy machine. Nothing handles the signal,
    # so the kernel ends the process on the spot, as SIGKILL does.
    signal.setitimer(signal.ITIMER_PROF, float(kill))
began = time.process_time()
convert("toy", {"toy": source}, output, max_shard_size=int(size), progress=False)
print(time.process_time() - began)
"""


def start(source, output, size, kill="never"):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(source), str(output), str(size), str(kill)], stdout=subprocess.PIPE
    )


def test_sigkill_in_the_middle_of_a_shard(source, output, partial, run):
    assert run_script(SCRIPT, source, output, 600, "self")[0] == -signal.SIGKILL
    shards = finished_shards(output)
    before = {shard: identity(partial / shard) for shard in shards}
    assert len(shards) >= 3 and not output.exists()
    run(max_shard_size=600)
    assert {shard: identity(output / shard) for shard in shards} == before
    assert verify(output, progress=False) == []


@pytest.mark.slow
def test_sigkill_at_random_moments(tmp_path, output, partial):
    """Killed again and again anywhere between start and end, then left alone: the result is the undisturbed one."""
    source = tmp_path / "big.safetensors"
    save_file(toy.checkpoint(width=512, layers=40, vocab_size=100_000), source)
    straight = tmp_path / "straight"
    convert("toy", {"toy": source}, straight, max_shard_size=12_000_000, progress=False)

    process = start(source, tmp_path / "timed", 12_000_000)
    whole = float(process.communicate()[0])

    moments, kills, kept = random.Random(0), 0, {}
    while kills < 25 and not output.exists():
        # The first three together are shorter than the work, the later ones long enough to always get on.
        process = start(source, output, 12_000_000, max(1e-3, moments.uniform(0.0, whole * (kills + 1) / 8)))
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGPROF
        kills += 1
        if output.exists():  # only ever complete
            assert verify(output, progress=False) == []
            break
        # Shards finished before an earlier kill are the same files still.
        if output.with_name(f".{output.name}.journal").exists() and partial.exists():
            now = {shard: identity(partial / shard) for shard in finished_shards(output)}
            assert kept.items() <= now.items()
            kept = now
    assert kills >= 3 and kept
    if not output.exists():
        assert start(source, output, 12_000_000).wait() == 0
    for path in straight.glob("*.safetensors"):
        assert path.read_bytes() == (output / path.name).read_bytes()
    assert {shard: identity(output / shard) for shard in kept} == kept
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    shutil.rmtree(straight)

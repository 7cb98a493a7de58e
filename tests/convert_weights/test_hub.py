"""`hub` assembles every converted model into one repository."""

import hashlib
import json
import os
import shutil
import signal
from collections import defaultdict

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

import modeling_dsr  # noqa: F401  registers the classes
from convert_weights import HubReport, assemble, verify
from convert_weights.remote_code import code_files
from convert_weights.repository.card import check_card
from convert_weights.repository.files import beside
from convert_weights.repository.smoke import INPUTS
from convert_weights.repository.verification import try_out
from dsr_toolkit.cli import main as dsr
from dsr_toolkit.tiny import SOURCES
from tests.convert_weights.repositories import folders, hub_cache, report, repository

AUTO = {c.__name__: c for c in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText)}


def inside(kind):
    return repository() if kind == "dsr" else repository() / kind


def card():
    return ModelCard((repository() / "README.md").read_text())


# ---- What is where ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(SOURCES))
def test_each_model_is_complete_in_its_own_folder_but_for_the_code(kind):
    """Byte for byte what the conversion made; the code is at the root and nowhere else."""
    converted = folders()[kind]
    for path in converted.iterdir():
        if path.suffix == ".py":
            assert kind == "dsr" or not (inside(kind) / path.name).exists()
        elif path.name != "conversion_report.json":
            assert (inside(kind) / path.name).read_bytes() == path.read_bytes()


def test_the_code_at_the_root_is_the_library_s():
    assert {path.name for path in repository().glob("*.py")} >= code_files().keys()
    for name, path in code_files().items():
        assert (repository() / name).read_bytes() == path.read_bytes()


def test_the_endpoint_s_files_lie_beside_the_weights():
    for name in ("handler.py", "endpoint/ask.py", "requirements.txt"):
        assert (repository() / name).read_bytes() == (beside("hub") / name).read_bytes()
        assert name in report().files


def test_identical_tensors_are_reported_with_their_bytes():
    holders, sizes = defaultdict(set), {}
    for kind, folder in folders().items():
        for path in folder.glob("*.safetensors"):
            for tensor in load_file(path).values():
                key = (tensor.dtype, tensor.shape, hashlib.sha256(tensor.numpy().tobytes()).digest())
                holders[key].add(kind)
                sizes[key] = tensor.numel() * tensor.element_size()
    again = {key: kinds for key, kinds in holders.items() if len(kinds) > 1}
    assert len(report().shared) == len(again) > 0
    assert report().shared_bytes == sum(sizes[key] * (len(kinds) - 1) for key, kinds in again.items()) > 0
    encoder = "model.geometry_encoder.encoder.layer.0.mlp.fc1.weight"
    shared = next(entry for entry in report().shared.values() if encoder in entry["in"].get("dsr", []))
    assert set(shared["in"]) == {"dsr", "pi3"}  # made of the same π³ checkpoint


def test_the_report_is_printed(tmp_path, capsys):
    (tmp_path / "scores.yaml").write_text(yaml.safe_dump([RESULT]))
    arguments = ["--model", f"dsr={folders()['dsr']}", "--model", f"pi3={folders()['pi3']}", "--link"]
    arguments += ["--license", "dsr.qwen=apache-2.0", "--eval-results", f"pi3={tmp_path / 'scores.yaml'}"]
    assert dsr(["convert", "hub", *arguments, "--output", str(tmp_path / "repo"), "--quiet"]) == 0  # passed on
    printed = capsys.readouterr().out
    assert (tmp_path / "repo" / ".eval_results" / "pi3.yaml").is_file() and "| dsr | qwen | " in printed
    assert (
        "unknown" not in printed
        and "dsr and pi3: " in printed
        and "no commercial use" in printed
        and "AutoModel -> Pi3Model" in printed
    )


# ---- The card --------------------------------------------------------------------------


def test_the_card_has_front_matter_that_the_hub_accepts():
    data = card().data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert {"spatial-reasoning", "cad", "image-segmentation"} <= set(data.tags)
    check_card((repository() / "README.md").read_text())


@pytest.mark.parametrize(
    "front, words",
    [
        ("", "no front matter"),
        ("---\n[1, 2\n---\n", "front matter"),
        ("---\nlicense: other\nlibrary_name: transformers\npipeline_tag: x\n---\n", "license_name"),
        ("---\nlicense: [a]\nlibrary_name: transformers\npipeline_tag: x\n---\n", "`license` must be"),
        ("---\nlicense: mit\nlibrary_name: t\npipeline_tag: x\ntags: [1]\n---\n", "`tags` must be"),
        ("---\nlicense: mit\nlibrary_name: t\npipeline_tag: x\nbase_model: a/b/c\n---\n", "a/b/c"),
        ("---\nlicense: mit\nlibrary_name: t\npipeline_tag: x\nbase_model_relation: y\n---\n", "base_model_relation"),
    ],
)
def test_front_matter_that_the_hub_would_refuse(front, words):
    with pytest.raises(ValueError, match=words):
        check_card(front + "\n# A model\n")


def test_the_card_tells_what_each_subfolder_is_and_needs():
    rows = [line for line in card().text.splitlines() if line.startswith("| `") or line.startswith("| the root")]
    assert len(rows) == len(folders())
    assert any(row.startswith("| `page4d` | PAGE-4D | frames") and "`AutoModel`" in row for row in rows)


def test_the_card_tells_every_source_s_licence():
    rows = (repository() / "LICENSE.md").read_text()
    for one in report().all_terms:
        row = next(line for line in rows.splitlines() if line.startswith(f"| {one.model} | {one.source} |"))
        assert row in card().text and one.title in row
    assert "| pi3 | pi3 | `Pi3-tiny/model.safetensors` | CC BY-NC 4.0 | no commercial use |" in rows


def test_unknown_terms_make_the_card_s_licence_other():
    assert (card().data.license, card().data.license_link) == ("other", "LICENSE.md")


def test_only_sections_of_models_that_are_there(tmp_path):
    found = assemble(
        {"dsr": folders()["dsr"], "geometry": folders()["pi3"]},
        tmp_path / "repo",
        licenses={"dsr.qwen": "apache-2.0"},
        progress=False,
    )
    text = (tmp_path / "repo" / "README.md").read_text()
    assert "## π³ and Pi3X" in text and "## PAGE-4D" not in text and "<!-- begin" not in text
    assert 'subfolder="geometry"' in text and 'subfolder="pi3"' not in text
    assert ModelCard(text).data.license == "cc-by-nc-4.0"  # the strictest of all, now that all are known
    assert {one.license for one in found.all_terms} == {"apache-2.0", "cc-by-nc-4.0"}


# ---- Measured results ------------------------------------------------------------------

RESULT = {"dataset": {"id": "org/bench", "task_id": "all"}, "value": 0.5, "date": "2026-11-01"}


def test_results_are_there_only_where_measured(tmp_path):
    assert not (repository() / ".eval_results").exists()
    (tmp_path / "scores.yaml").write_text(yaml.safe_dump([RESULT]))
    models = {"dsr": folders()["dsr"]}
    assemble(models, tmp_path / "repo", evaluations={"dsr": tmp_path / "scores.yaml"}, progress=False)
    (path,) = (tmp_path / "repo" / ".eval_results").iterdir()
    (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert path.name == "dsr.yaml" and (entry.dataset_id, entry.value) == ("org/bench", 0.5)
    assert ".eval_results/dsr.yaml" in HubReport.load(tmp_path / "repo").files


@pytest.mark.parametrize(
    "content, words",
    [
        ("[{", "format of results"),
        ("[]", "holds no result"),
        (yaml.safe_dump([{"value": 1}]), "format of results"),
        (yaml.safe_dump([RESULT | {"value": float("nan")}]), "expected a measured number"),
        (yaml.safe_dump([{key: value for key, value in RESULT.items() if key != "date"}]), "no `date`"),
    ],
)
def test_results_that_were_not_measured(tmp_path, content, words):
    (tmp_path / "scores.yaml").write_text(content)
    with pytest.raises(ValueError, match=words):
        assemble(
            {"dsr": folders()["dsr"]},
            tmp_path / "repo",
            evaluations={"dsr": tmp_path / "scores.yaml"},
            progress=False,
        )
    assert not (tmp_path / "repo").exists()


# ---- What is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    "models, options, words",
    [
        ({"pi3": "pi3"}, {}, "must name the one at the root"),
        ({"dsr": "pi3"}, {}, "must be a dsr model"),
        ({"dsr": "dsr", "a/b": "pi3"}, {}, "subfolder's name"),
        ({"dsr": "dsr", "..": "pi3"}, {}, "subfolder's name"),
        ({"dsr": "dsr"}, {"licenses": {"dsr.quen": "mit"}}, "no MODEL.SOURCE"),
        ({"dsr": "dsr"}, {"licenses": {"dsr.qwen": "Apache 2 | x"}}, "as the Hub writes them"),
        ({"dsr": "dsr"}, {"evaluations": {"pi3": "x"}}, "no model here"),
    ],
)
def test_what_cannot_be_assembled(tmp_path, models, options, words):
    with pytest.raises(ValueError, match=words):
        named = {name: folders()[kind] for name, kind in models.items()}
        assemble(named, tmp_path / "repo", **options, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        assemble({"dsr": folders()["dsr"]}, tmp_path, progress=False)


@pytest.mark.parametrize(
    "damage, error",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"), ValueError),
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), ValueError),
        (lambda path: path.unlink(), FileNotFoundError),
    ],
    ids=["a changed byte", "a truncated file", "a missing file"],
)
def test_damaged_weights_are_named_and_nothing_is_left(tmp_path, damage, error):
    shutil.copytree(folders()["pi3"], tmp_path / "pi3")
    damage(tmp_path / "pi3" / "model.safetensors")
    with pytest.raises(error, match="pi3/model.safetensors"):
        assemble({"dsr": folders()["dsr"], "pi3": tmp_path / "pi3"}, tmp_path / "repo", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["pi3"]


def test_an_interrupted_assembly_is_continued(tmp_path):
    """Interrupted again and again while copying: finished files stay as they are, and the result is the same."""
    output, journal, finished, inodes = tmp_path / "repo", tmp_path / ".repo.journal", [0], {}

    def interrupt(number, frame):
        if journal.exists() and len(journal.read_bytes().splitlines()) > finished[0] + 5:
            signal.setitimer(signal.ITIMER_REAL, 0)  # once
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        while not output.exists():
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            try:
                assemble(folders(), output, progress=False)
            except KeyboardInterrupt:
                files = [json.loads(line).get("file") for line in journal.read_text().splitlines()]
                for name in filter(None, files):
                    found = (tmp_path / ".repo.partial" / name).stat().st_ino
                    assert inodes.setdefault(name, found) == found, f"{name} was copied again"
                finished[0] = len(files)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert inodes and [path.name for path in tmp_path.iterdir()] == ["repo"]
    assert HubReport.load(output) == report()


@pytest.mark.parametrize("kind", ["cadrille", "cad_recode", "scene_qformer"])
def test_a_model_in_a_subfolder_generates_by_its_own_settings(kind):
    """transformers reads those at the root of a local repository, which are another model's."""
    auto_class = AutoModelForCausalLM if kind == "cad_recode" else AutoModelForImageTextToText
    stored = json.loads((repository() / kind / "generation_config.json").read_text())
    model = auto_class.from_pretrained(repository(), subfolder=kind)
    found = model.generation_config.to_dict()
    assert {name: found.get(name) for name in stored} == stored and not found.get("repetition_penalty")


def test_links_take_no_space(tmp_path):
    models = {kind: folders()[kind] for kind in ("dsr", "cad_recode")}
    assert assemble(models, tmp_path / "repo", link=True, progress=False).shared
    assert os.path.samefile(
        tmp_path / "repo" / "cad_recode" / "model.safetensors", folders()["cad_recode"] / "model.safetensors"
    )
    assert verify(tmp_path / "repo", load=False, progress=False) == []


# ---- Loading ---------------------------------------------------------------------------


@pytest.mark.slow
def test_every_model_loads_from_the_hub_s_cache_and_computes_the_same(tmp_path):
    """By `subfolder=`, offline, in a process that cannot see the source tree, against the converted folders here."""
    (tmp_path / "outputs").mkdir()
    variables = hub_cache(repository(), tmp_path / "cache")
    assert try_out("org/models", report().models, tmp_path / "outputs", **variables) == []
    for name, record in report().models.items():
        model = AUTO[record["auto_class"]].from_pretrained(folders()[name]).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            outputs = model(**INPUTS[name](AutoProcessor.from_pretrained(folders()[name]), model))
        found = torch.load(tmp_path / "outputs" / f"{name}.pt", weights_only=True)
        assert found
        for key, tensor in found.items():
            part, _, index = key.partition(".")
            expected = outputs[part][int(index)] if index else outputs[part]
            assert (tensor - expected).abs().max() <= 1e-5, f"{name}: {key}"


@pytest.mark.slow
def test_auto_model_loads_each_without_its_head():
    """`AutoModel` from the folder, as engines do that bring heads of their own; the weights it needs are all there."""
    records = {}
    for name, record in report().models.items():
        base = AutoConfig.from_pretrained(folders()[name]).auto_map["AutoModel"].split(".")[1]
        records[name] = record | {"auto_class": "AutoModel", "model_class": base}
    assert try_out(repository(), records) == []


@pytest.mark.slow
def test_a_subfolder_and_the_code_are_enough(tmp_path):
    """What `snapshot_download(allow_patterns=["*.py", "NAME/*"])` leaves in the cache, of all of them."""
    part, kinds = tmp_path / "part", [kind for kind in SOURCES if kind != "dsr"]
    part.mkdir()
    for path in repository().glob("*.py"):
        shutil.copy(path, part)
    for kind in kinds:
        shutil.copytree(repository() / kind, part / kind)
    variables = hub_cache(part, tmp_path / "cache")
    assert try_out("org/models", {kind: report().models[kind] for kind in kinds}, **variables) == []


def test_the_report_says_which_class_loads_a_model():
    for name, record in report().models.items():
        config = AutoConfig.from_pretrained(folders()[name])
        assert config.architectures == [record["model_class"]]
        assert config.auto_map[record["auto_class"]].endswith(record["model_class"])

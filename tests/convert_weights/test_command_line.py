"""`python -m convert_weights`."""

import importlib
import json

import pytest

from convert_weights import Report

# The module named `__main__` cannot be imported by that name alone.
main = importlib.import_module("convert_weights.__main__").main


def test_conversion(source, output, capsys):
    assert main(["toy", "--source", f"toy={source}", "--output", str(output), "--dtype", "bfloat16", "--quiet"]) == 0
    assert Report.load(output).tensors["queries"]["dtype"] == "bfloat16"
    assert "transformed" in capsys.readouterr().out


def test_a_dry_run_needs_no_output_and_lists_every_tensor(source, output, capsys):
    assert main(["toy", "--source", f"toy={source}", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "blocks.1.k_proj.bias float32 [8]  <-  toy:blk.1.qkv.bias[8:16]" in printed
    assert "toy:aux.head.weight: only used in training" in printed
    assert not output.parent.exists()


def test_overrides_and_shard_size(source, output, tmp_path):
    (tmp_path / "overrides.json").write_text('{"layers": 2}')
    arguments = ["--config", str(tmp_path / "overrides.json"), "--max-shard-size", "600", "--quiet"]
    assert main(["toy", "--source", f"toy={source}", "--output", str(output), *arguments]) == 0
    assert len(list(output.glob("model-*.safetensors"))) > 3


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--source", "toy=/nowhere/at/all"], "/nowhere/at/all does not exist"),
        (["--source", "other=."], "`toy` or `toy` + `patch`"),
        (["--source", "toy=a", "--source", "toy=b"], "names a source twice"),
    ],
)
def test_a_faulty_source_is_one_line_and_status_1(arguments, words, output, capsys):
    assert main(["toy", *arguments, "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and "Traceback" not in error


def test_a_missing_output_is_asked_for(source, capsys):
    assert main(["toy", "--source", f"toy={source}"]) == 1
    assert "`--output DIR` is needed" in capsys.readouterr().err


@pytest.mark.parametrize("content, words", [("{", "not valid JSON"), ("[1]", "must hold an object")])
def test_faulty_overrides(source, output, tmp_path, capsys, content, words):
    (tmp_path / "overrides.json").write_text(content)
    arguments = ["--output", str(output), "--config", str(tmp_path / "overrides.json")]
    assert main(["toy", "--source", f"toy={source}", *arguments]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["toy", "--source", "toy"], ["nonsense"], [], ["toy"]])
def test_faulty_arguments_are_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_verify_tells_by_status_and_lines(run, output, capsys):
    run()
    assert main(["verify", str(output)]) == 0
    config = json.loads((output / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(config | {"note": 1}))
    assert main(["verify", str(output)]) == 1
    assert f"{output / 'config.json'}: " in capsys.readouterr().err


def test_verify_of_another_folder(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 1
    assert "no converted model" in capsys.readouterr().err

"""Isolated half of `tests/model_checks.py`: an exported model, used where the source tree cannot be imported.

Run as `python -P remote_worker.py` from `/`, by `tests/isolated.py`. Imports nothing of the library. Of each job that
comes in a fork of this process writes {check: "" or what went wrong} to answer.json.
"""

import importlib.abc
import json
import sys
import traceback
from pathlib import Path

SOURCE_MODULES = ("configuration_dsr", "processing_dsr", "modeling_dsr", "convert_weights", "dsr_toolkit", "tests")


sys.path.append(str(Path(__file__).parent))
from isolated import serve  # noqa: E402

sys.path.pop()


class NoSourceTree(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in SOURCE_MODULES:
            raise ImportError(f"{fullname} belongs to the source tree")
        return None


sys.meta_path.insert(0, NoSourceTree())

import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoProcessor, Trainer, TrainingArguments  # noqa: E402


def begin(job: str) -> None:
    """What the checks of a job look at."""
    global JOB, WORK, REPOSITORY, EXPECTED, SAVED_INPUTS, AUTO
    JOB = json.loads(Path(job).read_text())
    WORK = Path(JOB["work"])
    REPOSITORY = WORK / "repository"
    EXPECTED = load_file(WORK / "expected.safetensors")
    SAVED_INPUTS = torch.load(WORK / "inputs.pt", weights_only=True)
    AUTO = getattr(transformers, JOB["auto_class"])


def load(source, auto=None, **kwargs):
    model, info = (auto or AUTO).from_pretrained(source, trust_remote_code=True, output_loading_info=True, **kwargs)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    return model.eval(), {kind: sorted(names) for kind, names in info.items() if names}


def outputs(model):
    with torch.no_grad():
        result = model(**SAVED_INPUTS["inputs"])
    found = {}
    for name, value in result.items():  # tuples numbered, as in the stored outputs
        parts = {f"{name}.{i}": part for i, part in enumerate(value)} if isinstance(value, tuple) else {name: value}
        found |= {key: part for key, part in parts.items() if isinstance(part, torch.Tensor)}
    return found


def difference(found, expected):
    shared = found.keys() & expected.keys()
    assert shared, (sorted(found), sorted(expected))
    return max((found[name].double() - expected[name].double()).abs().max().item() for name in shared)


def code_of(folder):
    return {path.name: path.read_text() for path in Path(folder).glob("*.py")}


def loss_of(result):
    if getattr(result, "loss", None) is not None:
        return result.loss
    return sum(v.float().square().mean() for v in result.values() if isinstance(v, torch.Tensor) and v.requires_grad)


def local():
    model, info = load(REPOSITORY)
    assert info == {}, info
    assert difference(outputs(model), EXPECTED) <= 1e-5


def base():
    model, info = load(REPOSITORY, getattr(transformers, JOB["base"]))
    assert not info.get("missing_keys"), info
    assert type(model).__name__ != JOB["auto_class"]


def resave():
    model, _ = load(REPOSITORY)
    model.save_pretrained(WORK / "resaved")
    assert code_of(WORK / "resaved").items() <= code_of(REPOSITORY).items()
    again, info = load(WORK / "resaved")
    assert info == {} and difference(outputs(again), EXPECTED) <= 1e-5
    again.save_pretrained(WORK / "resaved_twice")  # the second generation has only what the first one saved
    third, info = load(WORK / "resaved_twice")
    assert info == {} and difference(outputs(third), EXPECTED) <= 1e-5


def hub():
    model, info = load("org/name")
    assert info == {} and difference(outputs(model), EXPECTED) <= 1e-5
    assert type(model.config) is type(model).config_class


def hub_subfolder():
    model, info = load("org/name", subfolder="inside")
    assert info == {} and difference(outputs(model), EXPECTED) <= 1e-5
    if JOB["processor"]:
        AutoProcessor.from_pretrained("org/name", subfolder="inside", trust_remote_code=True)


def trainer():
    model, _ = load(REPOSITORY)

    class Step(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            result = model(**inputs)
            return (loss_of(result), result) if return_outputs else loss_of(result)

    arguments = TrainingArguments(
        output_dir=str(WORK / "training"), max_steps=1, per_device_train_batch_size=1, learning_rate=1e-3, use_cpu=True,
        report_to=[], save_strategy="no", remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    before = {
        name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    processing = None
    if JOB["processor"]:
        processing = AutoProcessor.from_pretrained(REPOSITORY, trust_remote_code=True)
    step = Step(
        model=model, args=arguments, train_dataset=[SAVED_INPUTS["training"]], data_collator=lambda items: items[0],
        processing_class=processing,
    )  # fmt: skip
    loss = step.train().training_loss
    assert loss == loss and abs(loss) < 1e6, loss
    parameters = dict(model.named_parameters())
    changed = sum(not torch.equal(value, parameters[name]) for name, value in before.items())
    assert changed > len(before) / 2, f"only {changed} of {len(before)} parameters moved"
    step.save_model(str(WORK / "trained"))
    assert code_of(WORK / "trained").keys() >= code_of(WORK / "resaved").keys()
    again, info = load(WORK / "trained")
    assert info == {} and difference(outputs(again), outputs(model.eval())) <= 1e-5
    if processing is not None:
        AutoProcessor.from_pretrained(WORK / "trained", trust_remote_code=True)


def lora():
    model, _ = load(REPOSITORY)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=JOB["lora_targets"], init_lora_weights=False)).eval()
    changed = outputs(adapted)
    assert difference(changed, EXPECTED) > 1e-4  # the adapter does something
    adapted.save_pretrained(WORK / "adapter")
    fresh, _ = load(REPOSITORY)
    reloaded = PeftModel.from_pretrained(fresh, WORK / "adapter").eval()
    weights = reloaded.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in adapted.state_dict().items())
    assert difference(outputs(reloaded), changed) <= 1e-5  # elsewhere in memory, equal sums may round otherwise
    merged = reloaded.merge_and_unload()
    merged.save_pretrained(WORK / "merged")
    again, info = load(WORK / "merged")
    assert info == {} and difference(outputs(again), changed) <= 1e-4


def processor():
    first = AutoProcessor.from_pretrained(REPOSITORY, trust_remote_code=True)
    assert type(first).__module__.startswith("transformers_modules."), type(first)
    first.save_pretrained(WORK / "processor")
    again = AutoProcessor.from_pretrained(WORK / "processor", trust_remote_code=True)
    again.save_pretrained(WORK / "processor_twice")
    for name in ("processor_config.json", "chat_template.jinja", f"{type(first).__module__.rpartition('.')[2]}.py"):
        files = [folder / name for folder in (REPOSITORY, WORK / "processor", WORK / "processor_twice")]
        texts = {file.read_text() for file in files if file.exists()}
        assert len(texts) <= 1 and len({file.exists() for file in files}) == 1, f"{name} changes when saved again"
    tokenizers = [getattr(one, "tokenizer", None) for one in (first, again)]
    if hasattr(tokenizers[0], "get_vocab"):  # an image processor has none
        assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
        assert tokenizers[0].special_tokens_map == tokenizers[1].special_tokens_map


def main(job: str) -> None:
    begin(job)
    answer = {}
    checks = [local, resave, hub, hub_subfolder, trainer, lora]
    checks += [base] if JOB["base"] else []
    checks += [processor] if JOB["processor"] else []
    for check in checks:
        try:
            check()
            answer[check.__name__] = ""
        except Exception:  # each check is reported by a test of its own
            answer[check.__name__] = traceback.format_exc()[-3000:]
    (WORK / "answer.json").write_text(json.dumps(answer))


serve(main)

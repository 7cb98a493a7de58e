"""Checks that every model of the library passes. An architecture subclasses `ModelChecks` and says how to build it
tiny.

    class TestDSR(ModelChecks):
        model_classes = (DSRModel, DSRForConditionalGeneration)      # base first; most checks use the last one

        def tiny_config(self): ...                                   # well under a million parameters
        def inputs(self, batch, padding_side="left"): ...            # sample i is the same in every batch

The rest has defaults that a subclass overrides where its model differs. Models and exported folders are made once per
class; checks that change a model work on a copy.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, set_seed
from transformers.utils import ModelOutput

from tests.isolated import isolated

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter values that matter: fresh ones (zeros, ones, 0.02·n) hide most mistakes.

    Matrices keep the scale of their input, vectors that start at one stay near one, the rest is small noise.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                value = noise / parameter[0].numel() ** 0.5
            elif name.endswith("bias") or "bias" in name.split(".")[-1]:
                value = 0.1 * noise
            else:
                value = 1 + 0.1 * noise
            parameter.copy_(value.to(parameter.dtype))


def tensors_of(outputs) -> dict[str, torch.Tensor]:
    """Every tensor of a model output by name, tuples numbered; caches left out."""
    found = {}

    def visit(name, value):
        if isinstance(value, torch.Tensor):
            found[name] = value.detach()
        elif isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                visit(f"{name}.{index}", item)
        elif isinstance(value, (ModelOutput, dict)):
            for key, item in value.items():
                visit(f"{name}.{key}".lstrip("."), item)

    visit("", outputs)
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    """Same names, shapes and values (equal by default); NaN is never equal."""
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].shape == expected[name].shape, name
        difference = (found[name].double() - expected[name].double()).abs()
        worst = difference.max().item() if difference.numel() else 0.0
        assert worst <= atol, f"{name}: differs by {worst:.2e}, more than {atol:.0e}"


def kind_of(name: str) -> str:
    """A parameter name without layer numbers: parameters of one kind play the same role."""
    return re.sub(r"\.\d+(?=\.)", ".*", name)


class ModelChecks:
    """See the module's docstring. Capability flags and hooks come first, then the checks in the order of HF_NATIVE
    §4."""

    model_classes: tuple[type[PreTrainedModel], ...] = ()
    generative = False  # has `generate`, labels, resizable embeddings
    padding_sides: tuple[str, ...] = ("left",)  # sides that `inputs` knows
    has_attentions = True  # output_attentions=True returns them in eager mode
    batch_atol = 1e-4
    attention_atol = 1e-5
    gradient_atol = 1e-5
    parameters_without_gradient: tuple[str, ...] = ()  # patterns of parameters that the loss rightly never reaches
    lora_targets: str = r".*(q_proj|v_proj)"  # pattern of the linear layers that LoRA adapts
    fsdp_layers: tuple[str, ...] = ()  # module classes that FSDP wraps; () leaves the FSDP check out
    generation_tokens = 6

    # ---- what a subclass provides ----------------------------------------------------------

    def tiny_config(self):
        raise NotImplementedError

    def inputs(self, batch: int, padding_side: str = "left") -> dict:
        raise NotImplementedError

    def training_inputs(self, batch: int) -> dict:
        """Inputs with which the output has a `loss` (labels, targets); by default those of `inputs`."""
        return self.inputs(batch)

    def loss(self, outputs) -> torch.Tensor:
        """What training minimises: the output's loss, or for models without one the mean square of its tensors."""
        if getattr(outputs, "loss", None) is not None:
            return outputs.loss
        tensors = [value for value in outputs.values() if isinstance(value, torch.Tensor) and value.requires_grad]
        return sum(value.float().square().mean() for value in tensors)

    def per_sample(self, outputs, inputs: dict, batch: int) -> list[dict[str, torch.Tensor]]:
        """The part of each sample in a batched output, without padding."""
        mask = inputs.get("attention_mask")
        samples = []
        for index in range(batch):
            sample = {}
            for name, tensor in tensors_of(outputs).items():
                if tensor.ndim == 0 or tensor.shape[0] != batch:
                    continue
                row = tensor[index]
                if mask is not None and tensor.shape[:2] == mask.shape:
                    row = row[mask[index].bool()]
                sample[name] = row
            samples.append(sample)
        return samples

    def expected_hidden_states(self, config, inputs: dict) -> tuple[int, tuple[int, ...]]:
        """(number, shape) of `hidden_states`: here a text model's."""
        text = config.get_text_config()
        return text.num_hidden_layers + 1, (*inputs["input_ids"].shape, text.hidden_size)

    def expected_attentions(self, config, inputs: dict) -> tuple[int, tuple[int, ...]]:
        """(number, shape) of `attentions`: here a text model's."""
        text = config.get_text_config()
        batch, length = inputs["input_ids"].shape
        return text.num_hidden_layers, (batch, text.num_attention_heads, length, length)

    def compile_pieces(self, model, inputs: dict) -> dict[str, tuple]:
        """{name: (module, args, kwargs)} of the parts that must trace as one graph."""
        return {}

    def processor(self):
        """A processor to export beside the model, or None."""
        return None

    # ---- made once per class ---------------------------------------------------------------

    @cached_property
    def model(self) -> PreTrainedModel:
        return self.build(self.model_classes[-1])

    def build(self, model_class) -> PreTrainedModel:
        set_seed(0)
        model = model_class(self.tiny_config()).eval()
        randomize(model)
        return model

    @pytest.fixture(autouse=True)
    def _share_between_tests(self, request, tmp_path_factory):
        """pytest makes an instance per test; what is expensive lives on the class."""
        store = request.cls.__dict__.get("_store")
        if store is None:
            store = {"model": self.model, "folder": tmp_path_factory.mktemp(request.cls.__name__)}
            self.model.save_pretrained(store["folder"])
            request.cls._store = store
        self.__dict__["model"] = store["model"]
        self.folder = store["folder"]
        self.store = store

    def forward(self, model, inputs: dict, **kwargs):
        with torch.no_grad():
            return model(**copy.deepcopy(inputs), **kwargs)

    def load(self, folder=None, model_class=None, **kwargs):
        """(model, loading info) from a folder, in evaluation mode."""
        model_class = model_class or self.model_classes[-1]
        model, info = model_class.from_pretrained(folder or self.folder, output_loading_info=True, **kwargs)
        return model.eval(), {kind: set(names) for kind, names in info.items() if names}

    # ---- 1. saving and loading -------------------------------------------------------------

    def test_save_and_load_are_inverse(self):
        model, info = self.load()
        assert info == {}
        assert_same(model.state_dict(), self.model.state_dict())
        inputs = self.inputs(2)
        assert_same(tensors_of(self.forward(model, inputs)), tensors_of(self.forward(self.model, inputs)))

    def test_disk_keys_equal_memory_keys(self):
        stored = set(load_file(self.folder / "model.safetensors"))
        tied = set(getattr(self.model, "all_tied_weights_keys", {}))
        assert stored == set(self.model.state_dict()) - tied

    def test_sharded_save(self, tmp_path):
        self.model.save_pretrained(tmp_path, max_shard_size="100KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
        model, info = self.load(tmp_path)
        assert info == {}
        assert_same(model.state_dict(), self.model.state_dict())

    def test_builds_on_the_meta_device(self):
        with torch.device("meta"):
            model = self.model_classes[-1](self.tiny_config())
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        assert all(tensor.is_meta for tensor in model.state_dict().values())
        assert shapes == {name: tensor.shape for name, tensor in self.model.state_dict().items()}

    def test_base_and_head_share_a_checkpoint(self, tmp_path):
        if len(self.model_classes) < 2:
            pytest.skip("the architecture has one class")
        base_class, head_class = self.model_classes[0], self.model_classes[-1]
        prefix = head_class.base_model_prefix + "."
        head_keys = {name for name in self.model.state_dict() if not name.startswith(prefix)}
        base, info = self.load(model_class=base_class)
        assert info.get("missing_keys", set()) == set()
        assert info.get("unexpected_keys", set()) <= head_keys
        base.save_pretrained(tmp_path)
        _, info = self.load(tmp_path, model_class=head_class)
        assert info.get("missing_keys", set()) <= head_keys and "unexpected_keys" not in info

    # ---- 2. initialisation -----------------------------------------------------------------

    def test_missing_keys_are_initialised(self, tmp_path):
        """Each kind of parameter or buffer, dropped from a checkpoint, comes back as a fresh model has it."""
        set_seed(0)
        fresh = self.model_classes[-1](self.tiny_config())
        stored = load_file(self.folder / "model.safetensors")
        (tmp_path / "config.json").write_text((self.folder / "config.json").read_text())
        one_of_each = list({kind_of(name): name for name in stored}.values())
        # Some at a time, taken from far apart, so that weight and bias of one module are never missing together.
        for missing in filter(None, (set(one_of_each[start::8]) for start in range(8))):
            kept = {name: tensor for name, tensor in stored.items() if name not in missing}
            save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
            model, info = self.load_poisoned(tmp_path)
            tied = {alias for alias, origin in (self.model.all_tied_weights_keys or {}).items() if origin in missing}
            assert info["missing_keys"] == missing | tied
            state = model.state_dict()
            for name in missing:
                self.assert_fresh(name, state[name], fresh.state_dict()[name])
            assert_same({name: state[name] for name in kept}, kept)  # and nothing else is re-initialised

    def test_buffers_that_are_not_saved_are_rebuilt(self):
        model, _ = self.load_poisoned(self.folder)
        saved = model.state_dict().keys()
        expected = {name: buffer for name, buffer in self.model.named_buffers() if name not in saved}
        assert_same({name: buffer for name, buffer in model.named_buffers() if name not in saved}, expected)

    def load_poisoned(self, folder):
        """`load` where memory that nobody writes holds NaN, so that chance cannot hide what is left uninitialised."""
        fill = torch.utils.deterministic.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        try:
            return self.load(folder)
        finally:
            torch.use_deterministic_algorithms(False)
            torch.utils.deterministic.fill_uninitialized_memory = fill

    @staticmethod
    def assert_fresh(name: str, found: torch.Tensor, fresh: torch.Tensor) -> None:
        found, fresh = found.float(), fresh.float()
        assert torch.isfinite(found).all(), f"{name} is left uninitialised when its key is missing"
        constant = bool((fresh == fresh.flatten()[0]).all())
        if constant or fresh.numel() < 16:
            spread = fresh.abs().max() * (0 if constant else 4)
            assert (found - (fresh if constant else 0)).abs().max() <= spread, f"{name}: {found.flatten()[:4]}"
        else:
            ratio = (found.std() / fresh.std()).item()
            assert 0.4 < ratio < 2.5, f"{name} has {ratio:.2f} times the spread of a fresh one"

    # ---- 3. determinism, batches, padding --------------------------------------------------

    def test_same_inputs_give_the_same_outputs(self):
        inputs = self.inputs(2)
        assert_same(tensors_of(self.forward(self.model, inputs)), tensors_of(self.forward(self.model, inputs)))

    def test_a_sample_does_not_depend_on_its_batch(self):
        alone = self.inputs(1)
        expected = self.per_sample(self.forward(self.model, alone), alone, 1)[0]
        assert expected
        for side in self.padding_sides:
            together = self.inputs(3, padding_side=side) if len(self.padding_sides) > 1 else self.inputs(3)
            found = self.per_sample(self.forward(self.model, together), together, 3)[0]
            assert_same(found, expected, self.batch_atol)

    # ---- 4. attention and recorded outputs -------------------------------------------------

    def test_eager_attention_equals_sdpa(self):
        inputs = self.inputs(2)
        eager, _ = self.load(attn_implementation="eager")
        sdpa, _ = self.load(attn_implementation="sdpa")
        expected = self.per_sample(self.forward(sdpa, inputs), inputs, 2)  # padding may differ: it attends to nothing
        for found, wanted in zip(self.per_sample(self.forward(eager, inputs), inputs, 2), expected):
            assert_same(found, wanted, self.attention_atol)

    def test_hidden_states_are_recorded(self):
        inputs = self.inputs(2)
        count, shape = self.expected_hidden_states(self.model.config, inputs)
        recorded = self.forward(self.model, inputs, output_hidden_states=True).hidden_states
        assert [tuple(state.shape) for state in recorded] == [shape] * count

    def test_attentions_are_recorded(self):
        if not self.has_attentions:
            pytest.skip("the model returns no attentions")
        inputs = self.inputs(2)
        model, _ = self.load(attn_implementation="eager")
        count, shape = self.expected_attentions(model.config, inputs)
        recorded = self.forward(model, inputs, output_attentions=True).attentions
        assert [tuple(weights.shape) for weights in recorded] == [shape] * count

    # ---- 5. gradients ----------------------------------------------------------------------

    def gradients(self, model) -> dict[str, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        self.loss(model(**copy.deepcopy(self.training_inputs(2)))).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    def test_every_trainable_parameter_gets_a_gradient(self):
        model = copy.deepcopy(self.model)
        gradients = self.gradients(model)
        without = [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
            and not any(re.fullmatch(pattern, name) for pattern in self.parameters_without_gradient)
            and (name not in gradients or not gradients[name].abs().max() > 0)
        ]
        assert without == []
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())

    def test_gradient_checkpointing_changes_nothing(self):
        plain, checkpointed = copy.deepcopy(self.model).train(), copy.deepcopy(self.model).train()
        checkpointed.gradient_checkpointing_enable()
        assert checkpointed.is_gradient_checkpointing
        set_seed(1)
        expected = self.gradients(plain)
        set_seed(1)
        assert_same(self.gradients(checkpointed), expected, self.gradient_atol)

    # ---- 6. generation ---------------------------------------------------------------------

    def generate(self, model, batch: int = 2, **kwargs) -> torch.Tensor:
        inputs = copy.deepcopy(self.inputs(batch))
        settings = {
            "max_new_tokens": self.generation_tokens,
            "do_sample": False,
            "eos_token_id": None,
            "pad_token_id": 0,
        }
        return model.generate(**inputs, **{**settings, **kwargs})

    def need_generation(self) -> int:
        if not self.generative:
            pytest.skip("the model does not generate")
        return self.inputs(2)["input_ids"].shape[1]

    def test_greedy_generation_repeats_itself(self):
        length = self.need_generation()
        first, second = self.generate(self.model), self.generate(self.model)
        assert first.shape == (2, length + self.generation_tokens)
        assert torch.equal(first, second)

    def test_generation_follows_the_forward_pass(self):
        """The first generated token is the best one of the forward pass."""
        length = self.need_generation()
        logits = self.forward(self.model, self.inputs(2)).logits
        assert torch.equal(self.generate(self.model, max_new_tokens=1)[:, length], logits[:, -1].argmax(-1))

    def test_cache_does_not_change_generation(self):
        self.need_generation()
        assert torch.equal(self.generate(self.model, use_cache=True), self.generate(self.model, use_cache=False))

    def test_static_cache_equals_dynamic(self):
        self.need_generation()
        static = self.generate(self.model, cache_implementation="static", disable_compile=True)
        assert torch.equal(static, self.generate(self.model))

    def test_beams_contain_the_greedy_answer_and_do_not_mix_samples(self):
        length = self.need_generation()
        beams = self.generate(self.model, num_beams=3, num_return_sequences=3)
        assert beams.shape == (6, length + self.generation_tokens)
        alone = self.generate(self.model, batch=1, num_beams=3, num_return_sequences=3)
        prompt = self.inputs(1)["input_ids"].shape[1]
        assert torch.equal(beams[:3, length:], alone[:, prompt:])

    def test_num_return_sequences_repeats_each_sample(self):
        length = self.need_generation()
        set_seed(2)
        # Sampling from the single best token is greedy, so every sequence must equal the greedy one of its sample.
        repeated = self.generate(self.model, do_sample=True, top_k=1, num_return_sequences=2)
        greedy = self.generate(self.model)
        assert torch.equal(repeated[:, length:], greedy.repeat_interleave(2, dim=0)[:, length:])

    # ---- 7. embeddings ---------------------------------------------------------------------

    def test_embeddings_can_be_resized(self):
        if not self.generative:
            pytest.skip("the model has no vocabulary")
        model = copy.deepcopy(self.model)
        size = model.get_input_embeddings().weight.shape[0]
        model.resize_token_embeddings(size + 3)
        inputs = self.inputs(2)
        assert model.get_input_embeddings().weight.shape[0] == size + 3
        assert model.config.get_text_config().vocab_size == size + 3
        logits = self.forward(model, inputs).logits
        assert logits.shape[-1] == size + 3
        assert_same({"logits": logits[..., :size]}, {"logits": self.forward(self.model, inputs).logits}, 1e-5)

    # ---- 8. compilation and dtypes ---------------------------------------------------------

    def test_pieces_compile_as_one_graph(self):
        inputs = self.inputs(2)
        pieces = self.compile_pieces(self.model, inputs)
        if not pieces:
            pytest.skip("no piece of the model is promised to compile")
        for name, (module, args, kwargs) in pieces.items():
            torch._dynamo.reset()
            with torch.no_grad():
                expected = module(*args, **kwargs)
                found = torch.compile(module, fullgraph=True, backend="eager")(*args, **kwargs)
            assert_same(tensors_of([found]), tensors_of([expected]), 1e-5)

    def test_bfloat16_forward_is_finite(self):
        model, _ = self.load(dtype=torch.bfloat16)
        kept = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
        for name, parameter in model.named_parameters():
            wanted = torch.float32 if any(module in name for module in kept) else torch.bfloat16
            assert parameter.dtype == wanted, name
        for name, tensor in tensors_of(self.forward(model, self.inputs(2))).items():
            assert torch.isfinite(tensor.float()).all(), name

    # ---- 9. and 10. training and remote code, in one isolated process -----------------------

    @property
    def isolated(self) -> dict[str, str]:
        """{check: "" or what went wrong} from `tests/remote_worker.py`, which is asked once per class."""
        if "isolated" not in self.store:
            self.store["isolated"] = self.run_isolated(self.folder.parent / f"{self.folder.name}_isolated")
        return self.store["isolated"]

    def export(self, folder: Path) -> None:
        """The folder that a user would publish: weights, code and, if there is one, processor."""
        self.model.save_pretrained(folder)
        processor = self.processor()
        if processor is not None:
            processor.save_pretrained(folder)

    def run_isolated(self, work: Path) -> dict[str, str]:
        repository = work / "repository"
        self.export(repository)
        # The same model in a subfolder of a repository that holds code at its root alone, as in a hub cache.
        snapshot = work / "hub" / "models--org--name" / "snapshots" / ("0" * 40)
        self.export(snapshot)
        self.export(snapshot / "inside")
        for code in (snapshot / "inside").glob("*.py"):
            code.unlink()
        refs = snapshot.parent.parent / "refs"
        refs.mkdir()
        (refs / "main").write_text("0" * 40)

        inputs, training = self.inputs(2), self.training_inputs(1)
        torch.save({"inputs": inputs, "training": training}, work / "inputs.pt")
        expected = {k: v.contiguous().clone() for k, v in tensors_of(self.forward(self.model, inputs)).items()}
        save_file(expected, work / "expected.safetensors")
        job = {
            "auto_class": self.model_classes[-1]._auto_class,
            "base": self.model_classes[0]._auto_class if len(self.model_classes) > 1 else None,
            "lora_targets": self.lora_targets,
            "processor": self.processor() is not None,
            "work": str(work),
        }
        (work / "job.json").write_text(json.dumps(job))
        status, printed = isolated(str(TESTS / "remote_worker.py")).run(work / "job.json")
        assert status == 0, printed[-4000:]
        return json.loads((work / "answer.json").read_text())

    def need(self, check: str) -> None:
        assert check in self.isolated, f"the isolated process never reached {check!r}"
        assert self.isolated[check] == "", f"{check}: {self.isolated[check]}"

    def test_export_is_self_contained(self):
        """Every exported file stands alone, and is the source tree's."""
        work = self.folder.parent / f"{self.folder.name}_export"
        self.export(work)
        for path in work.glob("*.py"):
            assert path.read_bytes() == (ROOT / "modeling_dsr" / path.name).read_bytes()
        assert check_remote_code(work) == []
        auto_map = json.loads((work / "config.json").read_text())["auto_map"]
        for reference in auto_map.values():
            module, name = reference.split(".")
            assert re.search(rf"^class {name}\b", (work / f"{module}.py").read_text(), re.M), reference

    def test_remote_code_loads_alone(self):
        self.need("local")

    def test_base_class_loads_through_auto_model(self):
        if len(self.model_classes) < 2:
            pytest.skip("the architecture has one class")
        self.need("base")

    def test_resaved_model_keeps_its_code(self):
        self.need("resave")

    def test_loads_from_a_hub_cache_offline(self):
        self.need("hub")

    def test_loads_from_a_subfolder_of_a_hub_repository(self):
        self.need("hub_subfolder")

    def test_trainer_step_saves_a_loadable_model(self):
        self.need("trainer")

    def test_lora_is_saved_reloaded_and_merged(self):
        self.need("lora")

    def test_processor_round_trip(self):
        if self.processor() is None:
            pytest.skip("the architecture has no processor of its own here")
        self.need("processor")

    @pytest.mark.slow
    def test_a_step_under_fsdp_is_that_of_one_process(self, tmp_path):
        """Loss and step of two processes that share the parameters, and a full save that loads."""
        if not self.fsdp_layers:
            pytest.skip("the model is not trained with FSDP")
        self.export(tmp_path / "repository")
        # In float64, whose order of summing leaves nothing to be seen beside a fault of sharding.
        training = {
            name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in self.training_inputs(1).items()
        }
        torch.save({"training": training}, tmp_path / "inputs.pt")
        job = {
            "auto_class": self.model_classes[-1]._auto_class,
            "layers": list(self.fsdp_layers),
            "learning_rate": 1e-2,
            "work": str(tmp_path),
        }
        (tmp_path / "job.json").write_text(json.dumps(job))
        run_worker("fsdp_worker.py", tmp_path)
        sharded, info = self.load(tmp_path / "trained", dtype=torch.float64)
        assert info == {}
        alone, _ = self.load(tmp_path / "repository", dtype=torch.float64)
        before = {name: value.clone() for name, value in alone.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in alone.parameters() if p.requires_grad], lr=1e-2)
        loss = self.loss(alone(**copy.deepcopy(training)))
        assert json.loads((tmp_path / "loss.json").read_text()) == pytest.approx(loss.item(), rel=1e-5)
        loss.backward()
        optimizer.step()
        expected, found = alone.state_dict(), sharded.state_dict()
        sizes = {name for name, value in before.items() if value.numel()}
        moved = max((expected[name] - before[name]).abs().max().item() for name in sizes)
        assert moved > 0
        off = {name: (found[name] - expected[name]).abs().max().item() for name in sizes}
        worst = max(off, key=off.get)
        step, wanted = ((values[worst] - before[worst]).abs().max().item() for values in (found, expected))
        assert off[worst] < 1e-4 * moved + 1e-6, (
            f"{worst} is {off[worst]:.3g} away: its largest step is {step:.6g}, in one process {wanted:.6g}; the "
            f"largest step of any parameter is {moved:.3g}."
        )


def run_worker(script: str, work: Path) -> None:
    """Run a script of this folder from `/`, with a code cache of its own, and without the source tree on the path."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COVERAGE_PROCESS_START")}
    env |= {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(work / "modules"),
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-P", str(TESTS / script), str(work / "job.json")]
    process = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-4000:]


def check_remote_code(folder: Path) -> list[str]:
    """What in the flat code files of `folder` the Hub's loader could not follow (HF_NATIVE §0 and §1.1)."""
    import ast

    ours = {path.stem for path in folder.glob("*.py")}
    allowed = {"torch", "transformers", "numpy", "PIL", "huggingface_hub"} | set(sys.stdlib_module_names)
    problems = []
    for path in sorted(folder.glob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        guarded = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.Try)
            for statement in node.body + [s for handler in node.handlers for s in handler.body]
            for inner in ast.walk(statement)
        }
        for node in ast.walk(tree):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and node.level:
                if node.level > 1 or not node.module or "." in node.module:
                    problems.append(f"{where}: relative imports must read `from .module import name`")
                elif node.module not in ours:
                    problems.append(f"{where}: .{node.module} is not exported")
            elif isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in guarded:
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                for name in {name.split(".")[0] for name in names} - allowed:
                    problems.append(f"{where}: imports {name}")
        # The loader looks for imports with a regular expression, in docstrings and strings too.
        for name in re.findall(r"^\s*from\s+\.(\S+)\s+import", text, re.M) + re.findall(
            r"^\s*import\s+\.(\S+)", text, re.M
        ):
            if name not in ours:
                problems.append(f"{path.name}: text that the loader reads as an import of .{name}")
    return problems

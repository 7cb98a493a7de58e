"""How the reference cases of DSR are run: forward passes, gradients, generation, pixels, positions, evaluation
vectors."""

import inspect
import re
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast, Qwen2VLVideoProcessor
from transformers.video_utils import VideoMetadata

from tests.parity_cases import Tolerance
from tests.parity_results import Result, Value, published_overrides


def conversions(suite):
    """The trained checkpoint of a suite; `cases.json` holds what its config.json does not."""
    found = [path.parent for path in suite.files("config.json") if list(path.parent.glob("*.safetensors"))]
    if not found:
        return {}
    overrides = {}
    if "dino" in suite.document:
        fields = {
            "img_size": "image_size",
            "dim": "hidden_size",
            "depth": "num_hidden_layers",
            "heads": "num_attention_heads",
        }
        shown = ("patch_size", "registers", "num_register_tokens", "mlp_ratio")  # shapes tell these
        overrides["geometry_config"] = published_overrides(suite.document["dino"], fields, known=shown)
    ids = suite.document.get("special_ids", {})
    for name, key in (("im_start", "im_start"), ("im_end", "im_end"), ("vision_pad", "vision_pad")):
        if key in ids:
            overrides[f"{name}_token_id"] = ids[key]
    if "endoftext" in ids:
        overrides["text_config"] = {"bos_token_id": ids["endoftext"]}
    return {"model": {"sources": {"dsr": found[0]}, "config_overrides": overrides}}


def run_case(case, models):
    if case.is_json:
        return run_vectors(case.meta["content"], models)
    model = models.load(AutoModelForImageTextToText)
    if "frames_uint8" in case.inputs:
        return run_pixels(case, model, models)
    if "input_ids" not in case.inputs:
        return run_positions(case, model)
    if "output.sequences" in case.expected:
        return run_generation(case, model)
    return run_forward(case, model)


# --------------------------------------------------------------------------------------
# Forward and backward
# --------------------------------------------------------------------------------------


def model_inputs(case, model) -> dict[str, torch.Tensor]:
    """Inputs under the model's own argument names; it computes its positions itself."""
    known = inspect.signature(model.forward).parameters
    return {name: tensor for name, tensor in case.inputs.items() if name in known and name != "position_ids"}


def upstream_to_ours(name: str) -> str:
    """Parameter name of the published checkpoint to that of the library."""
    if re.match(r"visual\.(spatial_merger|q_former)", name):
        return name.replace("visual.", "model.geometry_selection.", 1)
    if name.startswith("visual."):
        return "model." + name
    return re.sub(r"^model\.", "model.language_model.", name)


class Recorder:
    """Values inside a forward pass, by hooks on the submodules where they pass."""

    def __init__(self, model):
        self.model, self.seen, self.handles = model, {}, []

    def note(self, name: str, tensor: torch.Tensor) -> None:
        self.seen.setdefault(name, []).append(tensor.detach())

    def __enter__(self):
        core = self.model.model
        selection, skip = core.geometry_selection, 1 + core.config.geometry_config.num_register_tokens

        def encoder(module, args, kwargs, output):
            self.note("dino_input", args[0] if args else kwargs["pixel_values"])
            self.note("spatial_states_dino", output.last_hidden_state[:, skip:])

        def merger(module, args, output):
            self.note("spatial_merger_input", args[0])
            self.note("spatial_states_merged", output)

        def text(module, args, kwargs):
            self.note("qformer1_text_states", kwargs["text_states"])

        def language(module, args, kwargs):
            self.note("inputs_embeds", kwargs["inputs_embeds"])

        self.handles = [
            core.geometry_encoder.register_forward_hook(encoder, with_kwargs=True),
            selection.spatial_merger.register_forward_hook(merger),
            selection.register_forward_pre_hook(text, with_kwargs=True),
            selection.q_former_1.register_forward_hook(lambda m, a, output: self.note("q_former_res_1", output[0])),
            selection.q_former_2.register_forward_hook(lambda m, a, output: self.note("q_former_res_2", output[0])),
            core.language_model.register_forward_pre_hook(language, with_kwargs=True),
        ]
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()

    def result(self) -> dict[str, torch.Tensor]:
        """Chunks of one tensor joined; frames of several resolutions do not join and are left out."""
        joined = {}
        for name, pieces in self.seen.items():
            if len({piece.shape[1:] for piece in pieces}) == 1:
                joined[name] = torch.cat(pieces)
        return joined


def run_forward(case, model) -> Result:
    inputs = model_inputs(case, model)
    wants_gradients = [name for name in case.expected if re.match(r"output\.grad\.|grad(ient)?_norms\.", name)]
    model.zero_grad(set_to_none=True)
    with Recorder(model) as recorder, torch.set_grad_enabled(bool(wants_gradients)):
        outputs = model(**inputs)
    found = recorder.result()
    positions, deltas = model.model.get_rope_index(
        inputs["input_ids"],
        video_grid_thw=inputs.get("video_grid_thw"),
        second_per_grid_ts=inputs.get("second_per_grid_ts"),
        attention_mask=inputs.get("attention_mask"),
    )
    found |= {"logits": outputs.logits, "position_ids": positions, "rope_deltas": deltas}
    if outputs.loss is not None:
        found["loss"] = outputs.loss
    if outputs.geometry_tokens is not None:
        found["geometry_tokens"] = outputs.geometry_tokens
    if "pixel_values_videos" in inputs:
        with torch.no_grad():
            features = model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
        found["vision_tokens"] = torch.cat(tuple(features.pooler_output))

    tensors = {}
    for name, expected in case.expected.items():
        short = name.split(".", 1)[-1]
        if short in found:
            tensor = found[short]
            # The published code has no batch axis for the queries of one sample.
            alone = expected is not None and tensor.ndim == expected.ndim + 1 and len(tensor) == 1
            tensors[name] = tensor[0] if alone else tensor
    if wants_gradients:
        outputs.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        for name in wants_gradients:
            table, parameter = re.match(r"(output\.grad|\w+_norms)\.(.+)", name).groups()
            gradient = gradients.get(upstream_to_ours(parameter))
            norm = gradient is not None and table != "output.grad"
            tensors[name] = gradient.double().norm() if norm else gradient
        model.zero_grad(set_to_none=True)
    values = []
    if "position_ids" in case.inputs:  # given to the published code, computed by ours
        values.append(Value("input.position_ids", case.inputs["position_ids"].tolist(), positions.tolist()))
    return Result(tensors, values=values)


def run_generation(case, model) -> Result:
    call = {name: value for name, value in case.meta["call"].items() if name != "method"}
    config = GenerationConfig(**call, return_dict_in_generate=True, output_scores=True)
    outputs = model.generate(**model_inputs(case, model), generation_config=config)
    tensors = {"output.sequences": outputs.sequences, "output.scores": torch.stack(outputs.scores, dim=1)}
    return Result(tensors, kinds={"output.scores": "logits"})


# --------------------------------------------------------------------------------------
# Pixels and positions
# --------------------------------------------------------------------------------------


def run_pixels(case, model, models) -> Result:
    """uint8 frames → processor's patches → frames of the geometry encoder."""
    frames, vision = case.inputs["frames_uint8"], model.config.vision_config
    processor = Qwen2VLVideoProcessor(
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
    )
    processed = processor([frames.numpy()], do_sample_frames=False, do_resize=False, return_tensors="pt")
    grid = tuple(processed["video_grid_thw"][0].tolist())
    unflatten = models.module("dsr_geometry_selection", "unflatten_patches")
    renormalize = models.module("dsr_geometry_selection", "renormalize")
    pixels = unflatten(processed["pixel_values_videos"], grid, vision.spatial_merge_size, vision.patch_size)
    constants = ("unnormalize_mean", "unnormalize_std", "geometry_constants_in_model_dtype")
    only_undo = SimpleNamespace(
        **{name: getattr(model.config, name) for name in constants},
        geometry_image_mean=(0.0, 0.0, 0.0),
        geometry_image_std=(1.0, 1.0, 1.0),
    )
    undone = renormalize(pixels, only_undo)
    tensors = {
        "output.pixel_values_videos": processed["pixel_values_videos"],
        "output.unnormalised_pixels": undone,
        "output.dino_input": renormalize(pixels, model.config),
    }
    values = [Value("grid", case.inputs["video_grid_thw"].tolist(), processed["video_grid_thw"].tolist())]
    if "roundtrip_error_0_255" in case.meta:
        repeated = torch.cat([frames, frames[-1:].repeat(len(undone) - len(frames), 1, 1, 1)]).permute(0, 3, 1, 2)
        error = (undone * 255 - repeated).abs().amax((0, 2, 3)).tolist()
        values.append(Value("roundtrip_error_0_255", case.meta["roundtrip_error_0_255"], error, Tolerance(atol=1e-4)))
    return Result(tensors, values=values)


def run_positions(case, model) -> Result:
    """Rotary positions of every `input.X_ids` whose `output.X_position_ids` is stored."""
    tensors = {}
    for name in case.expected:
        match = re.fullmatch(r"output\.(\w+)_(position_ids|rope_deltas)", name)
        if not match or case.excuse(name):
            continue
        ids = case.inputs[f"{match[1]}_ids"]
        video = ids[0] == model.config.video_token_id
        count = int((video & ~torch.cat([torch.tensor([False]), video[:-1]])).sum())
        both = model.model.get_rope_index(
            ids,
            video_grid_thw=case.inputs["video_grid_thw"][:count],
            second_per_grid_ts=case.inputs["second_per_grid_ts"][:count],
        )
        tensors[name] = both[0] if match[2] == "position_ids" else both[1]
    return Result(tensors)


# --------------------------------------------------------------------------------------
# Evaluation vectors
# --------------------------------------------------------------------------------------


def run_vectors(content, models) -> Result:
    values = []
    for section, function in LETTERS.items():
        vectors = content.get(section, ())
        for index, (text, letter) in enumerate(vectors["vectors"] if isinstance(vectors, dict) else vectors):
            values.append(Value(f"{section}.{index}", letter, extract(function, text)))
    if not {"frame_sampling", "smart_resize"} & content.keys():
        return Result(values=values)
    processor = video_only_processor(models)
    sample = models.module("frames", "sample_frame_indices")
    for index, one in enumerate(content.get("frame_sampling", ())):
        for phase, rule in (("train", "training"), ("eval", "inference")):
            wanted = {"num_frames": one["num_frames"]} if "num_frames" in one else {}
            indices = sample(one["total_frames"], rule=rule, **wanted)
            values.append(Value(f"frame_sampling.{index}.{phase}", one[f"{phase}_indices"], indices.tolist()))
            metadata = VideoMetadata(
                total_num_frames=one["total_frames"],
                fps=one["fps"],
                duration=one["total_frames"] / one["fps"],
                frames_indices=indices,
            )
            processor.fixed_second_per_grid_ts = 1.0 if phase == "eval" else None  # the published evaluation says 1.0
            frames = np.zeros((len(indices), 28, 28, 3), dtype=np.uint8)
            made = processor(text=f"{processor.video_token} ?", videos=[frames], video_metadata=[metadata])
            name = f"{phase}_second_per_grid_ts"
            values.append(Value(f"frame_sampling.{index}.{name}", one[name], float(made["second_per_grid_ts"][0])))
    for index, one in enumerate(content.get("smart_resize", ())):
        frames = np.zeros((2, one["h"], one["w"], 3), dtype=np.uint8)
        for name, size in one.items():
            bounds = re.search(r"max(\d+)_min(\d+)", name)
            if bounds:
                edges = {"longest_edge": int(bounds[1]), "shortest_edge": int(bounds[2])}
                made = processor(text=f"{processor.video_token} ?", videos=[frames], size=edges)
                patch = processor.video_processor.patch_size
                pixels = [int(patches) * patch for patches in made["video_grid_thw"][0][1:]]
                values.append(Value(f"smart_resize.{index}.{name}", size, pixels))
    return Result(values=values)


LETTERS = {
    "dsr_bench_letter_extraction": "extract_letter_dsr_bench",
    "sti_vlm4d_letter_extraction": "extract_letter_sti",
}


def extract(function: str, text: str):
    import dsr_toolkit.evaluation.multiple_choice as rules

    return getattr(rules, function)(text)


def video_only_processor(models):
    """The converted folder's processor class around a tokenizer of a few words: reference folders hold no tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers import models as tokenizer_models

    words = ["?", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(
            tokenizer_models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?")
        ),
        additional_special_tokens=words[1:],
    )
    from transformers import Qwen2VLImageProcessor

    processor_class = models.module("processing_dsr", "DSRProcessor")
    return processor_class(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor())

"""FrozenQwenSAM: F-LMM's cases, told apart by their `kind`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import AutoModel, AutoProcessor

from tests.parity_results import Result, Value, published_overrides

# The published inference generates with these, besides bad words that no case produces, unless a case says otherwise.
PUBLISHED_GENERATION = {"repetition_penalty": 1.12, "no_repeat_ngram_size": 6}
FLAGS = ("merge", "multimask_output", "use_text", "use_mask", "use_box")


def conversions(suite) -> dict[str, dict]:
    folder = suite.folder / "tiny"
    described = json.loads((folder / "config.json").read_text())
    sources = {
        "qwen": folder / described["model"]["pretrained_model_name_or_path"],
        "sam": folder / described["sam"]["checkpoint"],
        "flmm": folder / described["trained_checkpoint"],
    }
    return {"model": {"sources": sources, "config_overrides": config_overrides(described)}}


def config_overrides(described: dict) -> dict:
    """What neither weights nor the converter's own reading of the published configuration tell: SAM's decoder heads."""
    architecture = described["sam"].get("architecture", {})
    parts = {
        "mask_decoder_config": {"decoder_num_heads": "num_attention_heads"},
        "vision_config": {"window_size": "window_size", "encoder_num_heads": "num_attention_heads"},
    }
    fields = {theirs: (part, ours) for part, names in parts.items() for theirs, ours in names.items()}
    shown = (
        "image_size", "vit_patch_size", "encoder_embed_dim", "encoder_depth", "encoder_global_attn_indexes",
        "mlp_ratio", "prompt_embed_dim", "mask_in_chans", "decoder_depth", "decoder_mlp_dim", "iou_head_hidden_dim",
        "num_multimask_outputs",
    )  # fmt: skip
    given = published_overrides(architecture, fields, only={"iou_head_depth": 3}, known=shown)
    sam: dict = {}
    for (part, name), value in given.items():
        sam.setdefault(part, {})[name] = value
    return {"sam_config": sam} if sam else {}


def run_case(case, models) -> Result | None:
    model, processor = models.load(AutoModel), models.load(AutoProcessor)
    # The published code pads the mask prompts of an image's phrases alike.
    before = {name: getattr(model.config, name) for name in (*FLAGS, "mask_prompt_padding")}
    bias = model.mask_head.classifier.bias.detach().clone()
    options = {name: value for name, value in case.meta.get("kwargs", {}).items() if name in FLAGS}
    try:
        for name, value in {**options, "mask_prompt_padding": "image"}.items():
            setattr(model.config, name, value)
        model.mask_head.classifier.bias.data += case.meta.get("kwargs", {}).get("conv_seg_bias_delta", 0.0)
        model.freeze()
        return KINDS[case.meta["kind"]](case, model.eval(), processor)
    finally:
        for name, value in before.items():
            setattr(model.config, name, value)
        model.mask_head.classifier.bias.data.copy_(bias)


def sam_inputs(processor, image: torch.Tensor) -> dict[str, torch.Tensor]:
    found = processor._sam_processor()(Image.fromarray(image.numpy()).convert("RGB"), return_tensors="pt")
    sizes = {name: torch.as_tensor(found[name]) for name in ("original_sizes", "reshaped_input_sizes")}
    return {"sam_pixel_values": found["pixel_values"], **sizes}


def forward_inputs(inputs: dict, processor, meta_data: dict | None) -> dict:
    return {
        "input_ids": inputs["input_ids"][None],
        "mask_ids": inputs["mask_ids"][None],
        "pixel_values": inputs["pixel_values"].float(),
        "image_grid_thw": inputs["image_grid_thw"],
        "meta_data": [meta_data] if meta_data else None,
        **sam_inputs(processor, inputs["image_uint8"]),
    }


@torch.no_grad()
def run_forward(case, model, processor) -> Result:
    inputs = forward_inputs(case.inputs, processor, case.meta.get("meta_data"))
    output = model(**inputs)
    maps, coarse = output.mask_attentions[0], output.pred_masks[0]
    tensors = {
        "output.pred_masks": coarse,
        "output.sam_pred_masks": output.sam_pred_masks[0],
        "intermediate.mask_attentions": maps,
        "intermediate.mask_attentions_resized_ch0_1": processor.resize_attention_maps(maps, coarse)[:, :2],
        "intermediate.hidden_states": all_hidden_states(model, inputs),
        "intermediate.prompt_masks": output.prompt_masks[0],
        "intermediate.low_res_masks": output.low_res_masks[0],
        "intermediate.iou_predictions": output.iou_scores[0],
        "intermediate.unet_out": coarse[:, None],
    }
    for number, embeds in enumerate(output.text_embeds[0]):
        tensors[f"intermediate.text_embeds.{number}"] = embeds
        sparse = [embeds[None]] if model.config.use_text else []
        if model.config.use_box:
            box = output.boxes[0][number].view(1, 1, 4)
            corners, _ = model.sam.prompt_encoder(
                input_points=None, input_labels=None, input_boxes=box, input_masks=None
            )
            sparse.insert(0, corners[0])
        if sparse:
            tensors[f"intermediate.sparse_embeddings.{number}"] = torch.cat(sparse, dim=1)
    if output.boxes is not None:
        tensors["intermediate.boxes"] = output.boxes[0]
    if output.candidate_ious is not None:
        tensors["intermediate.candidate_ious"] = output.candidate_ious[0]
    return Result(tensors)


def all_hidden_states(model, inputs) -> torch.Tensor:
    """The weighted states of every token; the model itself computes those of phrases only."""
    ids = inputs["input_ids"]
    states = model.vlm.model(
        input_ids=ids,
        pixel_values=inputs["pixel_values"],
        image_grid_thw=inputs["image_grid_thw"],
        mm_token_type_ids=(ids == model.config.vlm_config.image_token_id).int(),
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states
    model.vlm.model.rope_deltas = None
    return model.weigh_layers(torch.cat(states[1:]))


@torch.no_grad()
def run_refiner(case, model, processor) -> Result:
    embeds = [
        case.inputs[name] for name in sorted((n for n in case.inputs if n.startswith("text_embeds.")), key=last_number)
    ]
    lengths = torch.tensor([len(tokens) for tokens in embeds])
    sam = sam_inputs(processor, case.inputs["image_uint8"])
    image = model.get_image_embeddings(sam.pop("sam_pixel_values"))
    text = torch.nn.utils.rnn.pad_sequence(embeds, batch_first=True)
    mask = torch.arange(text.shape[1]) < lengths[:, None]
    refined = model.refine((case.inputs["coarse_logits"],), text, mask, image, **sam)
    tensors = {
        "output.sam_pred_masks": refined.masks[0],
        "intermediate.prompt_masks": refined.prompt_masks,
        "intermediate.low_res_masks": refined.low_res_masks,
        "intermediate.iou_predictions": refined.iou_scores,
        "intermediate.image_embedding": image,
    }
    optional = {"intermediate.boxes": refined.boxes, "intermediate.candidate_ious": refined.candidate_ious}
    return Result(tensors | {name: value for name, value in optional.items() if value is not None})


def generation(case) -> dict:
    """Arguments of `generate`: the published ones, under those that the case gives."""
    given = case.meta["kwargs"]
    own = {name: value for name, value in given.items() if name not in (*FLAGS, "conv_seg_bias_delta")}
    return {**PUBLISHED_GENERATION, **own}


def last_number(name: str) -> int:
    return int(name.rsplit(".", 1)[1])


def run_train(case, model, processor) -> Result:
    """One batch of all samples, padded: the published code runs them one by one."""
    samples = sorted({name.split(".")[0] for name in case.inputs})
    shared = case.meta.get("inputs_shared_with") or {}
    rows = []
    for sample in samples:
        own = {name.split(".", 1)[1]: value for name, value in case.inputs.items() if name.startswith(f"{sample}.")}
        other = case.suite.case(shared[sample]).inputs if sample in shared else {}
        rows.append({**other, **own})
    inputs = [forward_inputs(row, processor, None) for row in rows]
    length = max(row["input_ids"].shape[1] for row in inputs)
    pad = torch.nn.functional.pad
    batch = {
        "input_ids": torch.cat([pad(row["input_ids"], (0, length - row["input_ids"].shape[1])) for row in inputs]),
        "mask_ids": torch.cat(
            [pad(row["mask_ids"], (0, length - row["mask_ids"].shape[1]), value=-1) for row in inputs]
        ),
        "attention_mask": torch.stack([torch.arange(length) < row["input_ids"].shape[1] for row in inputs]),
        "meta_data": [case.meta["meta_data"][sample] for sample in samples],
    }
    for name in ("pixel_values", "image_grid_thw", "sam_pixel_values", "original_sizes", "reshaped_input_sizes"):
        batch[name] = torch.cat([row[name] for row in inputs])
    # Parameters that the published code trains without effect get gradients too, to compare them.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            not name.startswith(("vlm.", "sam.vision_encoder.")) and "positional_embedding" not in name
        )
    model.train()
    model.zero_grad(set_to_none=True)
    output = model(**batch, labels=[row["masks"] for row in rows])
    _published_mean(output, [row["masks"] for row in rows], model).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.eval()

    names = ("loss_mask", "loss_dice", "accuracy", "aiou", "sam_loss_mask", "sam_loss_dice", "sam_accuracy", "sam_aiou")
    tensors = {f"output.{name}": output[name] for name in names} | {"output.total_loss": output.loss}
    ours = trained_parameters(Path(model.name_or_path))
    for name in case.expected:
        if name.startswith("output.grad."):
            tensors[name] = gradients[ours[name.removeprefix("output.grad.")]]
    values = []
    for kind in ("trainable_params_without_grad", "trainable_params_with_zero_grad"):
        stored = case.meta.get(kind, [])
        found = [name for name in stored if KIND_OF_GRADIENT[kind](gradients[ours[name]])]
        values.append(Value(kind, stored, found))
    frozen = [
        name for name, gradient in gradients.items() if gradient is not None and name.startswith(("vlm.", "sam.vision"))
    ]
    values.append(Value("frozen parameters with gradient", [], frozen))
    return Result({name: value.detach() for name, value in tensors.items() if value is not None}, values=values)


def _published_mean(output, labels, model) -> torch.Tensor:
    """The published losses weigh every mask of a batch alike; the model's own are means over images."""
    losses_of = sys.modules[type(model).__module__].mask_losses
    output.loss = 0
    for prefix, masks in (("", output.pred_masks), ("sam_", output.sam_pred_masks)):
        for name, value in losses_of(masks, labels).items():
            setattr(output, prefix + name, value)
            output.loss = output.loss + value if "loss" in name else output.loss
    return output.loss


KIND_OF_GRADIENT = {
    # The quality head is computed here and read by nobody: no gradient either.
    "trainable_params_without_grad": lambda gradient: gradient is None,
    "trainable_params_with_zero_grad": lambda gradient: gradient is not None and not gradient.any(),
}


def trained_parameters(folder: Path) -> dict[str, str]:
    """Parameters by the key of the trained checkpoint that they come from, as the conversion reports it."""
    tensors = json.loads((folder / "conversion_report.json").read_text())["tensors"]
    trained = {name: entry["from"].partition("flmm:") for name, entry in tensors.items()}
    return {key: name for name, (before, found, key) in trained.items() if found and not before}


@torch.no_grad()
def run_chat(case, model, processor) -> Result:
    ids = case.inputs["prompt_ids"][None]
    image = {
        "pixel_values": case.inputs["pixel_values"].float(),
        "image_grid_thw": case.inputs["image_grid_thw"],
        "meta_data": [case.meta["meta_data"]],
        **sam_inputs(processor, case.inputs["image_uint8"]),
    }
    answer = model.answer(
        input_ids=ids,
        mm_token_type_ids=(ids == model.config.vlm_config.image_token_id).int(),
        **generation(case),
        **image,
    )
    given = answer
    if "tf_full_ids" in case.inputs:
        start, end = case.inputs["tf_span"].flatten().tolist()
        given = model.given_answer(case.inputs["tf_full_ids"].view(1, -1)[:, :end], end - start, **image)
    generated_maps, generated_states = model.token_maps(answer, aligned=False)
    maps, states = model.token_maps(given)
    aligned = case.meta.get("grounding") == "teacher_forced"
    spans = [tuple(span) for span in case.inputs["positive_ids"].view(-1, 2).tolist()]
    output = model.ground(given if aligned else answer, spans, aligned=aligned)
    size = tuple(output.sam_pred_masks[0].shape[-2:])
    tensors = {
        "output.output_ids": answer.output_ids,
        "output.attention_maps": generated_maps,
        "output.hidden_states": generated_states,
        "output.attention_maps_teacher_forced": maps,
        "output.hidden_states_teacher_forced": states,
        "output.vision_tokens": answer.features.vision_tokens[0],
        "output.ground_pred_masks": interpolate(output.pred_masks[0][None], size=size, mode="bilinear")[0],
        "output.ground_sam_masks": output.sam_pred_masks[0],
        "intermediate.unet_out": output.pred_masks[0][:, None],
        "intermediate.mask_attentions": output.mask_attentions[0],
    }
    if output.boxes is not None:
        tensors["intermediate.boxes"] = output.boxes[0]
    return Result(tensors)


@torch.no_grad()
def run_resample(case, model, processor) -> Result:
    first = case.suite.case(case.meta["inputs_shared_with"])
    height, width = first.inputs["image_uint8"].shape[:2]
    answer = SimpleNamespace(
        features=SimpleNamespace(vision_tokens=(first.tensors["output.vision_tokens"],)),
        inputs={"image_grid_thw": first.inputs["image_grid_thw"], "original_sizes": torch.tensor([[height, width]])},
    )
    tokens, bounds = model.region_tokens(answer, case.inputs["bbox"])
    ids = model.answer_about_tokens(
        case.inputs["prompt_ids"][None],
        tokens,
        **generation(case),
    )
    return Result(
        {"output.roi_context": tokens, "output.roi_patch_bounds": torch.tensor(bounds), "output.generated_ids": ids}
    )


KINDS = {
    "forward": run_forward,
    "sam_refiner": run_refiner,
    "train": run_train,
    "chat": run_chat,
    "resample": run_resample,
}

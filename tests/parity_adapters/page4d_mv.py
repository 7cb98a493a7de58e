"""The multi-view PAGE-4D against stored results: of published code where that works, of formulas elsewhere.

Cases differ in the configuration, so each setting is a conversion of its own. A case is known by what it stores, and by
the settings that `cases.json` gives it.
"""

from __future__ import annotations

import json

import torch
from torch.nn import functional as F
from transformers import AutoModel

from tests.parity_cases import Case
from tests.parity_results import Models, Result, Value, published_overrides

SETTINGS = (
    "aa_order", "special_token_pos", "dual_stream_layers", "enable_dual_stream", "mask_standardize", "time_pos",
    "landmark_k",
    "enable_sparse_global", "sparse_strategy", "sparse_global_layers", "use_gating", "camera_trunk_scope",
)  # fmt: skip
STREAMS = ("pose", "geo")


# --------------------------------------------------------------------------------------
# Conversions
# --------------------------------------------------------------------------------------


def conversions(suite) -> dict[str, dict]:
    if not (suite.folder / "checkpoint.pt").exists():
        return {}
    sources = {"page4d": suite.folder / "checkpoint.pt", "extra": suite.folder / "extra_params.safetensors"}
    sources = {name: path for name, path in sources.items() if path.exists()}
    published = json.loads((suite.folder / "config.json").read_text())
    wanted = {}
    for case in suite.cases:
        if not case.is_json:
            wanted[case.name] = kwargs = case.meta.get("kwargs", {})
            if "feat" in case.inputs:  # it compares both ways to join masks
                wanted[gated(case)] = {**kwargs, "mask_gating": True}
    return {
        name: {"arch": "page4d", "sources": sources, "config_overrides": settings(published, kwargs)}
        for name, kwargs in wanted.items()
    }


def gated(case: Case) -> str:
    return f"{case.name}, gated"


FIELDS = {
    "rope_freq": "rope_freq",
    "dpt_layer_idx": "dpt_layers",
    "single_view_mask_layer": "mask_layer",
    "single_view_masked_layers": "masked_layers",
    "camera_num_heads": "camera_num_heads",
    "camera_iters": "camera_iterations",
    "dual_stream_layers": "dual_stream_layers",
    "sparse_global_layers": "sparse_global_layers",
    "landmark_k": "landmark_k",
    "dilated_levels": "dilated_levels",
    "lambda_clamp_value": "lambda_clamp_value",
    "aa_order": "aa_order",
    "vit_heads": "vit_heads",
    "layernorm_eps": "layer_norm_eps",
    "vit_layernorm_eps": "vit_eps",
}
SHAPES = (
    "img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_register_tokens", "vit_depth",
    "memory_tokens_num", "single_view_unmasked_layers", "camera_trunk_depth", "dpt_features", "dpt_out_channels",
    "pose_encoding_type",
)  # fmt: skip
CASE_FIELDS = {
    **{name: name for name in SETTINGS},
    "mask_gating": "use_gating",
    "levels": "dilated_levels",
    "band_pixels": "epipolar_band",
    "penalty": "epipolar_penalty",
    "time_rope_base": "time_rope_base",
    "mask_layer": "dynamic_mask_layer",
    "camera_iters": "camera_iterations",
    "single_view_mask_layer": "mask_layer",
    "single_view_masked_layers": "masked_layers",
}
# What cases say of the tensors that they store, not of the model.
ABOUT_THE_CASE = (
    "patch_start_idx", "h", "w", "patch_grid", "patch_size", "block_index", "lambdas", "pose_encoding_type",
    "memory_tokens_num",
)  # fmt: skip


def settings(published: dict, kwargs: dict) -> dict:
    """Overrides for a case: what weights do not tell, from the published configuration, under what the case says."""
    overrides = {
        "mask_alpha": 1.0,
        "enable_dual_stream": True,
        "enable_sparse_global": "enable_dual_stream" not in kwargs,
        "sparse_strategy": "memory_bank",
    }
    overrides |= published_overrides(published, FIELDS, {"qk_norm": True}, known=SHAPES)
    encoder = {"vit_heads": "num_attention_heads", "vit_eps": "layer_norm_eps"}
    overrides["encoder_config"] = {encoder[name]: overrides.pop(name) for name in encoder if name in overrides}
    if "levels" in kwargs:
        overrides["sparse_strategy"] = "dilated"
    if "landmark_k" in kwargs:
        overrides["sparse_strategy"] = "landmark"
    overrides |= published_overrides(kwargs, CASE_FIELDS, known=ABOUT_THE_CASE)
    if set(overrides.get("aa_order", ())) == {"frame", "global"}:  # one view: the order of the published trunk
        del overrides["aa_order"]
    return overrides


# --------------------------------------------------------------------------------------
# Cases
# --------------------------------------------------------------------------------------


@torch.no_grad()
def run_case(case: Case, models: Models) -> Result | None:
    if case.is_json or case.name not in models:
        return None
    inputs, kwargs = case.inputs, case.meta.get("kwargs", {})
    if "images" in inputs:
        if inputs["images"].ndim == 5:
            return Result(video(case, models))
        tensors = scene(case, models)
        # Past the first attention of the first dual layer the published pose list is fed with the other stream.
        wrong = [name for name in case.expected if ".pose_list." in name and name not in tensors]
        return Result(tensors, undefined=dict.fromkeys(wrong, "valid_for"))
    if "feat" in inputs:
        return Result(dynamic_masks(case, models))
    if "pos" in inputs and "x" in inputs:
        return Result(spatial_mask(case, models))
    if "intrinsics" in inputs:
        return Result(epipolar(case, models))
    if "confidence" in inputs:
        return Result(landmark(case, models))
    if "levels" in kwargs:
        return Result(dilated(case, models))
    if "time_rope_base" in kwargs:
        return Result(times(case, models))
    if "mask" in inputs:
        return Result(biased(case, models))
    return Result(memory(case, models))


def scene(case: Case, models: Models) -> dict:
    """The whole model on `[B, T, V, …]`."""
    inputs, tensors = case.inputs, {}
    model = models.load(AutoModel, case.name)
    if case.meta["kwargs"].get("lambdas") == "treat as 0":
        for name, parameter in model.multiview.named_parameters():
            if name.startswith("lambda_"):
                parameter.zero_()
    given = {"ext_mask": inputs.get("ext_mask"), "keypoint_map": inputs.get("keypoints")}
    first_block = {}
    hooks = [
        blocks[0].register_forward_hook(
            lambda module, arguments, output, name=name: first_block.__setitem__(name, output)
        )
        for name in STREAMS
        if model.config.enable_dual_stream
        for blocks in [getattr(model.multiview, f"{name}_{model.config.aa_order[0]}_blocks")]
    ]
    output = model(inputs["images"], **given, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    streams = output.dual_stream_outputs
    patches = model.encode_frames(inputs["images"].flatten(1, 2)).unflatten(1, inputs["images"].shape[1:3])
    tensors["intermediate.patch_tokens"] = patches
    for layer, entry in enumerate(streams["geo"]):
        kind = "intermediate" if "intermediate.tokens.0" in case.expected else "output"
        tensors[f"{kind}.tokens.{layer}"] = tensors[f"intermediate.geo_tokens.{layer}"] = entry
        tensors[f"intermediate.pose_tokens.{layer}"] = streams["pose"][layer]
    if "intermediate.geo_list.0" in case.expected:
        tensors |= published_lists(case, model, streams)
    tensors |= {f"output.{name}": output[name] for name in output if isinstance(output[name], torch.Tensor)}
    tensors |= {f"output.pose_enc_list.{i}": estimate for i, estimate in enumerate(output.pose_enc_list)}
    tensors["output.pose_enc_sequence"] = output.pose_enc
    if "output.pose_enc_frame" in case.expected or case.meta["kwargs"].get("camera_trunk_scope") != "frame":
        alone = models.load(AutoModel, case.name, camera_trunk_scope="frame")
        tensors["output.pose_enc_frame"] = alone(inputs["images"], **given).pose_enc
    if isinstance(output.memory_state, tuple):
        tensors["output.memory_pose"], tensors["output.memory_geo"] = output.memory_state
    return {name: tensor for name, tensor in tensors.items() if name in case.expected}


def published_lists(case: Case, model, streams) -> dict:
    """The published lists have two entries a layer, in the order of its attentions; only some of the pose list are
    right."""
    width, tensors = model.config.embed_dim, {}
    halves = {"time": slice(None, width), "view": slice(width, None)}
    for layer, entry in enumerate(streams["geo"]):
        for place, axis in enumerate(model.config.aa_order):
            tensors[f"intermediate.geo_list.{2 * layer + place}"] = entry[..., halves[axis]]
    first = model.config.dual_stream_layers[0]
    for index in range(2 * first + 1):
        layer, place = divmod(index, 2)
        tensors[f"intermediate.pose_list.{index}"] = streams["pose"][layer][..., halves[model.config.aa_order[place]]]
    return tensors


def video(case: Case, models: Models) -> dict:
    model = models.load(AutoModel, case.name)
    states = model(case.inputs["images"], output_hidden_states=True).hidden_states
    return {f"output.tokens.{layer}": entry for layer, entry in enumerate(states)}


# --------------------------------------------------------------------------------------
# Loading in three stages
# --------------------------------------------------------------------------------------


def run_function_case(case: Case) -> Result | None:
    """Where each tensor of the published layout comes from, in the words of the stored file."""
    content = case.meta.get("content", {})
    if "clean_sources" not in content:
        return None
    import re
    import tempfile

    from configuration_dsr import Page4DConfig
    from convert_weights import convert
    from convert_weights.architectures.page4d import multiview_rules
    from convert_weights.sources import open_source

    folder, published = case.suite.folder, content["config"]
    overrides = settings(published, {"enable_dual_stream": True, "enable_sparse_global": True})
    sources = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".pt", ".pth"):
            known = open_source("page4d", path).match(r"(?:module\.)?aggregator\.camera_token")
            sources["page4d" if known else "pi3"] = path
    with tempfile.TemporaryDirectory() as output:
        report = convert(
            "page4d", sources=sources, output=f"{output}/model", config_overrides=overrides, progress=False
        )
        config = Page4DConfig.from_pretrained(f"{output}/model")
    config.enable_dynamic_mask = True
    rules = multiview_rules(config)
    values = []
    for key, expected in content["clean_sources"].items():
        rule, match = next((rule, match) for rule in rules if (match := re.fullmatch(rule.pattern, key)))
        target = rule.targets[0]
        tensor = report.tensors[target(match) if callable(target) else match.expand(target)]
        origin = re.sub(r"\[\d+:\d+\]", "", tensor["from"])
        if tensor["action"] == "initialised":
            found = "init"
        elif tensor["action"] == "copied":
            found = re.sub(r"\[\d+:\d+\]", "", report.tensors[tensor["from"].removeprefix("copy of ")]["from"])
            expected = expected.rpartition(": ")[2]
        else:
            found = re.sub(r"\w+\((.+)\)", r"\1", origin)
            expected = expected.partition("[")[0]
            if expected.startswith("page4d with the 9-d pose head"):
                expected = f"page4d:{key}"
        values.append(Value(f"clean_sources.{key}", expected, found))
    return Result(
        values=values,
        information=(
            "config", "pi3_decoder_pairs", "page4d_mid_layers_passed_to_upstream", "upstream_stats", "upstream_sources",
        ),
    )  # fmt: skip


# --------------------------------------------------------------------------------------
# Parts
# --------------------------------------------------------------------------------------


def tables(model, models: Models, name: str, grid, times: int | None = None):
    positions, rope = (models.module("vision_rope", n, name) for n in ("patch_positions", "axial_rope_tables"))
    config = model.config
    places = positions(*grid, model.aggregator.num_special)
    if times is None:
        return rope(places, config.embed_dim // config.num_heads, config.rope_freq)
    moments = torch.arange(times).repeat_interleave(len(places))
    return rope(
        places.repeat(times, 1), config.embed_dim // config.num_heads, config.rope_freq, moments, config.time_rope_base
    )


def spread(model, mask: torch.Tensor) -> torch.Tensor:
    return F.pad(mask.squeeze(-1), (model.aggregator.num_special, 0))


def dynamic_masks(case: Case, models: Models) -> dict:
    model = models.load(AutoModel, case.name)
    special, grid = case.meta["kwargs"]["patch_start_idx"], (case.meta["kwargs"]["h"], case.meta["kwargs"]["w"])
    patches, external = case.inputs["feat"][..., special:, :], case.inputs["ext"]
    pool, head_class = (models.module("page4d_dynamic_mask", n, case.name) for n in ("pool_mask", "DynamicMaskHead"))
    pooled = pool(case.inputs["ext_pixels"], external.shape[:3], grid, model.config.patch_size)
    scalar = model.multiview.dynamic_mask_head
    gates = models.load(AutoModel, gated(case)).multiview.dynamic_mask_head
    plain = head_class(patches.shape[-1], standardize=True)  # alpha is 1, which the published code leaves out
    plain.mask_head = scalar.mask_head

    def run(head, standardize, outside):
        saved, head.standardize = head.standardize, standardize
        found = head(patches, grid, outside)[0]
        head.standardize = saved
        return found

    return {
        "intermediate.M_tilde": scalar(patches, grid)[1],
        "intermediate.ext_from_pixels": pooled,
        "output.upstream_scalar_noext": run(plain, True, None),
        "output.upstream_gated_noext": run(plain, True, None),
        "output.upstream_gated_ext": run(gates, True, external),
        "output.formula_scalar_std_ext": run(scalar, True, external),
        "output.formula_scalar_seed_ext": run(scalar, False, external),
        "output.formula_scalar_seed_noext": run(scalar, False, None),
        "output.formula_gated_seed_ext": run(gates, False, external),
        "output.formula_scalar_seed_ext_pixels": run(scalar, False, pooled),
    }


def spatial_mask(case: Case, models: Models) -> dict:
    model = models.load(AutoModel, case.name)
    trunk, x, kwargs = model.aggregator, case.inputs["x"], case.meta["kwargs"]
    grid, special = (kwargs["h"], kwargs["w"]), kwargs["patch_start_idx"]
    mask, bias = trunk._mask(x.flatten(0, 1), grid, x.shape[:2], 1.0)
    rows = F.pad(torch.zeros_like(mask.flatten(2)), (special, 0), value=1)
    block = trunk.global_blocks[kwargs.get("block_index", model.config.mask_layer)]
    rope = tables(model, models, case.name, grid)
    return {
        "output.key_bias": bias.flatten(1),
        "output.row_mask": rows.flatten(1).to(torch.uint8),
        "output.block_out": block(x.flatten(1, 2), rope=rope, attention_mask=bias),
    }


def biased(case: Case, models: Models) -> dict:
    model, kwargs = models.load(AutoModel, case.name), case.meta["kwargs"]
    new, tokens, grid = model.multiview, case.inputs["tokens"], tuple(kwargs["patch_grid"])
    rope, mask, tensors = tables(model, models, case.name, grid), spread(model, case.inputs["mask"]), {}
    for stream in STREAMS:
        view, time = (getattr(new, f"{stream}_{axis}_blocks")[kwargs["block_index"]] for axis in ("view", "time"))
        bias = {axis: new._bias(stream, axis, mask) for axis in ("view", "time")}
        tensors[f"output.view_{stream}"] = new._view(view, tokens, rope, None, grid, bias["view"])
        tensors[f"output.time_{stream}"] = new._time(time, tokens, rope, bias["time"])
    return tensors


def times(case: Case, models: Models) -> dict:
    kwargs, tokens, tensors = case.meta["kwargs"], case.inputs["tokens"], {}
    for kind in ("none", "rope", "alibi"):
        model = models.load(AutoModel, case.name, time_pos=kind)
        moments = tokens.shape[1] if kind == "rope" else None
        rope = tables(model, models, case.name, tuple(kwargs["patch_grid"]), moments)
        mask = spread(model, case.inputs["mask"])
        for stream in STREAMS:
            block = getattr(model.multiview, f"{stream}_time_blocks")[kwargs["block_index"]]
            bias = model.multiview._bias(stream, "time", mask)
            tensors[f"output.{kind}_{stream}"] = model.multiview._time(block, tokens, rope, bias)
    return tensors


def epipolar(case: Case, models: Models) -> dict:
    model, inputs, kwargs = models.load(AutoModel, case.name), case.inputs, case.meta["kwargs"]
    grid, new, tokens = (kwargs["h"], kwargs["w"]), model.multiview, inputs["tokens"]
    fundamental, distance = (
        models.module("page4d_multiview_attention", n, case.name) for n in ("fundamental_matrices", "epipolar_distance")
    )
    prior = fundamental(*(inputs[name].flatten(0, 1) for name in ("intrinsics", "extrinsics")))
    matrices, known = (part.unflatten(0, tokens.shape[:2]) for part in prior)
    pixels = distance(matrices, grid, kwargs["patch_size"])  # [B, T, V, P, V, P]
    pixels = torch.where(known[:, :, :, None, :, None], pixels, 0.0)
    special = model.aggregator.num_special
    pair = F.pad(
        -model.config.epipolar_penalty * (pixels > model.config.epipolar_band).float(), (special, 0, 0, 0, special, 0)
    )
    bias = new._bias("geo", "view", spread(model, inputs["mask"]))
    rope = tables(model, models, case.name, grid)
    return {
        "intermediate.pixel_distance": pixels,
        "output.pair_bias": pair.flatten(4, 5).flatten(2, 3),
        "output.view_geo": new._view(
            new.geo_view_blocks[kwargs.get("block_index", 0)], tokens, rope, prior, grid, bias
        ),
    }


def sparse(case: Case, models: Models, tokens, memory=None, **given):
    """One sparse block of a model whose configuration `given` may change."""
    inputs_class = models.module("page4d_multiview", "MultiviewInputs", case.name)
    loaded = {name: given.pop(name) for name in list(given) if name not in ("keypoints", "confidence")}
    model = models.load(AutoModel, case.name, **loaded)
    rope = tables(model, models, case.name, tuple(case.meta["kwargs"]["patch_grid"]))
    new = model.multiview
    if memory is None:
        memory = new._first_memory(None, len(tokens))
    block = new.global_sparse_blocks[case.meta["kwargs"].get("block_index", 0)]
    return new._sparse(block, tokens, rope, inputs_class(**given), memory, len(tokens))


def landmark(case: Case, models: Models) -> dict:
    tokens, confidence = case.inputs["tokens"], case.inputs["confidence"]
    keypoints = case.inputs["keypoints"].squeeze(-1)
    model = models.load(AutoModel, case.name)
    choose = models.module("page4d_multiview_attention", "landmarks", case.name)
    length = tokens.shape[3]

    def chosen(scores) -> torch.Tensor:
        return choose(*model.multiview._landmark_scores(tokens, scores, 1)).view(*tokens.shape[:3], -1) % length

    return {
        "intermediate.landmark_idx_norm_upstream": chosen(None),
        "intermediate.landmark_idx_confidence": chosen(confidence),
        "output.landmark_mutual": sparse(case, models, tokens)[0],
        "output.landmark_keys_only": sparse(case, models, tokens, landmark_mutual=False)[0],
        "output.landmark_conf_mutual": sparse(case, models, tokens, confidence=confidence)[0],
        "output.landmark_mutual_kpt": sparse(case, models, tokens, keypoints=keypoints)[0],
    }


def dilated(case: Case, models: Models) -> dict:
    tokens = case.inputs["tokens"]
    near = models.module("page4d_multiview_attention", "dilated_neighbours", case.name)(
        *tokens.shape[1:3], tuple(case.meta["kwargs"]["levels"])
    )
    adjacency = torch.zeros(len(near), len(near), dtype=torch.uint8)
    for image, others in enumerate(near):
        adjacency[image, others] = 1
    return {"intermediate.frame_adjacency": adjacency, "output.tokens": sparse(case, models, tokens)[0]}


def memory(case: Case, models: Models) -> dict:
    tokens, keypoints = case.inputs["tokens"], case.inputs["keypoints"].squeeze(-1)
    first, kept = sparse(case, models, tokens)
    second, after = sparse(case, models, tokens, memory=kept)
    drawn, drawn_memory = sparse(case, models, tokens, keypoints=keypoints)
    return {
        "output.tokens": first,
        "output.memory": kept,
        "output.tokens_window2": second,
        "output.memory_window2": after,
        "output.tokens_kpt": drawn,
        "output.memory_kpt": drawn_memory,
    }

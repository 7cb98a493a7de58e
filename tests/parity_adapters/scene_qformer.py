"""How the reference cases of the scene Q-Former are run: images, features, position codes, gradients, prompts."""

import re

import torch
from transformers import AutoModel, AutoModelForImageTextToText

from tests.parity_results import Result, published_overrides

CHECKPOINTS = ("*.pth", "*.pt", "*.bin", "*.safetensors")


def conversions(suite):
    """The Q-Former of a suite, or its language model; config.json says what the weights do not."""
    found = [
        path
        for pattern in CHECKPOINTS
        for path in sorted(suite.folder.glob(pattern))
        if not path.name.startswith("case_")
    ]
    described = suite.folder / "config.json"
    if not found or not described.exists():
        return {}
    config = read(described)
    if "variant" not in config:
        from convert_weights.sources import open_source

        # A language model alone; its scene tokens are stored, so the Q-Former in front of it may be of any kind.
        tokens = [shape for case in suite.cases for name, shape in shapes(case) if name == "input.scene_tokens"]
        small = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8], "embedding_size": 4}
        overrides = {
            "num_queries": tokens[0][1],
            "image_token_index": config.get("image_token_index", -200),
            "embed_dims": 16,
            "num_heads": 2,
            "ffn_dims": 16,
            "num_decoder_layers": 1,
            "backbone_config": small,
        }
        if open_source("llm", suite.folder).match(r".*map_queries\..+"):
            overrides["map_config"] = {
                "embed_dims": 16,
                "num_heads": 2,
                "instance_dims": [16],
                "point_dims": [16],
                "num_layers": 1,
            }
        return {"model": {"sources": {"llm": suite.folder}, "config_overrides": overrides}}
    fields = {name: name for name in SETTINGS} | {"variant": "position_encoding"}
    overrides = {"missing_calibration": "sine", **published_overrides(config, fields, known=SHAPES)}
    if "dilate_last" in config.get("backbone_tiny", {}):
        overrides["backbone_dilation"] = config["backbone_tiny"]["dilate_last"]
    return {"model": {"sources": {"scene_qformer": found[0]}, "config_overrides": overrides}}


SETTINGS = (
    "num_heads", "dropout", "depth_start", "depth_max", "use_lid", "pc_range", "sine_temperature", "position_frame",
    "point_clamp", "output_clamp", "missing_calibration", "image_token_index",
)  # fmt: skip
SHAPES = (
    "embed_dims", "num_queries", "num_decoder_layers", "ffn_dims", "llm_hidden_size", "num_cams", "depth_num",
    "backbone_tiny",
)  # fmt: skip


def read(path):
    import json

    return json.loads(path.read_text())


def shapes(case):
    return [(name, tuple(tensor.shape)) for name, tensor in case.tensors.items()]


def run_case(case, models):
    if "text_ids" in case.inputs:
        return run_prompt(case, models.load(AutoModelForImageTextToText))
    if "cam_intrinsic" in case.inputs:
        return run_position_code(case, models.load(AutoModel), models)
    if "output.pos" in case.expected:
        return run_table(case, models)
    inputs = case_inputs(case)
    if "img_feats" in inputs or "images" in inputs:
        if any(name.startswith("output.stage") for name in case.expected):
            return run_backbone(case, inputs["images"], models.load(AutoModel), models)
        return run_images(case, models.load(AutoModel), inputs)
    return None


def case_inputs(case) -> dict[str, torch.Tensor]:
    """Inputs in float32; a case that refers to another one takes the batch items and the tensors it names from
    there."""
    inputs = dict(case.inputs)
    reference = re.match(r"case (\w+)(?:, batch item (\d+):(\d+))?(.*)", case.meta.get("inputs_from", ""))
    if reference:
        items = slice(int(reference[2]), int(reference[3])) if reference[2] else slice(None)
        shared = {name: tensor[items] for name, tensor in case.suite.case(reference[1]).inputs.items()}
        if "camera tensors not passed" in reference[4]:
            shared = {name: tensor for name, tensor in shared.items() if not name.startswith("cam_")}
        inputs = shared | inputs
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


# --------------------------------------------------------------------------------------
# The Q-Former
# --------------------------------------------------------------------------------------


def ours(name: str) -> str:
    """Parameter name of the published checkpoint to that of the library."""
    name = re.sub(r"^img_neck", "neck", name)
    name = re.sub(r"^img_backbone\.0", "backbone.embedder.embedder.convolution", name)
    name = re.sub(r"^img_backbone\.1", "backbone.embedder.embedder.normalization", name)
    name = re.sub(r"^decoder", "scene_decoder", name)
    name = re.sub(r"^(query_embed|query_content)", "queries.content", name)
    name = re.sub(r"^spatial_query_embed", "queries.place_embed", name)
    block = re.match(r"img_backbone\.(\d)\.(\d+)\.(conv|bn)(\d)\.(.+)", name)
    if block:
        kind = "convolution" if block[3] == "conv" else "normalization"
        stage, layer, part = int(block[1]) - 4, block[2], int(block[4]) - 1
        return f"backbone.encoder.stages.{stage}.layers.{layer}.layer.{part}.{kind}.{block[5]}"
    return name


def run_images(case, model, inputs) -> Result:
    gradients = [name for name in case.expected if name.startswith("output.grad.")]
    parameters = dict(model.named_parameters())
    scales = case.meta.get("call", {}).get("scale_parameters", {})
    with torch.no_grad():
        for name, factor in scales.items():
            parameters[ours(name)].mul_(factor)
    seen = {}
    handles = [
        model.backbone.register_forward_hook(lambda m, a, output: seen.update(backbone_feats=output.feature_maps[-1])),
        model.neck.register_forward_hook(lambda m, a, output: seen.update(img_feats=output)),
        model.scene_decoder.register_forward_pre_hook(lambda m, args: seen.update(queries=args[0], memory=args[1])),
    ]
    wants_attention = any("cross_attn" in name for name in case.expected)
    cameras = {name: inputs[name] for name in ("cam_intrinsics", "cam_extrinsics") if name in inputs}
    model.zero_grad(set_to_none=True)
    try:
        with torch.set_grad_enabled(bool(gradients)):
            if "images" in inputs:
                output = model(inputs["images"], **cameras, output_attentions=wants_attention)
            else:
                # Post-neck features of one scene's cameras. The table is all that depends on the image, and on its
                # grid.
                features = inputs["img_feats"].unflatten(0, (-1, model.config.num_cams))
                size = [stride_of(model.config) * side for side in features.shape[-2:]]
                output = model.read_features(features, tuple(size), **cameras)
            if gradients:
                (output.scene_tokens * inputs["weight"]).mean().backward()
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, factor in scales.items():
                parameters[ours(name)].div_(factor)
    found = {name: tensor.detach() for name, tensor in seen.items()}
    found |= {"scene_tokens": output.scene_tokens, "scene_features": output.last_hidden_state}
    for layer, weights in enumerate(output.attentions or ()):
        found[f"cross_attn_{layer}"] = weights.mean(1).flatten(2)
    tensors = {}
    for name in case.expected:
        short = name.split(".", 1)[1]
        if short.startswith("grad."):
            tensors[name] = parameters[ours(short.removeprefix("grad."))].grad
        elif short in found:
            tensors[name] = found[short]
    return Result(tensors)


def last_stage(config) -> int:
    return int(config.backbone_config.out_features[-1].removeprefix("stage"))


def stride_of(config) -> int:
    """Pixels of the image per cell of the features."""
    return 2 ** (1 + last_stage(config)) // (2 if config.backbone_dilation else 1)


def run_backbone(case, images, model, models) -> Result:
    """The same weights read as each result's name says: up to which stage, and whether that one is dilated."""
    from transformers import AutoBackbone, ResNetConfig

    config = model.config.backbone_config
    own = last_stage(model.config), bool(model.config.backbone_dilation)

    def backbone(stages: int, dilated: bool) -> torch.nn.Module:
        if (stages, dilated) == own:
            return model.backbone
        other = AutoBackbone.from_config(
            ResNetConfig(
                embedding_size=config.embedding_size,
                depths=config.depths[:stages],
                hidden_sizes=config.hidden_sizes[:stages],
                layer_type=config.layer_type,
                out_features=[f"stage{stages}"],
            )
        )
        other.load_state_dict(model.backbone.state_dict(), strict=stages == own[0])
        if dilated:
            models.module("modeling_scene_qformer", "dilate_last_stage")(other)
        return other.eval()

    tensors = {}
    with torch.no_grad():
        for name in case.expected:
            if match := re.fullmatch(r"output\.stage(\d)(_dilated)?_stride\d+", name):
                tensors[name] = backbone(int(match[1]), match[2] is not None)(images).feature_maps[-1]
    return Result(tensors)


def run_position_code(case, model, models) -> Result:
    """One camera through the depth code."""
    seen, encoding = {}, model.position_encoding_3d
    handle = encoding.per_depth_mlp.register_forward_hook(
        lambda module, args, output: seen.update(sin_embed=args[0], per_depth=output)
    )
    call = case.meta["call"]
    grid, image_size = (call["h"], call["w"]), tuple(call["img_shape"])
    camera = case.inputs["cam_intrinsic"], case.inputs["cam_extrinsic"]
    points_of, normalize = (models.module("scene_position", name) for name in ("frustum_points", "normalize_points"))
    with torch.no_grad():
        code = encoding(*camera, grid, image_size)
        points = points_of(*camera, encoding.depth_bins, grid, image_size)
        points = normalize(points, encoding.pc_range, model.config.position_frame, model.config.point_clamp)
    handle.remove()
    found = {**seen, "pos_3d": code, "points_norm": points, "depth_bins": encoding.depth_bins}
    return Result({name: found[name.split(".", 1)[1]] for name in case.expected if name.split(".", 1)[1] in found})


def run_table(case, models) -> Result:
    call = case.meta["call"]
    table = models.module("scene_position", "sine_table")
    return Result({"output.pos": table(call["h"], call["w"], 2 * call["num_pos_feats"], call["temperature"])})


# --------------------------------------------------------------------------------------
# Prompts
# --------------------------------------------------------------------------------------


def run_prompt(case, model) -> Result:
    ids, tokens, mask = case.inputs["text_ids"], case.inputs["scene_tokens"], case.inputs.get("attention_mask")
    labels = case.inputs.get("labels", ids.masked_fill(ids == model.config.image_token_index, -100))
    seen = {}
    handle = model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(inputs_embeds=kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        output = model(input_ids=ids, scene_tokens=tokens, attention_mask=mask)
        embeds = seen["inputs_embeds"]
        wants_queries = case.expected.get("output.query_outputs")
        queries = None
        if wants_queries is not None:
            rows = len(wants_queries)
            some = {"input_ids": ids[:rows], "scene_tokens": tokens[:rows]} | (
                {} if mask is None else {"attention_mask": mask[:rows]}
            )
            queries = model(**some, output_map=True).query_outputs
        _, _, labels, _, _ = model._embed(ids, mask, labels, tokens, None)
    handle.remove()
    found = {"inputs_embeds": embeds, "logits": output.logits, "labels": labels, "query_outputs": queries}
    return Result(
        {name: found[name.split(".", 1)[1]] for name in case.expected if found.get(name.split(".", 1)[1]) is not None}
    )

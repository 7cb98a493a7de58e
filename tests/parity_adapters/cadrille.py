"""How Cadrille's reference cases are run, and what CAD-Recode's share with them."""

import re

import numpy as np
import torch
from transformers import AutoModelForImageTextToText

from tests.parity_cases import Tolerance
from tests.parity_results import Result, Value, rows_like


def conversions(suite):
    if not (suite.folder / "tiny").is_dir():
        return {}
    overrides = point_token(suite, first_tokens)
    return {"model": {"sources": {"cadrille": suite.folder / "tiny"}, "config_overrides": overrides}}


def point_token(suite, slots) -> dict:
    """The id that stands where points go, as the cases have it: `slots(inputs)` marks those places."""
    found = set()
    for case in suite.cases:
        names = {"input_ids", "attention_mask"}
        if not case.is_json and names <= case.inputs.keys() and {"point_cloud", "point_clouds"} & case.inputs.keys():
            found |= set(case.inputs["input_ids"][slots(case.inputs)].tolist())
    if len(found) > 1:
        raise ValueError(f"the cases have points in the places of several ids: {sorted(found)}")
    return {"point_token_id": found.pop()} if found else {}


def first_tokens(inputs) -> torch.Tensor:
    """Where the published code writes points: the first tokens that are no padding, in rows with points."""
    attended = inputs["attention_mask"] != 0
    order = attended.long().cumsum(1)
    return attended & (order <= inputs["point_clouds"].shape[1]) & inputs["is_pc"].bool().unsqueeze(1)


def run_case(case, models):
    if case.is_json:
        return labels(case, models) if "cases" in case.meta["content"] else None
    if "point_embeds" in outputs_of(case) and "input_ids" not in case.inputs:
        return encoder_case(case, models.load(AutoModelForImageTextToText))
    if "input_ids" in case.inputs:
        model = models.load(AutoModelForImageTextToText)
        rotary = model.model.language_model.rotary_emb
        return run_model(case, model, case.inputs["attention_mask"], rotary, "position_ids", gradient_name)
    if "image_uint8" in case.inputs:
        return picture_case(case, models)
    if "points_0" in case.inputs:
        return sampling_case(case, models)
    return None


def outputs_of(case) -> set[str]:
    return {name.split(".", 1)[1] for name in case.expected}


# --------------------------------------------------------------------------------------
# Models
# --------------------------------------------------------------------------------------


def run_model(case, model, mask, rotary, positions_name, gradient_name) -> Result:
    """Run a forward or generate case; record embeddings, features and the positions that reach the rotary embedding."""
    result, positions, videos = Result(), [], []
    model.config.round_point_embeds = were_rounded(case, model)
    hooks = [rotary.register_forward_pre_hook(lambda module, args: positions.append(args[1].clone()))]
    if hasattr(model.model, "visual"):
        hooks.append(
            model.model.visual.register_forward_hook(
                lambda module, args, output: videos.append(output.pooler_output.clone())
            )
        )
    try:
        call = case.meta.get("call", {"method": "forward"})
        if call["method"] == "generate":
            run_generate(case, model, call, positions, positions_name, result)
        else:
            run_forward(case, model, call, positions, positions_name, gradient_name, result)
        if "intermediate.point_embeds" in case.expected:
            clouds = case.inputs.get("point_clouds", case.inputs.get("point_cloud"))
            result.tensors["intermediate.point_embeds"] = model.model.point_encoder(clouds).detach()
        if videos:
            result.tensors["intermediate.video_embeds"] = videos[0]
    finally:
        model.config.round_point_embeds = False
        for hook in hooks:
            hook.remove()
    result.tensors = {name: tensor for name, tensor in result.tensors.items() if name in case.expected}
    for name, tensor in list(result.tensors.items()):
        stored = case.expected[name]
        if name.endswith("position_ids") and "decode" not in name and tensor.ndim == 3:
            tensor = rows_like(stored, tensor, axis=1)
            result.where[name] = row_mask(mask, tensor.shape[1]).expand(3, -1, -1)
        elif name != "output.sequences" and tensor.ndim > 1 and tensor.shape[1] == mask.shape[1]:
            tensor = rows_like(stored, tensor)
            if len(tensor) % len(mask) == 0:
                result.where[name] = row_mask(mask, len(tensor))
        elif name == "output.rope_deltas":
            tensor = rows_like(stored, tensor)
        result.tensors[name] = tensor
    return result


def row_mask(mask, rows: int) -> torch.Tensor:
    """Tokens that are no padding, for `rows` rows: of several beams, those of a sample follow each other."""
    return (mask != 0).repeat_interleave(rows // len(mask), 0)


def were_rounded(case, model) -> bool:
    """The published code rounds point embeddings to bfloat16; most cases were made without, and their numbers show
    it."""
    embeds = case.expected.get("intermediate.inputs_embeds")
    points = (case.inputs["input_ids"] == model.config.point_token_id) & (case.inputs["attention_mask"] != 0)
    if embeds is None or not points.any():
        return False
    return torch.equal(embeds[points], embeds[points].bfloat16().float())


def run_forward(case, model, call, positions, positions_name, gradient_name, result) -> None:
    model.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(bool(call.get("grads"))):
        outputs = model(**case.inputs, use_cache=bool(call.get("use_cache")), output_hidden_states=True)
        if call.get("grads"):
            outputs.loss.backward()
    found = result.tensors
    found["output.logits"] = outputs.logits
    if outputs.loss is not None:
        found["output.loss"] = outputs.loss.reshape(1)
    if getattr(outputs, "rope_deltas", None) is not None:
        found["output.rope_deltas"] = outputs.rope_deltas
    for index, state in enumerate(outputs.hidden_states):
        found[f"intermediate.hidden_states.{index}"] = state
    found["intermediate.inputs_embeds"] = outputs.hidden_states[0]
    found[f"intermediate.{positions_name}"] = positions[0]
    if call.get("grads"):
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[f"output.grad.{gradient_name(name)}"] = parameter.grad
    result.tensors = {name: found[name].detach() for name in found if name in case.expected}


def run_generate(case, model, call, positions, positions_name, result) -> None:
    settings = {key: value for key, value in call.items() if key != "method"}
    outputs = model.generate(**case.inputs, **settings, output_logits=True, return_dict_in_generate=True)
    found = result.tensors
    found["output.sequences"] = outputs.sequences
    found["output.step_logits"] = torch.stack(outputs.logits)
    if getattr(model.model, "rope_deltas", None) is not None:
        found["output.rope_deltas"] = model.model.rope_deltas
    found[f"intermediate.prefill_{positions_name}"] = positions[0]
    found[f"intermediate.decode_{positions_name}"] = torch.stack(positions[1:])
    result.tensors = {name: found[name] for name in found if name in case.expected}


def gradient_name(name: str) -> str:
    """A parameter under its published name."""
    name = re.sub(r"^model\.(point_encoder|visual)\.", r"\1.", name)
    return re.sub(r"^model\.language_model\.", "model.", name)


def encoder_case(case, model) -> Result:
    features = []
    encoder = model.model.point_encoder
    hook = encoder.fourier_embedder.register_forward_hook(lambda module, args, output: features.append(output))
    with torch.no_grad():
        embeds = encoder(case.inputs["points"])
    hook.remove()
    return Result({"output.point_embeds": embeds, "output.features": features[0]}, kinds={"output.features": "embeds"})


# --------------------------------------------------------------------------------------
# Processor
# --------------------------------------------------------------------------------------


def labels(case, models) -> Result:
    answer_labels, content = models.module("processing_cadrille", "answer_labels"), case.meta["content"]
    ids = special_ids(content["rule"])
    values = [
        Value(f"cases.{name}", entry["labels"], answer_labels(entry["input_ids"], **ids))
        for name, entry in content["cases"].items()
    ]
    return Result(values=values)


def special_ids(rule: str) -> dict:
    """The ids that the rule names in words: "…, 151644 im_start, 151645 im_end, 77091 … for the word assistant"."""
    named = {int(number): words for number, words in re.findall(r"(\d+) ([^,;]+)", rule)}

    def one(word: str) -> int:
        found = [number for number, words in named.items() if word in words]
        if len(found) != 1:
            raise ValueError(f"the rule names {len(found)} ids of {word!r}: {rule}")
        return found[0]

    return {"im_start": one("im_start"), "header": [one("assistant")], "im_end": one("im_end")}


def picture_case(case, models) -> Result:
    from PIL import Image
    from transformers import Qwen2VLImageProcessor

    encode_views = models.module("cad_views", "encode_views")
    limits = re.findall(r"(min|max)_pixels=(\d+)\*(\d+)\*(\d+)", case.meta.get("exercises", ""))
    wanted = {name: int(a) * int(b) * int(c) for name, a, b, c in limits}
    ours = dict(zip(("min", "max"), models.module("cad_views", "VIEW_PIXEL_LIMITS")))
    if wanted and wanted != ours:
        raise ValueError(f"the case resizes pictures to {wanted} pixels, this library to {ours}")
    vision = models.load(AutoModelForImageTextToText).config.vision_config
    sizes = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
    processor = Qwen2VLImageProcessor(**sizes, temporal_patch_size=vision.temporal_patch_size)
    picture = Image.fromarray(case.inputs["image_uint8"].numpy())
    patches, grid = encode_views(picture, processor)
    first = models.module("cad_views", "resize_to_multiple")(picture, vision.patch_size * vision.spatial_merge_size)
    found = {
        "output.video_grid_thw": torch.tensor([grid]),
        "output.selected_patches": patches[case.expected["output.selected_patch_index"]],
        "output.selected_patch_index": case.expected["output.selected_patch_index"],  # which patches were stored
        "output.patch_mean": patches.mean(1),
        "output.patch_std": patches.std(1),
        "intermediate.frame_after_fetch_uint8": torch.from_numpy(np.array(first)),
    }
    return Result(found, kinds={name: "pixel values" for name in found})


def sampling_case(case, models) -> Result:
    sample = models.module("cad_solids", "farthest_point_sample")
    found = {}
    for name, count in case.expected.items():
        if name.startswith("output.k_"):
            points = case.inputs[f"points_{name[9:]}"]
            found[f"output.ids_{name[9:]}"] = sample(points, int(count))
            found[name] = torch.tensor([found[f"output.ids_{name[9:]}"].shape[1]])
    return Result(found)


# --------------------------------------------------------------------------------------
# Metrics and execution
# --------------------------------------------------------------------------------------


def run_function_case(case):
    if "gt_points" in case.inputs:
        from dsr_toolkit.cad.metrics import chamfer_distance

        distance = chamfer_distance(case.inputs["gt_points"].numpy(), case.inputs["pred_points"].numpy())
        return Result({"output.chamfer": torch.tensor([distance], dtype=torch.float64)})
    if case.is_json and "scripts" in case.meta["content"]:
        return execution(case.meta["content"])
    return None


SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")


def code_of_outcome(outcome: str) -> str:
    """The sandbox's code for what the published evaluation writes of a program that gives no solid."""
    if "killed" in outcome:
        return "timeout"
    raised = re.match(r"invalid (?:\w+\.)*(\w+)(?:: ?(.*))?$", outcome, re.DOTALL)
    if raised is None:
        if re.search(r"\bmesh\b|faces", outcome):
            return "empty_mesh"
        raise ValueError(f"an outcome that this adapter does not know: {outcome!r}")
    name, message = raised[1], raised[2] or ""
    if name in SYNTAX_ERRORS:
        return "syntax"
    if name == "KeyError" and message.strip() == "'r'":
        return "no_result"
    return "memory" if name == "MemoryError" else "runtime"


def seconds_of(outcomes: list[str]) -> float:
    """After how long the published evaluation gave programs up, as it says itself."""
    given = [float(found[1]) for outcome in outcomes if (found := re.search(r"after (\d+(?:\.\d+)?) ?s", outcome))]
    return max(given, default=3.0)


def execution(content) -> Result:
    """Programs run in the sandbox, their meshes measured. Without the policy check: the published code has none."""
    from dsr_toolkit.cad import Sandbox, SandboxLimits
    from dsr_toolkit.cad.metrics import intersection_over_union, mesh_chamfer_distance, normalize_prediction, solid_body
    from modeling_dsr.cad_solids import TriangleMesh

    values, meshes = [], {}
    invalid = content.get("invalid_scripts", {})
    limits = SandboxLimits(seconds=seconds_of([script["upstream_outcome"] for script in invalid.values()]))
    with Sandbox(workers=2, limits=limits, policy=False, allow_missing="all") as sandbox:
        for name, script in content["scripts"].items():
            done = sandbox.run(script["code"])
            mesh = TriangleMesh(done.vertices, done.faces)
            meshes[name] = normalize_prediction(mesh), done.solids
            body = solid_body(mesh, done.solids)
            found = {
                "brep_volume": done.volume,
                "mesh_volume": body.volume(),
                "mesh_area": float(mesh.face_normals()[1].sum()),
                "n_faces": len(mesh.faces),
                "n_vertices": len(np.unique(np.round(mesh.vertices, 6), axis=0)),
                "n_bodies": len(np.unique(done.solids)),
                "bounds": mesh.bounds.tolist(),
            }
            values += [
                Value(f"scripts.{name}.{key}", script[key], value) for key, value in found.items() if key in script
            ]
        for name, script in invalid.items():
            expected = code_of_outcome(script["upstream_outcome"])
            values.append(Value(f"invalid_scripts.{name}", expected, sandbox.run(script["code"]).code))
    for name, pair in content.get("pairs", {}).items():
        (first, first_solids), (second, second_solids) = (meshes[part] for part in name.split("|"))
        iou = intersection_over_union(first, second, first_solids, second_solids)
        values.append(Value(f"pairs.{name}.iou", pair["iou"], iou, Tolerance(atol=1e-5)))
        # Random surface points: the stored spread over seeds says how far apart two means may lie.
        key, seeds = next((key, int(m[1])) for key in pair if (m := re.fullmatch(r"cd_x1000_mean_of_(\d+)_seeds", key)))
        distance = 1000 * np.mean([mesh_chamfer_distance(first, second, seed=seed) for seed in range(seeds)])
        values.append(
            Value(f"pairs.{name}.{key}", pair[key], float(distance), Tolerance(atol=5 * pair["cd_x1000_std"]))
        )
    return Result(values=values, information=("versions",))

"""How CAD-Recode's reference cases are run."""

import re

from transformers import AutoModelForCausalLM

from tests.parity_adapters.cadrille import encoder_case, outputs_of, point_token, run_model
from tests.parity_results import rows_like


def conversions(suite):
    if not (suite.folder / "tiny").is_dir():
        return {}
    overrides = point_token(suite, lambda inputs: inputs["attention_mask"] == -1) or {"point_token_id": 0}
    return {"model": {"sources": {"cad_recode": suite.folder / "tiny"}, "config_overrides": overrides}}


def run_case(case, models):
    model = models.load(AutoModelForCausalLM)
    if "input_ids" not in case.inputs:
        return encoder_case(case, model) if "point_embeds" in outputs_of(case) else None
    mask = case.inputs["attention_mask"]
    result = run_model(case, model, mask, model.model.rotary_emb, "rope_position_ids", gradient_name)
    name = "intermediate.prefill_rope_position_ids"
    if name in result.tensors and len(case.expected[name]) == 1:  # stored once for rows that are all alike
        result.tensors[name] = rows_like(case.expected[name], result.tensors[name])
        result.where.pop(name, None)
    # The published code rewrites the mask it gets, which is the caller's unless rows were copied for several beams.
    # Here the decoder gets such a mask and the caller's stays.
    call = case.meta.get("call", {})
    copied = call.get("num_beams", 1) > 1 or call.get("num_return_sequences", 1) > 1
    plain_attention_mask = models.module("cad_point_encoder", "plain_attention_mask")
    result.tensors["output.attention_mask_after_call"] = mask if copied else plain_attention_mask(mask)
    return result


def gradient_name(name: str) -> str:
    """A parameter under its published name."""
    return re.sub(r"^model\.point_encoder\.", "point_encoder.", name)

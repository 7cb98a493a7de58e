"""How CAD-Recode's reference cases are run."""

import re

from transformers import AutoModelForCausalLM

from tests.parity_adapters.cadrille import encoder_case, outputs_of, run_model


def conversions(suite):
    return {"model": {"sources": {"cad_recode": suite.folder / "tiny"}}} if (suite.folder / "tiny").is_dir() else {}


def run_case(case, models):
    model = models.load(AutoModelForCausalLM)
    if "input_ids" not in case.inputs:
        return encoder_case(case, model) if "point_embeds" in outputs_of(case) else None
    mask = case.inputs["attention_mask"]
    result = run_model(case, model, mask, model.model.rotary_emb, "rope_position_ids", gradient_name)
    prefill = result.tensors.get("intermediate.prefill_rope_position_ids")
    if prefill is not None and (prefill == prefill[:1]).all():  # stored once for rows that are all alike
        result.tensors["intermediate.prefill_rope_position_ids"] = prefill[:1]
        result.where.pop("intermediate.prefill_rope_position_ids", None)
    # The published code rewrites the caller's mask; here the decoder gets such a mask and the caller's stays.
    plain_attention_mask = models.module("point_encoder", "plain_attention_mask")
    result.tensors["output.attention_mask_after_call"] = plain_attention_mask(mask)
    return result


def gradient_name(name: str) -> str:
    """A parameter under its published name."""
    return re.sub(r"^model\.point_encoder\.", "point_encoder.", name)

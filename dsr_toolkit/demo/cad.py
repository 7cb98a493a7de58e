"""Cadrille and CAD-Recode write programs for a part, and a program is turned into a solid in confinement."""

import json
from pathlib import Path

from ..console import say, step
from ..extras import needs
from ..tiny import build

TITLE = "Cadrille and CAD-Recode: a part becomes a CAD program"
NEW_TOKENS = 48
PROGRAM = """\
import cadquery as cq
r = cq.Workplane('XY').box(120, 80, 30).faces('>Z').workplane().rect(80, 40, forConstruction=True).vertices().hole(18)
r = r.union(cq.Workplane('XY').circle(22).extrude(60)).faces('>Z').workplane().hole(24)
"""


def run(folder: Path, model: str | None = None) -> dict:
    """Both tiny models read the part's points; a written program stands in for a trained model's answer, and says
    so."""
    from ..cad import ConfinementError, Sandbox
    from ..cad.candidates import best_candidate, generate_programs, judge_programs
    from ..cad.metrics import normalize_prediction
    from ..cad.pictures import part_sheet
    from ..loading import load

    try:
        needs("cad", "Running programs")
        with step("Starting the sandbox"):
            sandbox = Sandbox(workers=2)
    except (ImportError, ConfinementError) as error:
        print(f"Not shown: {error}")
        return {"skipped": str(error)}
    report = {"models": {}, "random_weights": model is None}
    with sandbox:
        target = judge_programs([PROGRAM], sandbox)[0].mesh
        programs = []
        for kind in ("cadrille", "cad_recode") if model is None else (None,):
            if kind is None:
                from transformers import AutoConfig

                source, kind = model, AutoConfig.from_pretrained(model).model_type
            else:
                source = build(kind, folder / kind)
            network, processor = load(str(source), kind)
            tokens = NEW_TOKENS if report["random_weights"] else 768
            with step(f"{kind} reads {processor.num_points} points and writes a program"):
                written = generate_programs(network, processor, processor(meshes=target), 1, max_new_tokens=tokens)
            programs += written
            report["models"][kind] = {"model": str(source), "program": written[0]}
            print(f"{kind} wrote: {written[0][:70]!r} …")
        if report["random_weights"]:
            print(
                "(random weights: these programs mean nothing; the solid below is of a program that was not generated)"
            )
            programs.append(PROGRAM)
        candidates = judge_programs(programs, sandbox, target)
    best = best_candidate(candidates)
    report["candidates"] = [{"code": c.code, "message": c.execution.message, "chamfer": c.chamfer} for c in candidates]
    for candidate in candidates:
        print(f"   {candidate.code}: {candidate.execution.message or f'chamfer x1000 {1000 * candidate.chamfer:.4f}'}")
    note = "solid of a given program, not generated" if report["random_weights"] else "solid of the best program"
    picture = folder / "part.png"
    solid = None if best is None else normalize_prediction(candidates[best].mesh)
    part_sheet(target, solid, "A part and its solid", (note,)).save(picture)
    (folder / "programs.json").write_text(json.dumps(programs, indent=2) + "\n", encoding="utf-8")
    say("Rejected programs never ran; the others ran without files, network or further processes.")
    print(f"   {picture}")
    return report | {"picture": picture.name, "note": note}

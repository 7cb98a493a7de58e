"""Cadrille and CAD-Recode write programs for a part that they never saw; the programs are run in confinement."""

import json
from pathlib import Path

from ..console import say, step
from ..extras import needs
from .page import Panel, Text
from .shown import choose, facts, measured

TITLE = "Cadrille and CAD-Recode: a part is rebuilt by a CAD program"
SEED, INDEX = 2026, 3  # no recipe trains on this seed
EDGE = 8  # pixels around a solid
LONGEST = 768  # tokens of a program of a model that is not tiny


def run(folder: Path, model: str | None = None) -> tuple[dict, Panel]:
    """Both tiny models read the part's points and write; the solids are compared with the part."""
    from ..cad import ConfinementError, Sandbox
    from ..cad.pictures import INPUT_COLOR, RESULT_COLOR, part_sheet
    from ..evaluation.world_cad import MAX_NEW_TOKENS
    from ..worlds.parts import PartsWorld

    try:
        needs("cad", "Running programs")
        with step("Starting the sandbox"):
            sandbox = Sandbox(workers=2)
    except (ImportError, ConfinementError) as error:
        print(f"Not shown: {error}")
        return {"skipped": str(error)}, Panel(TITLE, lines=[Text(f"Not shown: {error}")])
    sample = PartsWorld(SEED)[INDEX]
    report: dict = {"models": {}}
    row, said, programs = [], [Text(sample.text, size=15)], {}
    with sandbox:
        chosen = [_chosen(model, kind) for kind in (("cadrille", "cad_recode") if model is None else (None,))]
        trained = [one for one in chosen if one[2] is None or not one[2].random]
        for source, kind, stand_in, figures in trained or chosen:
            program, value, true, solid = rebuild(
                source, kind, sample, sandbox, MAX_NEW_TOKENS if stand_in else LONGEST
            )
            programs[kind] = program
            report["models"][kind] = {**facts(source, stand_in), "program": program, "iou": value}
            outcome = "gives no valid solid" if value is None else f"gives a solid with an IoU of {value:.3f}"
            said.append(Text(f"{kind} wrote a program of {len(program.splitlines())} lines, which {outcome}."))
            if figures:
                said.append(
                    Text(
                        f"On {figures['count']} fresh parts: {figures['valid']:.0%} valid, "
                        f"median IoU {figures['median_iou']:.2f}."
                    )
                )
            if not row:
                sheet = part_sheet(true, solid, "A part and what the program makes", (sample.text,))
                sheet.save(folder / "part.png")
                row.append(("the part", view(true, INPUT_COLOR)))
                about = stand_in.remark if stand_in else source
                code = [Text(line, size=14) for line in program.splitlines()]
            row.append((f"{kind}'s solid", view(solid, RESULT_COLOR)))
    (folder / "programs.json").write_text(json.dumps(programs, indent=2) + "\n", encoding="utf-8")
    for line in (*code, *said):
        print(f"   {line.text}")
    say("Programs run without files, network or further processes.")
    print(f"   {folder / 'part.png'}")
    random = all(one["random_weights"] for one in report["models"].values())
    return report | {"random_weights": random, "picture": "part.png"}, Panel(
        TITLE, about, [row], [said[0], *code, *said[1:]]
    )


def _chosen(model: str | None, kind: str | None):
    """Source, model type, what stands in, and figures."""
    if kind is None:
        from transformers import AutoConfig

        return str(model), AutoConfig.from_pretrained(model).model_type, None, None
    source, stand_in = choose(None, kind)
    return source, kind, stand_in, measured(kind, stand_in, "valid", "median_iou")


def rebuild(source: str, kind: str, sample, sandbox, max_new_tokens: int):
    """(program, IoU of its solid with the part or None, the part's mesh and the solid's, both in the unit cube)."""
    from modeling_dsr.cad_solids import TriangleMesh

    from ..cad.metrics import normalize_prediction
    from ..evaluation.world_cad import Judge, write_programs
    from ..loading import load

    network, processor = load(source, kind)
    with step(f"{kind} reads {processor.num_points} points and writes a program"):
        ((program,),) = write_programs(network, processor, [sample], "points", max_new_tokens=max_new_tokens)
    judge = Judge(sandbox)
    (value,) = judge.ious([program], sample)
    true, found = (judge.executions[one.strip()] for one in (sample.program, program))
    meshes = [normalize_prediction(TriangleMesh(one.vertices, one.faces)) if one.ok else None for one in (true, found)]
    return program, value, *meshes


def view(mesh, color):
    """A solid from the front right corner above; white where there is none."""
    from PIL import Image

    from modeling_dsr.cad_solids import TriangleMesh
    from modeling_dsr.cad_views import render_mesh

    from ..cad.pictures import PAPER, VIEW, upright

    if mesh is None:
        return Image.new("RGB", (VIEW, VIEW), PAPER)
    turned = TriangleMesh(upright(mesh.vertices), mesh.faces)
    shown = render_mesh(turned, (-1.0, 1.0, 1.0), VIEW, color, smooth=False, oversampling=2)
    rows, columns = ((shown < 255).any(-1).any(axis) for axis in (1, 0))
    top, left = (max(0, int(line.argmax()) - EDGE) for line in (rows, columns))
    bottom, right = (VIEW - max(0, int(line[::-1].argmax()) - EDGE) for line in (rows, columns))
    return Image.fromarray(shown[top:bottom, left:right])

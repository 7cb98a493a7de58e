"""What `dsr demo` shows. A section is a module of this package with `TITLE` and
`run(folder, model) -> (report, panel)`.

`run` works in `folder`, which exists and is empty, prints what it finds, writes something to look at and returns what
demo.json should record, and its card of the page that `dsr demo` puts together. `model` is what `--model` gave; None
means the tiny model that is carried along.
"""

# Keyed by model type, in the order in which they are shown.
SECTIONS = {
    "dsr": "dsr_toolkit.demo.dsr",
    "frozen_qwen_sam": "dsr_toolkit.demo.frozen_qwen_sam",
    "pi3": "dsr_toolkit.demo.pi3",
    "page4d": "dsr_toolkit.demo.page4d",
    "scene_qformer": "dsr_toolkit.demo.scene_qformer",
    "cadrille": "dsr_toolkit.demo.cad",
}

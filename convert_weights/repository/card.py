"""`README.md` of the Hub repository, made of `model_card.md`: front matter, tables, and the sections of its models.

In `model_card.md`, `<!-- models -->` and `<!-- licences -->` stand for tables, and what lies between
`<!-- begin NAME … -->` and `<!-- end -->` is kept where the repository holds a model of one of the architectures named;
the section `subfolders`, where there are any. `OWNER/dsr` stands for the repository's name, which `publish` knows, and
the subfolder `pi3` in examples for the first one that there is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

from .files import beside
from .licences import Terms, hub_id, of_the_whole

SOURCE = "model_card.md"
PLACEHOLDER = "OWNER/dsr"
RELATIONS = ("adapter", "merge", "quantized", "finetune")


@dataclass(frozen=True)
class Kind:
    """What the tables and the front matter say of an architecture."""

    title: str
    takes: str
    gives: str
    needs: str
    tags: tuple[str, ...]


KINDS = {
    "dsr": Kind(
        "DSR",
        "videos and images, a question",
        "an answer about motion and space",
        "torchvision; av for video files",
        ("spatial-reasoning", "video"),
    ),
    "pi3": Kind(
        "π³ or Pi3X",
        "unordered images",
        "points, confidences, camera poses",
        "av for video files",
        ("image-to-3d", "camera-pose"),
    ),
    "page4d": Kind(
        "PAGE-4D",
        "frames of a moving scene",
        "cameras, depth, points, dynamic masks",
        "av for video files",
        ("depth-estimation", "dynamic-scenes"),
    ),
    "frozen_qwen_sam": Kind(
        "FrozenQwenSAM",
        "an image, phrases or a question",
        "masks, answers",
        "nothing more",
        ("image-segmentation", "grounding"),
    ),
    "cadrille": Kind(
        "Cadrille",
        "points, a mesh, views or a text",
        "a CadQuery program",
        "CadQuery to run programs",
        ("cad", "cadquery"),
    ),
    "cad_recode": Kind(
        "CAD-Recode",
        "points or a mesh",
        "a CadQuery program",
        "CadQuery to run programs",
        ("cad", "point-cloud"),
    ),
    "scene_qformer": Kind(
        "Scene Q-Former",
        "six camera images",
        "512 scene tokens, a text about them",
        "timm where the backbone is timm's",
        ("autonomous-driving",),
    ),
}


def make_card(models: dict, all_terms: list[Terms], sources: dict[str, list[dict]]) -> str:
    """
    The card of a repository.

    Args:
        models: records of `HubReport.models` by name.
        all_terms: terms of every source of every model.
        sources: `sources` of the conversion report, by model.
    """
    from huggingface_hub import ModelCard

    card = ModelCard(beside(SOURCE).read_text(encoding="utf-8"), ignore_metadata_errors=False)
    for key, value in _front_matter(card.data, models, all_terms, sources).items():
        setattr(card.data, key, value)
    subfolders = [model["subfolder"] for model in models.values() if model["subfolder"]]
    kept = {model["architecture"] for model in models.values()} | ({"subfolders"} if subfolders else set())
    text = _keep_sections(card.text, kept)
    for subfolder in subfolders[:1]:  # what the examples use
        text = text.replace('subfolder="pi3"', f'subfolder="{subfolder}"').replace('"pi3/*"', f'"{subfolder}/*"')
    for mark, table in {"models": model_table(models), "licences": licence_table(all_terms)}.items():
        if f"<!-- {mark} -->" not in text:
            raise ValueError(f"{SOURCE} has no line `<!-- {mark} -->` for its table.")
        text = text.replace(f"<!-- {mark} -->", table)
    card.text = text
    content = f"---\n{card.data.to_yaml()}\n---\n{text}"
    check_card(content)
    return content


def check_card(content: str) -> None:
    """
    Read a card with huggingface_hub's own classes, and check what the Hub rejects or ignores.

    Raises:
        ValueError: the front matter is missing, no YAML, or a field cannot be what it is.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.utils import validate_repo_id

    try:
        data = ModelCard(content, ignore_metadata_errors=False).data.to_dict()
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"README.md has no front matter that the Hub accepts: {error}") from None
    if not data:
        raise ValueError("README.md has no front matter: it must start with a block of YAML between lines of `---`.")
    for key in ("library_name", "pipeline_tag", "license"):
        if not isinstance(data.get(key), str):
            raise ValueError(f"README.md: `{key}` must be one word of text, found {data.get(key)!r}.")
    if data["license"] == "other" and not (data.get("license_name") and data.get("license_link")):
        raise ValueError("README.md: `license: other` needs `license_name` and `license_link`.")
    for key in ("tags", "language", "datasets"):
        values = data.get(key) or []
        if not all(isinstance(value, str) for value in ([values] if isinstance(values, str) else values)):
            raise ValueError(f"README.md: `{key}` must be text or a list of texts, found {values!r}.")
    bases = data.get("base_model") or []
    for base in [bases] if isinstance(bases, str) else bases:
        validate_repo_id(base)  # its error is a ValueError, too
    if data.get("base_model_relation", "merge") not in RELATIONS:
        raise ValueError(
            f"README.md: `base_model_relation` must be one of {RELATIONS}, found {data['base_model_relation']!r}."
        )


def _front_matter(data, models: dict, all_terms: list[Terms], sources: dict[str, list[dict]]) -> dict:
    found = [hub_id(source["location"]) for listed in sources.values() for source in listed]
    bases = list(dict.fromkeys(base for base in found if base))
    tags = [tag for model in models.values() for tag in KINDS[model["architecture"]].tags]
    fields = {"base_model": bases or None, "base_model_relation": "merge" if len(bases) > 1 else None}
    fields["tags"] = list(dict.fromkeys([*(data.tags or []), *tags]))
    fields |= {"license_name": None, "license_link": None, **of_the_whole(all_terms)}
    return fields


def _keep_sections(text: str, architectures: set[str]) -> str:
    def replace(match: re.Match) -> str:
        return match[2] if architectures.intersection(match[1].split()) else ""

    return re.sub(r"<!-- begin ([\w ]+) -->\n(.*?)<!-- end -->\n", replace, text, flags=re.DOTALL)


def model_table(models: dict) -> str:
    """What each subfolder is, how it is loaded, and what it needs."""
    lines = [
        "| subfolder | model | takes | gives | load with | parameters | weights | also needs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in models.values():
        kind = KINDS[model["architecture"]]
        folder = f"`{model['subfolder']}`" if model["subfolder"] else "the root"
        processor = "" if model["processor"] else " (no processor)"
        lines.append(
            f"| {folder} | {kind.title} | {kind.takes} | {kind.gives} | `{model['auto_class']}`{processor} | "
            f"{count(model['parameters'])} | {size(model['bytes'])}, {model['dtype']} | {kind.needs} |"
        )
    return "\n".join(lines)


def licence_table(all_terms: list[Terms]) -> str:
    lines = ["| model | source | published as | licence | |", "|---|---|---|---|---|"]
    for one in all_terms:
        base = hub_id(one.location)
        published = f"[{base}](https://huggingface.co/{base})" if base else f"`{one.location}`"
        lines.append(f"| {one.model} | {one.source} | {published} | {one.title} | {one.use} |")
    return "\n".join(lines)


def licence_file(all_terms: list[Terms]) -> str:
    """Text of `LICENSE.md`."""
    return (
        "# Terms of the sources\n\nThe weights in this repository were converted from checkpoints of several "
        "publishers and stay under their terms. A model made of several sources is bound by all of them.\n\n"
        f"{licence_table(all_terms)}\n"
    )


def count(parameters: int) -> str:
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.2f} {letter}"
    return str(parameters)


def size(nbytes: int) -> str:
    if nbytes >= 1e8:
        return f"{nbytes / 1e9:.1f} GB"
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 1e5 else f"{nbytes / 1e3:.1f} kB"


def card_for(repo_id: str, card: str) -> str:
    """The card with the repository's name in its examples."""
    return card.replace(PLACEHOLDER, repo_id)

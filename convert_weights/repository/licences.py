"""Under which terms the sources of a converted model were published.

What is written here is what the publishers' cards said; where nothing certain is known, the licence is `unknown`, and
that is what card and `publish` say. `hub --license MODEL.SOURCE=ID` enters what the user knows better.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

PERMISSIVE = {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause"}
NON_COMMERCIAL = {"cc-by-nc-4.0", "cc-by-nc-sa-4.0", "qwen-research"}
UNKNOWN = "unknown"
TITLES = {
    "apache-2.0": "Apache 2.0",
    "mit": "MIT",
    "bsd-2-clause": "BSD 2-Clause",
    "bsd-3-clause": "BSD 3-Clause",
    "cc-by-nc-4.0": "CC BY-NC 4.0",
    "cc-by-nc-sa-4.0": "CC BY-NC-SA 4.0",
    "qwen-research": "Qwen Research License",
    "llama2": "Llama 2 Community License",
    UNKNOWN: "unknown: ask its publisher",
}

# Published checkpoints by Hub id. A local copy is recognised by the name of its folder or file.
PUBLISHED = {
    "TencentARC/DSR_Suite-Model": "cc-by-nc-4.0",  # its card says Apache 2.0, but it holds π³'s encoder
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen-research",
    "Qwen/Qwen2.5-VL-7B-Instruct": "apache-2.0",
    "Qwen/Qwen2-VL-2B-Instruct": "apache-2.0",
    "Qwen/Qwen2-VL-7B-Instruct": "apache-2.0",
    "Qwen/Qwen2-1.5B": "apache-2.0",
    "yyfz233/Pi3": "cc-by-nc-4.0",
    "yyfz233/Pi3X": "cc-by-nc-4.0",
    "facebook/VGGT-1B": "cc-by-nc-4.0",
    "maksimko123/cadrille": "cc-by-nc-4.0",
    "filapro/cad-recode": "cc-by-nc-4.0",
    "filapro/cad-recode-v1.5": "cc-by-nc-4.0",
    "lmsys/vicuna-7b-v1.5": "llama2",
    "timm/resnet50.tv_in1k": "bsd-3-clause",
}
PUBLISHED_FILES = {"sam_vit_b_01ec64.pth": "apache-2.0", "sam_vit_l_0b3195.pth": "apache-2.0"}
PUBLISHED_FILES["sam_vit_h_4b8939.pth"] = "apache-2.0"

# What a source of this name is taken to be when its location tells nothing: the strictest of what it may hold.
BY_SOURCE = {
    ("dsr", "dsr"): "cc-by-nc-4.0",
    ("dsr", "pi3"): "cc-by-nc-4.0",
    ("pi3", "pi3"): "cc-by-nc-4.0",
    ("pi3", "pi3x"): "cc-by-nc-4.0",
    ("page4d", "pi3"): "cc-by-nc-4.0",
    ("page4d", "track"): "cc-by-nc-4.0",
    ("frozen_qwen_sam", "sam"): "apache-2.0",
    ("cadrille", "cadrille"): "cc-by-nc-4.0",
    ("cad_recode", "cad_recode"): "cc-by-nc-4.0",
}


@dataclass(frozen=True)
class Terms:
    """The terms of one source of one model.

    Attributes:
        model, source: the model's name in the repository, and the source's in its conversion report.
        location: Hub id, or the name of the file or folder that was converted.
        license: identifier as the Hub writes it, or `"unknown"`.
    """

    model: str
    source: str
    location: str
    license: str

    @property
    def title(self) -> str:
        return TITLES.get(self.license, self.license)

    @property
    def restricted(self) -> bool:
        """Whether commercial use is excluded, conditional, or not known to be allowed."""
        return self.license not in PERMISSIVE

    @property
    def use(self) -> str:
        """What the licence says of commercial use, in a few words."""
        if self.license in PERMISSIVE:
            return "commercial use allowed"
        return "no commercial use" if self.license in NON_COMMERCIAL else "see its terms"


def hub_id(location: str) -> str | None:
    """The published checkpoint that a location in a conversion report names, or None."""
    plain = re.sub(r"[@:#].*", "", location).removeprefix("datasets/")
    for known in PUBLISHED:
        if known in (plain, location) or PurePosixPath(known).name == plain:
            return known
    return None


def terms(model: str, architecture: str, sources: list[dict], given: dict[str, str]) -> list[Terms]:
    """Terms of every source of a model's conversion report; `given` holds licences by `MODEL.SOURCE`."""
    found = []
    for source in sources:
        name, location = source["name"], source["location"]
        known = PUBLISHED.get(hub_id(location) or "") or PUBLISHED_FILES.get(PurePosixPath(location).name)
        licence = given.get(f"{model}.{name}") or known or BY_SOURCE.get((architecture, name), UNKNOWN)
        found.append(Terms(model, name, location, licence))
    return found


def of_the_whole(all_terms: list[Terms]) -> dict[str, str]:
    """`license` of the card, and where no identifier fits, `license_name` and `license_link`."""
    restricting = {one.license for one in all_terms if one.restricted}
    if len(restricting) == 1 and restricting <= {"cc-by-nc-4.0", "cc-by-nc-sa-4.0"}:
        return {"license": restricting.pop()}
    if not restricting:
        licenses = {one.license for one in all_terms}
        return {"license": "apache-2.0" if "apache-2.0" in licenses else min(licenses)}
    return {"license": "other", "license_name": "terms-of-the-sources", "license_link": "LICENSE.md"}

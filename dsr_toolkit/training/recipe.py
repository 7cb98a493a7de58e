"""What a recipe is: a plain record, which a JSON file holds whole and which repeats its run."""

import dataclasses
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainingArguments

ARGUMENTS = {entry.name for entry in dataclasses.fields(TrainingArguments)}


@dataclass
class Stage:
    """
    One training of one model, or, with `make`, a step between two (a conversion, say) that trains nothing.

    Functions are named "package.module:function", so that the record stays plain. A folder of a model is what
    `save_pretrained` of model and processor write.

    Args:
        name: of its folder in the output.
        make: `make(folders, output, **options)` writes a model's folder `output`; `folders` holds those of the stages
            and recipes before, by name. A stage with `make` has no other field but `options`.
        model: where the model comes from. `{"path": REPO_OR_DIR, "subfolder": …, "dtype": …}`; `{"build": FUNCTION,
            "options": {…}}`, whose function returns (model, processor) after the seed was set; `{"stage": NAME}` or
            `{"recipe": NAME}`: what an earlier stage, or a required recipe, made. All but "build" take "dtype" and
            "attention" too ("eager" is several times quicker than "sdpa" in bfloat16 on CPUs), and "class", of the same
            weights but with another loss, say.
        data: the rows that train: `{"rows": FUNCTION, "seed": 0, "count": None, "options": {…}}`. `FUNCTION(seed=…,
            **options)` returns anything that can be indexed, as worlds are. `count` None of a source without a length:
            it has no end, and sample number i of the training is row i. With a count, or a length: that many rows,
            shuffled anew each epoch. `"stream": True`: they are read in turn, as a stream of `datasets` that processes
            and workers share out (see [`stream`]); needs `max_steps`.
        evaluation: likewise, of rows that were never trained on; `count` is needed here.
        collator: `collator(processor, **collator_options)` makes a function from a list of rows to the model's inputs,
            labels included. None: `processor.training_collator(**collator_options)`.
        freeze: preset of `model.freeze`; None leaves the model as it is.
        lora: settings of [`add_adapter`] ({"preset": "attention", "rank": 16, "dora": False}); the stage's model is
            then an adapter. A stage that starts from it gets it merged.
        learning_rates: {regular expression: rate} for parameters whose name it finds (`re.search`); the first that does
            counts, the others get `arguments["learning_rate"]`.
        arguments: of transformers' `TrainingArguments`.
        reward: `reward(programs, rows)` returns a number each, larger is better, such as
            "dsr_toolkit.training.rewards:cad_reward": TRL's GRPO of Cadrille and CAD-Recode. Programs are sampled for
            the parts of `data` (which needs an end), and nothing is copied. `arguments` are then of TRL's `GRPOConfig`,
            `collator_options` of the processor, and `modality` among them; there is no `evaluation`, `measure`, `show`
            and no `learning_rates`.
        feature_cache: a folder in which the features of frozen towers are kept, see [`FeatureCache`].
        measure: `measure(model, processor, rows, inputs, outputs)`, called on each batch of `evaluation`, returns
            {name: a list of one number per sample, or a pair (numerator, denominator)}. Over all samples and processes
            a list's mean is taken (its median where the name ends in "_median"), and a pair's sums are divided.
        show: `show(model, processor, rows, inputs)` returns dictionaries: what the model says of a batch of rows, to be
            read; PIL images in it become files. Called at every evaluation on the first `shown` rows.
    """

    name: str = "train"
    make: str | None = None
    options: dict = field(default_factory=dict)
    model: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    evaluation: dict | None = None
    collator: str | None = None
    collator_options: dict = field(default_factory=dict)
    freeze: str | None = None
    lora: dict | None = None
    learning_rates: dict[str, float] = field(default_factory=dict)
    arguments: dict = field(default_factory=dict)
    reward: str | None = None
    feature_cache: str | None = None
    measure: str | None = None
    show: str | None = None
    shown: int = 4

    def __post_init__(self):
        if self.make is None and not (self.model and self.data):
            raise ValueError(f"stage {self.name!r} needs `model` and `data` (or `make`).")
        if self.reward is not None and (self.evaluation or self.measure or self.show or self.learning_rates):
            raise ValueError(
                f"stage {self.name!r} has a reward: it takes no `evaluation`, `measure`, `show` or `learning_rates`."
            )
        unknown = sorted(set(self.arguments) - ARGUMENTS)
        if unknown and self.reward is None:
            raise ValueError(f"`arguments` of stage {self.name!r} has what TrainingArguments has not: {unknown}.")
        if self.lora is not None and "build" in self.model:
            raise ValueError(
                f"stage {self.name!r}: an adapter needs a base that is loaded, not one built from nothing."
            )
        if self.evaluation is not None and self.evaluation.get("count") is None:
            raise ValueError(f"`evaluation` of stage {self.name!r} needs a `count`.")


@dataclass
class Recipe:
    """
    Stages in order; the last one's model is the result.

    Args:
        name: as in `dsr train --recipe NAME`.
        description: what the model learns, for its card.
        stages: see [`Stage`].
        requires: names of recipes whose models the stages use as `{"recipe": NAME}`.
    """

    name: str
    description: str
    stages: list[Stage]
    requires: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.stages = [stage if isinstance(stage, Stage) else Stage(**stage) for stage in self.stages]
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"`stages` of recipe {self.name!r} must be one or more of different names, got {names}.")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    def changed(self, settings: dict[str, str]) -> "Recipe":
        """
        The recipe with other values.

        Args:
            settings: {key: value}. A key is a field of `TrainingArguments` (`max_steps`) or a path into a stage
                (`data.options.frames`), for every stage that trains; `STAGE:key` means one stage. Values are read as
                JSON, else as text.
        """
        record = dataclasses.asdict(self)
        for key, text in settings.items():
            stage_name, _, path = key.rpartition(":")
            chosen = [s for s in record["stages"] if s["name"] == stage_name or not (stage_name or s["make"])]
            if not chosen:
                names = [stage["name"] for stage in record["stages"]]
                raise ValueError(f"--set {key}: there is no stage {stage_name!r}; there are {names}.")
            for stage in chosen:
                _set(stage, ["arguments", path] if path in ARGUMENTS else path.split("."), _value(text), key)
        return Recipe(**record)


def _value(text):
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


def _set(record: dict, path: list[str], value, key: str) -> None:
    if path[0] not in record:
        raise ValueError(f"--set {key}: neither a field of TrainingArguments nor of a stage ({sorted(record)}).")
    for name in path[:-1]:
        if record.get(name) is None:
            record[name] = {}
        record = record[name]
        if not isinstance(record, dict):
            raise ValueError(f"--set {key}: {name!r} holds {record!r}, which has no parts.")
    record[path[-1]] = value


def find(name: str) -> Callable:
    """The function "package.module:function"."""
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(f'A function is named "package.module:function", got {name!r}.')
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"There is no function {name!r} ({error}).") from error


def load_recipe(name: str) -> Recipe:
    """A recipe of this library by its name ("tiny/pi3"), or of a JSON file."""
    if name.endswith(".json"):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"There is no recipe file {name!r}.")
        return Recipe(**json.loads(path.read_text(encoding="utf-8-sig")))
    if name not in [*recipe_names(), *comparisons()]:
        raise ValueError(f"There is no recipe {name!r}; there are {', '.join(recipe_names()) or 'none'}.")
    return importlib.import_module(f"{__package__}.recipes.{name.replace('/', '.')}").RECIPE


def comparisons() -> list[str]:
    """Names of recipes that no group runs: they show what a part of another one is worth."""
    root = Path(__file__).parent / "recipes"
    found = []
    for group in sorted(folder.parent.name for folder in root.glob("*/__init__.py")):
        module = importlib.import_module(f"{__package__}.recipes.{group}")
        found += [f"{group}/{name}" for name in getattr(module, "COMPARISONS", ())]
    return found


def recipe_names(group: str | None = None) -> list[str]:
    """Names of the library's recipes, or of a group ("tiny") in the order in which they are run."""
    root = Path(__file__).parent / "recipes"
    groups = [group] if group else sorted(folder.parent.name for folder in root.glob("*/__init__.py"))
    names = []
    for one in groups:
        order = getattr(importlib.import_module(f"{__package__}.recipes.{one}"), "ORDER")
        names += [f"{one}/{name}" for name in order]
    return names

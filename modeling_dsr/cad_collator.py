"""Rows of parts and their programs to the training inputs of Cadrille and CAD-Recode."""

from .training_collator import TrainingCollator

SHOWN = {"cloud": "point_clouds", "mesh": "meshes", "views": "images"}


class CADCollator(TrainingCollator):
    """
    See [`TrainingCollator`]. Labels cover the program and its end. Rows are padded on the right.

    Rows: "program"; and "cloud" [P, 3 or more], "mesh" (a file or a mesh with `vertices` and `faces`), or, for
        Cadrille,
    "views" (a picture of composed views, or a list of 1, 2 or 4) or nothing but "text"; "text" may go with the others.

    Args:
        processor: a [`CadrilleProcessor`] or [`CADRecodeProcessor`].
        noise_std, noise_probability: Gaussian noise on points in units of the model's frame, as CAD-Recode was trained.
        normalization: see the processor's `__call__`.
        modality: Cadrille: "points" or "views", how a mesh is shown; "mixed": one of both at even odds.
    """

    def __init__(
        self,
        processor,
        noise_std: float = 0.01,
        noise_probability: float = 0.5,
        normalization: str = "fit",
        modality: str = "points",
    ):
        super().__init__(processor)
        if modality not in ("points", "views", "mixed"):
            raise ValueError(f'`modality` must be "points", "views" or "mixed", got {modality!r}.')
        self.noise = {"noise_std": noise_std, "noise_probability": noise_probability}
        self.normalization = normalization
        self.modality = modality

    def collate(self, rows: list[dict], seeds: list[int]) -> dict:
        self.need(rows, "program")
        given = {argument: [row.get(name) for row in rows] for name, argument in SHOWN.items()}
        texts = [row.get("text") for row in rows]
        given = {name: values for name, values in given.items() if any(value is not None for value in values)}
        options = {"normalization": self.normalization, **self.noise}
        if hasattr(self.processor, "render_views"):  # Cadrille
            given["text"] = texts
            if "meshes" in given and self.modality != "points":
                views = [self.modality == "views" or seed % 2 == 1 for seed in seeds]
                self._show(given, views)
        else:
            for number, row in enumerate(rows):
                if not set(row) & {"cloud", "mesh"} or set(row) & {"views", "text"}:
                    raise ValueError(f'Row {number}: CAD-Recode reads a "cloud" or a "mesh" alone, got {sorted(row)}.')
        batch = self.processor(
            **given,
            programs=[row["program"] for row in rows],
            seed=seeds,
            padding_side="right",
            return_tensors="pt",
            **options,
        )
        self.check_supervised(batch["labels"])
        return dict(batch)

    def _show(self, given: dict, views: list[bool]) -> None:
        """Draw the meshes of the rows that are to be shown as views."""
        pictures = given.setdefault("images", [None] * len(views))
        for row, (mesh, drawn) in enumerate(zip(given["meshes"], views)):
            if mesh is not None and drawn:
                pictures[row] = self.processor.render_views(mesh, self.normalization)
                given["meshes"][row] = None

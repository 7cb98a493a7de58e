"""The pipeline `phrase-segmentation` of FrozenQwenSAM."""

import torch

from .spatial_pipeline import SpatialPipeline


class PhraseSegmentationPipeline(SpatialPipeline):
    """
    Masks for phrases of an image, or a grounded answer about it.

    Calling it takes an image and either `phrases` or a `question` (with `phrases`, words of the answer; else the
    language model lists its noun phrases). It returns `phrases`, `masks` bool `[n, H, W]`, `scores`, `boxes`, and
    `answer` if there was a question; of a list of images a list, with the same phrases for each or a list of lists.
    Options: `caption`, `max_new_tokens`, `threshold`, `return_rle`.
    """

    FORWARD = ("max_new_tokens",)
    POSTPROCESS = ("threshold", "return_rle")

    def __call__(self, image, phrases=None, question=None, caption=None, **options):
        if not phrases and question is None:
            raise ValueError("Pass `phrases` to look for, or a `question`.")
        if caption is not None and question is not None:
            raise ValueError("With `question` the answer is the caption: leave `caption` out.")
        given = {"image": image, "phrases": phrases, "question": question, "caption": caption}
        if isinstance(image, (list, tuple)):
            of_each = bool(phrases) and all(isinstance(one, (list, tuple)) for one in phrases)
            if of_each and len(phrases) != len(image):
                raise ValueError(f"`phrases` holds {len(phrases)} lists for {len(image)} images.")
            phrases_of = list(phrases) if of_each else [phrases] * len(image)
            return super().__call__(
                [{**given, "image": one, "phrases": its} for one, its in zip(image, phrases_of)], **options
            )
        return super().__call__(given, **options)

    def preprocess(self, inputs):
        if inputs["question"] is None:
            encoded = self.processor(
                images=inputs["image"], phrases=list(inputs["phrases"]), captions=inputs["caption"]
            )
        else:
            content = [{"type": "image"}, {"type": "text", "text": inputs["question"]}]
            encoded = self.processor(images=inputs["image"], text=[{"role": "user", "content": content}])
        return {"encoded": dict(encoded), "phrases": inputs["phrases"], "asked": inputs["question"] is not None}

    def _forward(self, inputs, max_new_tokens=128):
        phrases = inputs["phrases"]
        if not inputs["asked"]:
            return {"masks": self.model(**inputs["encoded"]).sam_pred_masks, "phrases": phrases, "answer": None}
        found = self.model.answer_and_ground(self.processor, inputs["encoded"], phrases, max_new_tokens=max_new_tokens)
        masks = found.output and found.output.sam_pred_masks
        return {"masks": masks, "phrases": found.phrases, "answer": found.answer}

    def postprocess(self, result, **options):
        found = {
            "phrases": [],
            "masks": torch.zeros(0, 0, 0, dtype=torch.bool),
            "scores": torch.zeros(0),
            "boxes": torch.zeros(0, 4),
        }
        if result["masks"] is not None:
            found = self.processor.post_process_masks(_Masks(result["masks"]), [result["phrases"]], **options)[0]
        return found if result["answer"] is None else {"answer": result["answer"], **found}


class _Masks:
    """The part of the model's output that `post_process_masks` reads."""

    def __init__(self, masks):
        self.sam_pred_masks = masks

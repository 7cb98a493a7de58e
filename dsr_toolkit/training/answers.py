"""What a model writes to the prompts of a training batch, held against the true answers in it."""

import torch
from torch.distributed.tensor import DTensor

from ..evaluation.multiple_choice import extract_letter_strict

SPARE = 8  # tokens that a written answer may be longer than the longest true one of its batch
LETTERS = "ABCDEFGH"


def answer_runs(labels: torch.Tensor) -> list[tuple[int, int]]:
    """Where the supervised stretches of labels `[S]` begin and end, in order."""
    changes = torch.nn.functional.pad((labels >= 0).long(), (1, 1)).diff()
    return list(map(tuple, torch.nonzero(changes).view(-1, 2).tolist()))


def tokens_right(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, int]]:
    """Of each row how many supervised tokens are the likeliest, given the true ones before them, and how many are
    there."""
    labels = labels[:, 1:]
    supervised = labels >= 0
    right = (_aligned(logits, labels).argmax(-1) == labels) & supervised
    return list(zip(right.sum(1).tolist(), supervised.sum(1).tolist()))


def likely_answers(logits: torch.Tensor, labels: torch.Tensor) -> list[list[bool]]:
    """Of each row and answer in it whether greedy generation would write it: with the right tokens before it, each of
    its tokens is the likeliest."""
    guesses, found = _aligned(logits, labels[:, 1:]).argmax(-1), []
    for guess, label in zip(guesses, labels[:, 1:]):
        found.append([bool((guess[start:end] == label[start:end]).all()) for start, end in answer_runs(label)])
    return found


def _aligned(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logits of `labels` `[B, S]`; a placeholder that the model itself makes longer stands before all answers."""
    return logits[:, -labels.shape[1] - 1 : -1]


def prompts(inputs: dict, pad: int) -> tuple[dict, list[torch.Tensor]]:
    """
    Inputs of `generate` for every sample of a training batch, and the true answers `[n]`.

    A sample's prompt is what stands before its last answer; of a packed row each sample is one. Media go to all of
    them in their order.

    Args:
        inputs: of a chat collator, with a mask `[B, S]`. pad: the token to pad with, on the left.
    """
    ids, mask, labels = (inputs[name] for name in ("input_ids", "attention_mask", "labels"))
    cuts, true = [], []
    for row in range(len(ids)):
        for sample in range(1, int(mask[row].max()) + 1):
            places = (mask[row] == sample).nonzero().flatten()
            start, end = answer_runs(labels[row, places])[-1]
            cuts.append((row, places[:start]))
            true.append(ids[row, places[start:end]])
    length = max(len(places) for _, places in cuts)
    given = {}
    for name, value in inputs.items():
        if name == "labels":
            continue
        if isinstance(value, torch.Tensor) and value.shape == ids.shape:
            padded = value.new_full((len(cuts), length), pad if name == "input_ids" else 0)
            for number, (row, places) in enumerate(cuts):
                padded[number, length - len(places) :] = value[row, places]
            value = padded if name != "attention_mask" else (padded > 0).long()
        given[name] = value
    return given, true


@torch.no_grad()
def written(model, processor, inputs: dict) -> list[tuple[str, str]]:
    """Of every sample of a batch (see [`prompts`]) the greedy answer, and the true one, as texts."""
    tokenizer = processor.tokenizer
    given, true = prompts(inputs, tokenizer.pad_token_id or 0)
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    ids = model.generate(**given, max_new_tokens=max(map(len, true)) + SPARE, **greedy)
    new = ids[:, given["input_ids"].shape[1] :]
    if hasattr(processor, "decode_programs"):
        return [
            (told, processor.decode_programs(one[None])[0]) for told, one in zip(processor.decode_programs(new), true)
        ]
    told, true = (tokenizer.batch_decode(some, skip_special_tokens=True) for some in (new, true))
    return [(one.strip(), other.strip()) for one, other in zip(told, true)]


def is_sharded(model) -> bool:
    """Whether processes hold parts of the parameters: each must then compute whenever, and generate as long as, the
    others do."""
    return any(isinstance(one, DTensor) or hasattr(one, "ds_id") for one in model.parameters())


def letters_right(told: list[str], letters: list[str | None], types: list | None = None) -> dict[str, list[bool]]:
    """`accuracy`, over all and by type, of texts whose right answer is a letter (None: is none)."""
    found: dict[str, list[bool]] = {}
    for number, (text, letter) in enumerate(zip(told, letters, strict=True)):
        if letter is not None:
            among = LETTERS[:4] if letter in LETTERS[:4] else LETTERS
            right = extract_letter_strict(text, among) == letter
            found.setdefault("accuracy", []).append(right)
            if types and types[number]:
                found.setdefault(f"accuracy_{types[number]}", []).append(right)
    return found


def measure(model, processor, rows, inputs, outputs) -> dict:
    """
    Greedy answers that are the true ones (`exact_match`), and letters of those whose true answer is a letter; shares of
    tokens (`tokens_right`) that are the likeliest after the true ones. Of a conversation its last answer counts.
    """
    counts = tokens_right(outputs.logits, inputs["labels"])
    found = {"tokens_right": tuple(map(sum, zip(*counts)))}
    if is_sharded(model):
        runs = likely_answers(outputs.logits, inputs["labels"])
        return found | {"exact_match": [right for row in runs for right in row]}
    told, true = zip(*written(model, processor, inputs))
    letters = [text if text in list(LETTERS) else None for text in true]
    types = [row.get("type") for row in rows] if len(rows) == len(true) else None
    return found | {"exact_match": [a == b for a, b in zip(told, true)], **letters_right(told, letters, types)}


def show(model, processor, rows, inputs) -> list[dict]:
    """Questions with what the model says, and the true answer."""
    pairs = written(model, processor, inputs)
    tokenizer = processor.tokenizer
    given, _ = prompts(inputs, tokenizer.pad_token_id or 0)
    asked = [text.strip() for text in tokenizer.batch_decode(given["input_ids"], skip_special_tokens=True)]
    if len(rows) == len(pairs):
        asked = [row["question"] if isinstance(row.get("question"), str) else text for row, text in zip(rows, asked)]
    return [{"question": text, "said": said, "true": true} for text, (said, true) in zip(asked, pairs)]

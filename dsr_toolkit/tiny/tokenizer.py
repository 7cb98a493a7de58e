"""A small byte-level tokenizer with Qwen's special tokens, in the files that a published Qwen2.5-VL folder holds."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

# Qwen2.5's splitting rule: contractions, words with one leading mark or space, single digits, punctuation, white space.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# In the order of the published tokenizer, where the first has id 151643.
CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MARKER_TOKENS = (  # added to the published tokenizer as ordinary text, kept when special tokens are skipped
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)

# What the merges are learnt from: roles must be one token each, as in Qwen's tokenizer, and a random model should
# babble in words rather than in broken bytes.
CORPUS = (
    *("system\nuser\nassistant\n",) * 20,
    "the camera moves slowly to the left while the red ball rolls towards the blue box",
    "the person walks away from the viewer and the distance between them becomes larger",
    "from the first second to the last the car keeps its speed and then turns right",
    "which object is closer to the camera at the end of the video and how does it move",
    "select the best answer to the question from the options and answer with one letter",
    "become larger become smaller keep nearly constant front left front right back left back right",
    "the two people stand still on the ground and the dog runs around the green tree",
)

# ChatML: one block per turn. A video or image item becomes its placeholder between the vision marks; the generation
# marks tell training which tokens the assistant wrote.
SHOW_MACRO = """\
{%- macro show(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for item in content -%}
            {%- if item.type == 'video' or 'video' in item -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- elif item.type in ('image', 'image_url') or 'image' in item or 'image_url' in item -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif 'text' in item -%}
                {{- item.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""
USUAL_SYSTEM = """\
{%- if messages and messages[0].role != 'system' -%}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
"""
TURNS = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.role == 'assistant' -%}
        {%- generation -%}
            {{- show(message.content) + '<|im_end|>\\n' -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- show(message.content) + '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
CHAT_TEMPLATE = SHOW_MACRO + USUAL_SYSTEM + TURNS

VOCABULARY_MULTIPLE = 64


def build_tokenizer(corpus=CORPUS, merges: int = 200, pieces: Iterable[str] = ()) -> Tokenizer:
    """
    Byte-level BPE: 256 bytes, up to `merges` merges learnt from `corpus`, then the control and marker tokens.

    Any text survives the round trip, because every byte has a token of its own.

    Args:
        pieces: further texts that are one token each wherever they occur, the longest first. They may cross the borders
            of words, which merges never do: a number, or a phrase of a programming language.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    known = tokenizer.get_vocab()
    plain = [*MARKER_TOKENS, *(piece for piece in dict.fromkeys(pieces) if piece not in known)]
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return tokenizer


def vocabulary_size(tokenizer) -> int:
    """Rows of the embedding of a model with this tokenizer."""
    return -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def write_tokenizer(folder: Path, corpus=CORPUS, pieces: Iterable[str] = (), merges: int = 200) -> dict[str, int]:
    """
    Write the tokenizer and chat template files of a published Qwen2.5-VL folder; see `build_tokenizer`.

    Returns:
        The ids of all tokens that no merges make.
    """
    tokenizer = build_tokenizer(corpus, merges, pieces)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json, merges.txt

    ids = {token.content: index for index, token in sorted(tokenizer.get_added_tokens_decoder().items())}
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(index): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token in CONTROL_TOKENS,
            }
            for token, index in ids.items()
        },
        "additional_special_tokens": [t for t in CONTROL_TOKENS if t != "<|endoftext|>"],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    return ids


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""Row by row, what FrozenQwenSAM's language model makes of a batch of images with captions."""

import torch

from modeling_dsr.frozen_qwen_sam_layout import PhraseLayout
from modeling_dsr.modeling_frozen_qwen_sam import PhraseStates


class PhraseRows:
    """
    The rows of a batch, each of which is read alike in whatever batch it stands.

    Args:
        layout: of the batch; input_ids: `[B, S]`. pixels, grids: `[P, C]` patches and `[B, 3]`. merge: see the model.
    """

    def __init__(self, layout: PhraseLayout, input_ids: torch.Tensor, pixels: torch.Tensor, grids, merge: str):
        self.layout, self.input_ids, self.pixels, self.grids, self.merge = layout, input_ids, pixels, grids, merge
        self.phrases = layout.phrases_per_image.tolist()
        self.cells = layout.grids.prod(1).tolist()
        self.tokens = (layout.row_phrase < len(layout.phrase_image)).sum(1).tolist()

    def keys(self) -> list[tuple[torch.Tensor, tuple]]:
        """Of each row its pixels, and its tokens, their places, and the phrases that they belong to."""
        layout, found, first = self.layout, [], 0
        media = self.pixels.split([int(grid.prod()) for grid in self.grids])
        ids = self.input_ids.cpu()
        for row, (pixels, grid, phrases, tokens) in enumerate(
            zip(media, self.grids.tolist(), self.phrases, self.tokens)
        ):
            places = layout.rows[row, :tokens].tolist()
            length = max(places, default=-1) + 1
            prefix = ids[row, layout.prefix_index[row, : int(layout.prefix_lengths[row])]].tolist()
            caption = ids[row, layout.caption_index[row, :length]].tolist()
            positions = layout.caption_positions[:, row, :length].flatten().tolist()
            members = (layout.row_phrase[row, :tokens] - first).tolist()
            found.append((pixels, (grid, prefix, caption, positions, places, members, self.merge)))
            first += phrases
        return found

    def split(self, states: PhraseStates) -> list[torch.Tensor]:
        """Of each row one tensor: the attention of its phrases, then the hidden states of their tokens."""
        layers, width = states.hidden_states.shape[0], states.hidden_states.shape[2]
        hidden = states.hidden_states.view(layers, len(self.phrases), -1, width)
        rows = []
        for row, attentions in enumerate(states.attentions.split(self.phrases)):
            own = hidden[:, row, : self.tokens[row]]
            rows.append(torch.cat([attentions[..., : self.cells[row]].flatten(), own.flatten().to(attentions.dtype)]))
        return rows

    def join(self, rows: list[torch.Tensor], model) -> PhraseStates:
        """What [`PhraseRows.split`] took apart; zeros where a batch is padded."""
        text = model.vlm.config.get_text_config()
        layers, heads, width = text.num_hidden_layers, text.num_attention_heads, text.hidden_size
        dtype = model.vlm.dtype
        most = max(self.tokens, default=0)
        attentions = rows[0].new_zeros(sum(self.phrases), layers * heads, max(self.cells))
        hidden = rows[0].new_zeros(layers, len(rows), self.layout.rows.shape[1] or most, width)
        first = 0
        for row, values in enumerate(rows):
            size = self.phrases[row] * layers * heads * self.cells[row]
            last = first + self.phrases[row]
            attentions[first:last, :, : self.cells[row]] = values[:size].view(-1, layers * heads, self.cells[row])
            hidden[:, row, : self.tokens[row]] = values[size:].view(layers, self.tokens[row], width)
            first = last
        return PhraseStates(attentions, hidden.flatten(1, 2).to(dtype))

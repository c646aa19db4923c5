"""CLIP as the method uses it: image and text embeddings, prompt templates, text differences.

Models, tokenizer and loss are open_clip's; what is ours is the image path (one function makes the CLIP input) and the
difference of two texts.
"""

from __future__ import annotations

import copy
import gzip
import io
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.box_resample import box_resample
from pipeline.models.lean import lean_imports
from pipeline.models.synonyms import WORD, Wording

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@lru_cache(maxsize=4)
def _tokenizer(context_length: int, merges: int | None) -> Any:
    """open_clip's BPE tokenizer; `merges` keeps only the first, most frequent, merges (a small vocabulary)."""
    with lean_imports():
        from open_clip.tokenizer import SimpleTokenizer, default_bpe

    if merges is None:
        return SimpleTokenizer(context_length=context_length)
    with gzip.open(default_bpe()) as file:
        lines = file.read().decode("utf-8").split("\n")[: merges + 1]  # the first line is a heading
    shorter: Any = io.BytesIO(gzip.compress("\n".join(lines).encode("utf-8")))
    return SimpleTokenizer(bpe_path=shorter, context_length=context_length)


class Clip(nn.Module):
    """A CLIP and the choices of its inputs.

    numbers: embed_dim, vision (fields of CLIPVisionCfg), text (fields of CLIPTextCfg, but for its vocabulary's size),
    and where they are not open_clip's defaults merges (int) and quick_gelu (OpenAI's own networks: True).
    normalise: subtract OpenAI's mean and divide by its deviation; the published mappers were made without it.
    vocabulary: the words of the captions it was trained with; None when unknown (a public model).
    wording: what `text_feature` reads for other words; None: them as they are.
    """

    def __init__(
        self,
        numbers: dict[str, Any],
        normalise: bool = False,
        vocabulary: frozenset[str] | None = None,
        wording: Wording | None = None,
    ):
        super().__init__()
        with lean_imports():
            from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        self.tokenizer = _tokenizer(numbers["text"].get("context_length", 77), numbers.get("merges"))
        text = CLIPTextCfg(**numbers["text"], vocab_size=self.tokenizer.vocab_size)
        vision = CLIPVisionCfg(**numbers["vision"])
        self.model = CLIP(numbers["embed_dim"], vision, text, quick_gelu=numbers.get("quick_gelu", False))
        self.dim, self.image_size = int(numbers["embed_dim"]), int(numbers["vision"]["image_size"])
        self.normalise, self.vocabulary, self.wording = normalise, vocabulary, wording

    def clip_input(self, images: Tensor) -> Tensor:
        """images [B,3,R,R] in [-1,1] -> what the image tower sees, [B,3,image_size,image_size].

        The one place that decides range, resampling (exact box filter) and normalisation.
        """
        if not self.normalise:
            return box_resample(images, self.image_size)
        mean, std = (tuple(2 * m - 1 for m in OPENAI_MEAN), tuple(2 * d for d in OPENAI_STD))  # theirs are of [0,1]
        return box_resample(images, self.image_size, mean, std)

    def clip_input_change(self, change: Tensor) -> Tensor:
        """How `clip_input` changes when images change by `change` [B,3,R,R]."""
        if not self.normalise:
            return box_resample(change, self.image_size)
        return box_resample(change, self.image_size, (0.0, 0.0, 0.0), tuple(2 * d for d in OPENAI_STD))

    def embed_images(self, images: Tensor) -> Tensor:
        """images [B,3,R,R] in [-1,1] -> [B,E], not normalised."""
        x = self.clip_input(images).contiguous(memory_format=torch.channels_last)
        return self.model.encode_image(x).float()  # type: ignore[return-value]

    def embed_texts(self, texts: list[str]) -> Tensor:
        """texts -> unit embeddings [B,E]; what exceeds the context length is cut by the tokenizer."""
        tokens = self.tokenizer(texts).to(self.model.positional_embedding.device)
        return self.model.encode_text(tokens, normalize=True).float()  # type: ignore[return-value]

    def text_feature(self, text: str, templates: tuple[str, ...]) -> Tensor:
        """The unit mean [E] of the embeddings, in all templates, of what is read for a text."""
        text, _ = self.read(text)
        return F.normalize(self.embed_texts([template.format(text) for template in templates]).mean(dim=0), dim=0)

    def text_delta(self, source: str, target: str, templates: tuple[str, ...]) -> Tensor:
        """delta_t [E] = T(target) - T(source), not normalised (DeltaEdit section 3.3)."""
        return self.text_feature(target, templates) - self.text_feature(source, templates)

    def read(self, text: str) -> tuple[str, dict[str, float]]:
        """What is read for `text`, and how near each word comes to it that captions did not have: `Wording.read`."""
        return self.wording.read(text) if self.wording else (text, {})

    def literal(self) -> Clip:
        """The same network, which reads every text as it stands."""
        same = copy.copy(self)
        same.wording = None
        return same

    def unknown_words(self, text: str) -> list[str]:
        """The words of `text` that no training caption had; empty when the vocabulary is not known."""
        if self.vocabulary is None:
            return []
        return [word for word in dict.fromkeys(words(text)) if word not in self.vocabulary]


def words(text: str) -> list[str]:
    """Lower-case words of a text, in any script."""
    return WORD.findall(text.lower())


def delta(source: Tensor, target: Tensor) -> Tensor:
    """The unit difference of two batches of embeddings [B,E] (DeltaSpace, eq. 2): both normalised, then subtracted."""
    return F.normalize(F.normalize(target, dim=-1) - F.normalize(source, dim=-1), dim=-1, eps=1e-5)

"""CLIP: embeddings of images and texts, prompt templates, text differences.

Networks and tokenizer are open_clip's; the preparation of images and the differences are defined here.
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
from pipeline.models.synonyms import WORD, SynonymTable

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of pixels in [0,1]
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@lru_cache(maxsize=4)
def _tokenizer(context_length: int, merges: int | None) -> Any:
    """open_clip's BPE tokenizer; `merges` keeps only the first, most frequent merges: a small vocabulary."""
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    if merges is None:
        return SimpleTokenizer(context_length=context_length)
    with gzip.open(default_bpe()) as file:
        lines = file.read().decode("utf-8").split("\n")[: merges + 1]  # the first line is a heading
    shorter: Any = io.BytesIO(gzip.compress("\n".join(lines).encode("utf-8")))
    return SimpleTokenizer(bpe_path=shorter, context_length=context_length)


class Clip(nn.Module):
    """A CLIP with its image preparation and its vocabulary.

    numbers: embed_dim (E), vision (fields of open_clip's CLIPVisionCfg), text (fields of CLIPTextCfg without
        vocab_size), and where they differ from open_clip's defaults merges (int) and quick_gelu (True for OpenAI's).
    normalise: subtract OpenAI's mean and divide by its deviation; the published mappers were trained without.
    vocabulary: words of the training captions; None when unknown (public models).
    synonyms: replacements for other words, applied by `text_feature`; None: texts are embedded as they are.
    """

    def __init__(
        self,
        numbers: dict[str, Any],
        normalise: bool = False,
        vocabulary: frozenset[str] | None = None,
        synonyms: SynonymTable | None = None,
    ):
        super().__init__()
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        self.tokenizer = _tokenizer(numbers["text"].get("context_length", 77), numbers.get("merges"))
        text = CLIPTextCfg(**numbers["text"], vocab_size=self.tokenizer.vocab_size)
        vision = CLIPVisionCfg(**numbers["vision"])
        self.model = CLIP(numbers["embed_dim"], vision, text, quick_gelu=numbers.get("quick_gelu", False))
        self.dim, self.image_size = int(numbers["embed_dim"]), int(numbers["vision"]["image_size"])
        self.normalise, self.vocabulary, self.synonyms = normalise, vocabulary, synonyms

    def clip_input(self, images: Tensor) -> Tensor:
        """Prepare images [B,3,R,R] in [-1,1] for the image tower: box resampling, normalisation [B,3,size,size]."""
        if not self.normalise:
            return box_resample(images, self.image_size)
        mean, std = (tuple(2 * m - 1 for m in OPENAI_MEAN), tuple(2 * d for d in OPENAI_STD))  # from [0,1] to [-1,1]
        return box_resample(images, self.image_size, mean, std)

    def clip_input_change(self, change: Tensor) -> Tensor:
        """Change of `clip_input` for a change of the images [B,3,R,R]."""
        if not self.normalise:
            return box_resample(change, self.image_size)
        return box_resample(change, self.image_size, (0.0, 0.0, 0.0), tuple(2 * d for d in OPENAI_STD))

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images [B,3,R,R] in [-1,1]: [B,E], not normalised."""
        x = self.clip_input(images).contiguous(memory_format=torch.channels_last)
        return self.model.encode_image(x).float()  # type: ignore[return-value]

    def embed_texts(self, texts: list[str]) -> Tensor:
        """Embed texts: [B,E] of unit length. Tokens beyond the context length are cut off."""
        tokens = self.tokenizer(texts).to(self.model.positional_embedding.device)
        return self.model.encode_text(tokens, normalize=True).float()  # type: ignore[return-value]

    def text_feature(self, text: str, templates: tuple[str, ...]) -> Tensor:
        """Unit mean [E] of the embeddings of a text, its unknown words replaced, in all templates ("a {}")."""
        text, _ = self.substitute(text)
        return F.normalize(self.embed_texts([template.format(text) for template in templates]).mean(dim=0), dim=0)

    def text_delta(self, source: str, target: str, templates: tuple[str, ...]) -> Tensor:
        """delta_t [E] = T(target) - T(source), not normalised (DeltaEdit section 3.3)."""
        return self.text_feature(target, templates) - self.text_feature(source, templates)

    def substitute(self, text: str) -> tuple[str, dict[str, float]]:
        """Replace unknown words of a text: `SynonymTable.substitute`; without synonyms nothing is replaced."""
        return self.synonyms.substitute(text) if self.synonyms else (text, {})

    def without_synonyms(self) -> Clip:
        """The same network, which embeds every text as it is."""
        same = copy.copy(self)
        same.synonyms = None
        return same

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text that no training caption has, each once; empty when the vocabulary is unknown."""
        if self.vocabulary is None:
            return []
        return [word for word in dict.fromkeys(words(text)) if word not in self.vocabulary]


def words(text: str) -> list[str]:
    """Lower-case words of a text, in any script."""
    return WORD.findall(text.lower())


def delta(source: Tensor, target: Tensor) -> Tensor:
    """Unit differences [B,E] of two batches of embeddings [B,E], both normalised first (DeltaSpace, eq. 2)."""
    return F.normalize(F.normalize(target, dim=-1) - F.normalize(source, dim=-1), dim=-1, eps=1e-5)

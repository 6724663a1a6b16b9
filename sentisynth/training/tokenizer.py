"""Tokenizers trained on a corpus: WordPiece for encoders, byte-level BPE for generators."""

from collections.abc import Iterable

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sentisynth.config.pretrain import PretrainConfig
from sentisynth.data.documents import WORDS
from sentisynth.errors import ModelError

END_OF_TEXT = "<|endoftext|>"
_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_MOST_LETTERS = 200  # rarer characters are unknown


def train_tokenizer(config: PretrainConfig, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """A tokenizer of exactly `tokenizer.vocab_size` pieces. Raises ModelError where the corpus does
    not hold as many that occur `tokenizer.min_frequency` times.

    Words are told apart as in Penn Treebank text, whether their marks stand apart or not: "it's
    good." and "it 's good ." are the same tokens to an encoder.
    """
    make = _word_pieces if config.kind == "encoder" else _byte_pairs
    tokenizer = make(config, texts)
    wanted, found = config.tokenizer.vocab_size, tokenizer.backend_tokenizer.get_vocab_size()
    if found < wanted:
        raise ModelError(
            f"tokenizer.vocab_size is {wanted}; the corpus supports {found} pieces that occur "
            f"{config.tokenizer.min_frequency} times: set it to {found} or less, or give more text"
        )
    return tokenizer


def _word_pieces(config: PretrainConfig, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    special = list(_SPECIAL.values())
    core = Tokenizer(models.WordPiece(unk_token=_SPECIAL["unk_token"], max_input_chars_per_word=50))
    core.normalizer = normalizers.BertNormalizer(lowercase=config.text.lowercase)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    core.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.tokenizer.vocab_size,
        min_frequency=config.tokenizer.min_frequency,
        special_tokens=special,
        limit_alphabet=_MOST_LETTERS,
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    first, last = (core.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", first), ("[SEP]", last)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=config.positions, **_SPECIAL
    )


def _byte_pairs(config: PretrainConfig, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.tokenizer.vocab_size,
        min_frequency=config.tokenizer.min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=config.positions,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
    )

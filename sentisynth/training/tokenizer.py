"""Tokenizers trained on a corpus: WordPiece for encoders, byte-level BPE for generators."""

from collections import Counter
from collections.abc import Callable, Iterable

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
_CONTINUED = "##"
_LONGEST_WORD = 50
_LETTERS_SHARE = 4  # at most a quarter of the pieces are letters
_RAREST = 1e-6  # share of a corpus; rarer characters are unknown


Texts = Callable[[], Iterable[str]]
"""Gives the sentences of a corpus, each time from the beginning."""


def train_tokenizer(config: PretrainConfig, texts: Texts) -> PreTrainedTokenizerBase:
    """A tokenizer of exactly `tokenizer.vocab_size` pieces, the same each time. Raises ModelError
    where the corpus does not hold as many that occur `tokenizer.min_frequency` times, or where its
    letters alone are more.

    Words are told apart as in Penn Treebank text, whether their marks stand apart or not: "it's
    good." and "it 's good ." are the same tokens to an encoder.
    """
    make = _word_pieces if config.kind == "encoder" else _byte_pairs
    tokenizer = make(config, texts)
    wanted, found = config.tokenizer.vocab_size, len(tokenizer)
    if found > wanted:
        raise ModelError(
            f"tokenizer.vocab_size is {wanted}; letters and special tokens alone are {found}: set "
            f"it to more"
        )
    if found < wanted:
        raise ModelError(
            f"tokenizer.vocab_size is {wanted}; the corpus supports {found} pieces that occur "
            f"{config.tokenizer.min_frequency} times: set it to {found} or less, or give more text"
        )
    return tokenizer


def _word_pieces(config: PretrainConfig, texts: Texts) -> PreTrainedTokenizerBase:
    special = list(_SPECIAL.values())
    normalizer = normalizers.BertNormalizer(lowercase=config.text.lowercase)
    trainee = _word_piece_core(models.WordPiece(unk_token=_SPECIAL["unk_token"]), normalizer)
    # The trainer numbers letters as its hash map has them, in another order each time, and ties
    # between merges go by number: so the letters are chosen and numbered here, in a first pass.
    counted: Counter[str] = Counter()
    for text in texts():
        counted.update(normalizer.normalize_str(text))
    rarest = _RAREST * counted.total()
    letters = [c for c, n in counted.items() if n >= rarest and not c.isspace()]
    letters.sort(key=lambda c: (-counted[c], c))
    letters = sorted(letters[: config.tokenizer.vocab_size // _LETTERS_SHARE])
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.tokenizer.vocab_size,
        min_frequency=config.tokenizer.min_frequency,
        special_tokens=[*special, *letters, *(_CONTINUED + letter for letter in letters)],
        limit_alphabet=len(letters),
        initial_alphabet=letters,
        show_progress=False,
    )
    trainee.train_from_iterator(texts(), trainer)
    model = models.WordPiece(
        vocab=trainee.get_vocab(),
        unk_token=_SPECIAL["unk_token"],
        max_input_chars_per_word=_LONGEST_WORD,
    )
    core = _word_piece_core(model, normalizer)
    core.add_special_tokens(special)
    core.decoder = decoders.WordPiece(prefix=_CONTINUED)
    first, last = (core.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", first), ("[SEP]", last)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=config.positions, **_SPECIAL
    )


def _word_piece_core(model: models.WordPiece, normalizer: normalizers.BertNormalizer) -> Tokenizer:
    core = Tokenizer(model)
    core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    return core


def _byte_pairs(config: PretrainConfig, texts: Texts) -> PreTrainedTokenizerBase:
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
    core.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=config.positions,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
    )

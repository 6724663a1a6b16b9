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
        raise _too_small(config, found)
    if found < wanted:
        raise ModelError(
            f"tokenizer.vocab_size is {wanted}; the corpus supports {found} pieces that occur "
            f"{config.tokenizer.min_frequency} times: set it to {found} or less, or give more text"
        )
    return tokenizer


def _too_small(config: PretrainConfig, least: int) -> ModelError:
    return ModelError(
        f"tokenizer.vocab_size is {config.tokenizer.vocab_size}; letters and special tokens alone "
        f"are {least}: set it to more"
    )


def _word_pieces(config: PretrainConfig, texts: Texts) -> PreTrainedTokenizerBase:
    special = list(_SPECIAL.values())
    normalizer = normalizers.BertNormalizer(lowercase=config.text.lowercase, strip_accents=False)
    trainee = _word_piece_core(models.WordPiece(unk_token=_SPECIAL["unk_token"]), normalizer)
    # The trainer numbers letters as its hash map has them, in another order each time, and ties
    # between merges go by number: so the letters are chosen and numbered here, in a first pass.
    words = Counter[str]()
    for text in texts():
        normal = normalizer.normalize_str(text)
        words.update(word for word, _ in trainee.pre_tokenizer.pre_tokenize_str(normal))
    counted, continued = Counter[str](), set[str]()
    for word, n in words.items():
        for letter in word:
            counted[letter] += n
        continued.update(word[1:])
    rarest = max(_RAREST * counted.total(), config.tokenizer.min_frequency)
    letters = sorted(c for c, n in counted.items() if n >= rarest)
    pieces = [*letters, *(_CONTINUED + c for c in letters if c in continued)]
    if len(special) + len(pieces) > config.tokenizer.vocab_size:
        raise _too_small(config, len(special) + len(pieces))
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.tokenizer.vocab_size,
        min_frequency=config.tokenizer.min_frequency,
        special_tokens=[*special, *pieces],
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

"""Reading a checkpoint's tokenizer so that its `tokenizer.json` decides the tokens, and checks that it is this model's.

transformers rebuilds the tokenizer of many classes (`GPT2Tokenizer`, `Qwen2Tokenizer` and others) from the vocabulary alone, with a
pre-tokenizer of its own: digits and contractions are then divided otherwise than the file says, and otherwise than the model was
trained. So the class that `tokenizer_config.json` names is not used where there is a `tokenizer.json`; its settings (special
tokens, chat template) are. What comes out is compared with the tokenizers library's own reading of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from interp.errors import UserError
from interp.files import read_json
from interp.models.checkpoints import Checkpoint, open_checkpoint
from interp.models.folders import TOKENIZER_FILES, check_no_code
from interp.models.libraries import listening

FILE, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
# What pre-tokenizers and normalisers treat differently: digits, contractions of either case, runs of whitespace, line ends, scripts,
# accents composed and decomposed, emoji of several code points, code, URLs, and text that begins with a space.
SAMPLES = (
    "In 1984 and 2026 there were 12345 people, 3.14159 litres and 1,000,000 reasons.",
    "I don't think they'll say we've done it; IT'S NOT WHAT YOU'D EXPECT, and the dogs' bowls aren't O'Brien's.",
    "first line\nsecond line\n\n\n  indented\r\nwindows\ttab  two spaces   three",
    "def f(x):\n    return x['key'] >= 10 # comment_with_underscores\n",
    "今天天气很好,我们去公园散步。日本語のテキストです。한국어 문장입니다.",
    "Привет, как дела? Γειά σου Κόσμε. مرحبا بالعالم. नमस्ते दुनिया",
    "café cafe\u0301 naïve Ångström ﬁne ½ ² ™ ß İstanbul",
    "🙂 👩\u200d👩\u200d👧 🇫🇷 … — “quoted” ‘single’ https://example.org/a?b=1&c=%20",
    " leading space", "  two leading spaces", "trailing space ", "\n", "a", "HelloWorld hello_world HELLO",
)  # fmt: skip
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_tokenizer(checkpoint: Checkpoint, hf: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, or that of the model that an adapter adapts.

    Raises `UserError` where it is absent, empty, too large, not this model's, or divides text otherwise than its file says.
    """
    owner = checkpoint
    while not any((owner.folder / name).is_file() for name in TOKENIZER_FILES):
        if owner.adapter_base is None:
            raise UserError(
                f"{owner.source} has no tokenizer files ({', '.join(TOKENIZER_FILES)})", "copy them from the model it was tuned from"
            )
        owner = open_checkpoint(owner.adapter_base)
    what = f"the tokenizer in {owner.source}"
    tokenizer = tokenizer_in(owner.folder, owner.source)
    size, vocabulary = len(tokenizer), hf.get_input_embeddings().weight.shape[0]
    # Which token fills a batch changes nothing, and one without a row in the model cannot.
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= vocabulary:
        tokenizer.pad_token = tokenizer.eos_token
    check_tokenizer(tokenizer, hf, what)
    if size < 0.9 * vocabulary:
        problem = f"{what} has {size} entries, the model {vocabulary}: it belongs to another model"
        raise UserError(problem, "use its own, or pass tokenizer=")
    return tokenizer


def tokenizer_in(folder: Path, source: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, as its `tokenizer.json` divides text where there is one; raises `UserError` where it cannot be read."""
    check_no_code(folder)
    what = f"the tokenizer in {source or folder}"
    try:
        with listening(what, checked=("`tokenizer_class` is",)):
            if not (folder / FILE).is_file():
                by_class: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                return by_class
            tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
            _add_names_of_the_class(tokenizer, folder)
    except UserError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for a corrupt file
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{what} could not be read ({first})", "restore its files") from error
    _check_against_file(tokenizer, folder / FILE, what)
    return tokenizer


def _add_names_of_the_class(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Add the special tokens that only the class named in the settings knows: old folders leave them to its defaults."""
    settings: dict[str, Any] = {}
    for name in (SPECIAL, SETTINGS):
        settings |= read_json(folder / name) if (folder / name).is_file() else {}
    silent = [name for name in NAMED if name not in settings and getattr(tokenizer, name) is None]
    if "eos_token" not in silent and "bos_token" not in silent:
        return
    try:
        usual = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:
        return
    vocabulary = tokenizer.get_vocab()
    for name in silent:
        token = getattr(usual, name, None)
        if token is not None and str(token) in vocabulary:
            setattr(tokenizer, name, str(token))


def _check_against_file(tokenizer: PreTrainedTokenizerBase, file: Path, what: str) -> None:
    """Raise `UserError` where a tokenizer divides text, or numbers tokens, otherwise than the tokenizers library reads its file."""
    expected = Tokenizer.from_file(str(file))
    expected.no_truncation()
    expected.no_padding()
    fix = f"load it with another version of transformers, or correct {SETTINGS}"
    vocabulary, own = expected.get_vocab(with_added_tokens=True), tokenizer.get_vocab()
    other = next((token for token, number in vocabulary.items() if own.get(token) != number), None)
    if other is not None:
        raise UserError(f"{what} gives {other!r} the number {own.get(other)}, but {file.name} says {vocabulary[other]}", fix)
    for text in (*SAMPLES, *_own_words(expected)):
        ids, right = tokenizer(text, add_special_tokens=False)["input_ids"], expected.encode(text, add_special_tokens=False).ids
        if ids != right:
            raise UserError(f"{what} divides {text!r} into {len(ids)} tokens, but {file.name} into {len(right)} or others", fix)


def _own_words(words: Tokenizer) -> list[str]:
    """Texts of neighbours in the vocabulary: tokens that stand there because of how text was divided when it was made."""
    special = words.get_added_tokens_decoder()
    ids = [number for number in range(words.get_vocab_size(with_added_tokens=True)) if number not in special]
    starts = range(0, len(ids), max(8, len(ids) // 256))
    return [words.decode(ids[start : start + 8]) for start in starts]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, hf: PreTrainedModel, what: str = "the tokenizer") -> None:
    """Raise `UserError` for a tokenizer that is empty or has more entries than the model.

    Added tokens may lie beyond the model's rows, as the image token of Gemma 3 does in its text models: no text but their own name
    holds them, `check_rows` refuses that, and the model cannot generate them. BOS, EOS and the padding token may not.
    """
    vocabulary = hf.get_input_embeddings().weight.shape[0]
    ids = tokenizer("hello world", add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.decode(ids).strip().lower() != "hello world":
        raise UserError(f"{what} is empty: it reads 'hello world' as {len(ids)} tokens and cannot give it back", "restore its files")
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= vocabulary}
    added = set(getattr(tokenizer, "added_tokens_decoder", {}))
    if not set(beyond.values()) <= added:
        raise UserError(
            f"{what} has {len(tokenizer)} entries, but the model only {vocabulary}: it belongs to another model", "use the model's own"
        )
    for name in ("bos_token", "eos_token", "pad_token"):
        token = getattr(tokenizer, name)
        if token is not None and str(token) in beyond:
            raise UserError(
                f"{what} names {token} as its {name}, but the model has no row for it ({vocabulary} rows)",
                "resize the model's embeddings (resize_token_embeddings) and tune them, or name another token",
            )

"""Text classifiers that judge replies: trained here with scikit-learn, or any sequence classifier of the Hub."""

from __future__ import annotations

import io
import random
import re
import string
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import skops.io
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from emotune import scores
from emotune.errors import InputError
from emotune.params import JudgeChoice
from emotune.reward import CLEAN, MILD

Judge = Callable[[Sequence[str]], list[tuple[str, float]]]

EMBEDDED = "embedded"
RECIPES = ("words", "characters")
SALAD, NOISE = "word salad", "noise"
GIBBERISH_LABELS = (CLEAN, MILD, SALAD, NOISE)
HUB_BATCH = 32
FOLDS = 3
# Share of the rarest n-grams that gibberish training pretends not to know. Measured: without it, a quarter of the
# embedded corpus' held-out texts pass for gibberish; with it, one in eight.
FORGOTTEN = 0.3


def open_judge(trained: Path, choice: JudgeChoice) -> Judge:
    """The judge of a params.yaml section: the one that the judges stage trained, or the one that is named there."""
    if choice.name == EMBEDDED:
        return load(trained)
    return load_hub(choice.name, choice.revision, choice.labels, HUB_BATCH)


def measure(judge: Judge, texts: Sequence[str], labels: Sequence[str], label_names: Sequence[str]) -> dict[str, Any]:
    """How often a judge finds the gold label: accuracy, weighted and macro F1, precision, recall and F1 per class."""
    judged = [label for label, _ in judge(texts)]
    metrics = scores.metrics_of(scores.confusion(labels, judged, label_names), None)
    return {
        **{name: float(metrics[name]) for name in ("accuracy", "weighted_f1", "macro_f1")},
        "per_class": scores.per_label(labels, judged, label_names),
    }


# Emotions. Two judges that share neither features nor learner nor rows: the one that rewards, the one that evaluates.


def train_emotion(texts: Sequence[str], labels: Sequence[str], recipe: str, seed: int) -> Pipeline:
    """Fit one of two emotion classifiers: `words` (1-2 words, logistic regression) or `characters` (3-5, linear SVM).

    Features are hashed, because a vocabulary makes a file of 100 MB that loads in seconds. Each label's score is
    calibrated by cross-validation, so a confidence is a probability under the label shares that it was trained on:
    those of `texts`, with the commonest label thinned and rare ones given more weight.
    InputError for an unknown recipe, or fewer than two labels.
    """
    if recipe == "words":
        grams: dict[str, Any] = {"ngram_range": (1, 2), "token_pattern": r"\w+|[^\w\s]"}
        learner: Any = SGDClassifier("log_loss", alpha=1e-5, random_state=seed)
        most, evenness = 3.5, 0.28
    elif recipe == "characters":
        grams = {"ngram_range": (3, 5), "analyzer": "char"}
        learner = LinearSVC(C=0.1, tol=0.01, random_state=seed)
        most, evenness = 4.0, 0.3
    else:
        raise InputError(f"unknown recipe {recipe!r} of an emotion judge; accepted: {', '.join(RECIPES)}")
    if len(set(labels)) < 2:
        raise InputError(f"an emotion judge needs texts of at least two labels, found {sorted(set(labels))}")
    rows = _thinned(labels, most, random.Random(f"{recipe} {seed}"))
    kept = [labels[row] for row in rows]
    judge = make_pipeline(
        HashingVectorizer(n_features=2**18, alternate_sign=False, norm=None, dtype=np.float32, **grams),
        TfidfTransformer(sublinear_tf=True),
        CalibratedClassifierCV(learner, cv=FOLDS, ensemble=False),
    )
    return judge.fit([texts[row] for row in rows], kept, calibratedclassifiercv__sample_weight=_weights(kept, evenness))


def _thinned(labels: Sequence[str], most: float, rng: random.Random) -> list[int]:
    """Rows to train on, in order: the commonest label at most `most` times as often as all others together.

    A label with fewer rows than folds is repeated, so that every fold knows it.
    """
    counts = Counter(labels)
    common, count = counts.most_common(1)[0]
    kept = set(rng.sample(range(count), min(count, round(most * (len(labels) - count)))))
    rows, seen = [], 0
    for row, label in enumerate(labels):
        if label != common or seen in kept:
            rows += [row] * -(-FOLDS // counts[label])
        seen += label == common
    return rows


def _weights(labels: Sequence[str], evenness: float) -> np.ndarray:
    """A weight per row, 1 on average, as (1 / its label's count) ** evenness: 0 as the data is, 1 all labels equal.

    83 % of DailyDialog is neutral and 0.2 % fear: as the data is, a judge hardly ever answers a rare emotion.
    """
    counts = Counter(labels)
    weights = np.array([counts[label] ** -evenness for label in labels])
    return weights / weights.mean()


# Gibberish: clean text, and what a bad small language model would have made of it.


def train_gibberish(texts: Sequence[str], seed: int) -> Pipeline:
    """Fit the classifier of `GIBBERISH_LABELS` on clean texts and their corruptions, half of the rows clean.

    Two thirds of the distinct texts teach it what English looks like; the rest, which that part has not seen, are
    corrupted, and looked at by a forgetful copy, since a reply may use phrases that training never saw.
    InputError for fewer than 10 distinct texts.
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 10:
        raise InputError(f"a gibberish judge needs at least 10 distinct clean texts, found {len(distinct)}")
    rng = random.Random(seed)
    rng.shuffle(distinct)
    known, unseen = distinct[: len(distinct) * 2 // 3], distinct[len(distinct) * 2 // 3 :]
    rows, labels = with_corruptions(unseen[:15_000], rng)
    fluency = Fluency().fit(known)
    scaler = StandardScaler()
    network = MLPClassifier((48,), tol=0.001, n_iter_no_change=4, random_state=seed)
    network.fit(scaler.fit_transform(fluency.forgetful(FORGOTTEN, seed).transform(rows)), labels)
    # Half of the file, and only training goes on from it.
    del network._optimizer
    return make_pipeline(fluency, scaler, network)


def with_corruptions(texts: Sequence[str], rng: random.Random) -> tuple[list[str], list[str]]:
    """Every text as it is and corrupted once, the three ways in turn: (rows, labels), twice as many as texts."""
    vocabulary = [word for text in texts for word in text.split()]
    rows, labels = [], []
    for index, text in enumerate(texts):
        label = GIBBERISH_LABELS[1 + index % 3]
        rows += [text, corrupt(text, label, rng, vocabulary)]
        labels += [CLEAN, label]
    return rows, labels


def corrupt(text: str, label: str, rng: random.Random, vocabulary: Sequence[str]) -> str:
    """What a bad language model would have said instead of `text`: never `text` itself, unless `label` is clean.

    Mild gibberish has one or a few wrong words, repeats itself or breaks off; word salad is words without grammar, or a
    loop; noise is pieces of words, characters, runs of punctuation, stray tags. `vocabulary` gives the wrong words.
    """
    if label == CLEAN:
        return text
    words = text.split() or [rng.choice(vocabulary)]
    ways = [way for way, (kind, least) in WAYS.items() if kind == label and len(words) >= least]
    while True:
        corrupted = " ".join(rng.choice(ways)(words, rng, vocabulary))
        if corrupted != " ".join(words):
            return corrupted


Words = Sequence[str]


def _repeat(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    size = rng.randint(1, min(3, len(words)))
    end = rng.randint(size, len(words))
    return [*words[:end], *list(words[end - size : end]) * rng.choice((1, 1, 2)), *words[end:]]


def _drop(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    # Short words: without "the" or "to" a sentence breaks, without an adjective it is still English.
    short = [i for i, word in enumerate(words[:-1]) if len(word) <= 4] or list(range(len(words) - 1))
    dropped = rng.sample(short, min(len(short), 1 + len(words) // 8))
    return [word for i, word in enumerate(words) if i not in dropped]


def _replace(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    wrong = rng.sample(range(len(words)), 1 + len(words) // 6)
    return [rng.choice(vocabulary) if i in wrong else word for i, word in enumerate(words)]


def _break_off(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    *kept, last = words[: rng.randint((len(words) + 1) // 2, len(words) - 1)]
    if rng.random() < 0.3:
        last = last[: rng.randint(1, len(last))]
    return [*kept, last.rstrip(".!?,;") or last]


def _shuffle(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    enough = [*words, *rng.choices(vocabulary, k=max(0, 5 - len(words)))]
    return rng.sample(enough, len(enough))


def _draw(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    return rng.choices(vocabulary, k=rng.randint(4, 16))


def _loop(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    length, loop = rng.randint(6, 16), list[str]()
    while len(loop) < length:
        start = rng.randrange(len(words))
        loop += list(words[start : start + rng.randint(1, 3)]) * rng.randint(2, 4)
    return loop


def _pieces(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    pieces = []
    for word in rng.choices([*words, *rng.choices(vocabulary, k=4)], k=rng.randint(4, 14)):
        cut = rng.randint(1, max(1, len(word) - 1))
        start, end = word[:cut], word[cut:] or word
        pieces.append(rng.choice((start, end, start + rng.choice(vocabulary)[-2:], end + start)))
    return pieces


def _characters(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    letters = string.ascii_lowercase + string.digits + "#@%&*"
    return ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(rng.randint(3, 12))]


def _punctuate(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    start = rng.randint(0, len(words))
    runs = ["".join(rng.choices(".,!?;:'\"-", k=rng.randint(3, 7))) for _ in range(rng.randint(2, 6))]
    return [*words[:start], *runs, *words[start : start + 2]]


def _tag(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    tagged = list(words)
    for _ in range(rng.randint(1, 3)):
        tagged.insert(rng.randint(0, len(tagged)), rng.choice(TAGS))
    return tagged


TAGS = ("[INST]", "[/INST]", "[EMOTION]", "[/EMOTION]", "[C_EMOTION]", "<<SYS>>", "<s>", "</s>", "<unk>", "<pad>")
# What each way makes, and of how many words at least: "Yes." with a wrong word is another clean text.
WAYS: dict[Callable[[Words, random.Random, Words], list[str]], tuple[str, int]] = {
    _repeat: (MILD, 1),
    _drop: (MILD, 4),
    _replace: (MILD, 3),
    _break_off: (MILD, 4),
    _shuffle: (SALAD, 1),
    _draw: (SALAD, 1),
    _loop: (SALAD, 1),
    _pieces: (NOISE, 1),
    _characters: (NOISE, 1),
    _punctuate: (NOISE, 1),
    _tag: (NOISE, 1),
}


class Fluency(TransformerMixin, BaseEstimator):
    """Texts -> [texts, 23] signs of bad English: unlikely words, neighbours and spellings, repetition, loose ends.

    Word order tells salad from speech, and a linear judge cannot see it in n-grams that it never met. So this is a
    language model in one array: hashed counts of 1-3 words and of 4 letters, from clean text only.
    """

    START, END, LETTERS = "\2", "\3", "\4"
    TOKEN = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]+")
    TAG = re.compile(r"\[/?\w+\]|</?\w+>|<<|>>")
    # Buckets of the hash; a bigram leans on its last word's frequency as if that had been seen PRIOR times.
    BUCKETS, PRIOR, UNSEEN = 2**18, 5.0, 0.5

    def fit(self, texts: Sequence[str], labels: Any = None) -> Fluency:
        """Count the n-grams of clean texts."""
        keys: list[int] = []
        self.words_ = 0
        for text in texts:
            words = self._words(text)
            self.words_ += len(words)
            for size in (1, 2, 3):
                keys += self._keys(words, size)
            keys += self._spellings(words)
        self.counts_ = np.bincount(keys, minlength=self.BUCKETS).astype(np.float32)
        return self

    def forgetful(self, share: float, seed: int) -> Fluency:
        """A copy that forgot what it saw n times with chance share x sqrt(PRIOR / (PRIOR + n)): rare ones first."""
        copy = Fluency()
        copy.words_ = self.words_
        chance = share * np.sqrt(self.PRIOR / (self.PRIOR + self.counts_))
        forgotten = np.random.default_rng(seed).random(self.BUCKETS) < chance
        copy.counts_ = np.where(forgotten, 0, self.counts_)
        return copy

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        """The signs of each text, [texts, 23], float64: in float32 a verdict's sixth decimal depends on its batch."""
        return np.array([self._signs(text) for text in texts], dtype=np.float64)

    def _words(self, text: str) -> list[str]:
        return [self.START, *self.TOKEN.findall(text.lower()), self.END]

    def _keys(self, parts: Sequence[str], size: int) -> list[int]:
        grams = zip(*(parts[start:] for start in range(size)), strict=False)
        # crc32, because Python's own hash of a string differs between processes.
        return [zlib.crc32(" ".join(gram).encode()) % self.BUCKETS for gram in grams]

    def _spellings(self, words: Sequence[str]) -> list[int]:
        padded = [f"<{word}>" for word in words[1:-1]]
        return self._keys(
            [f"{self.LETTERS}{word[i : i + 4]}" for word in padded for i in range(max(1, len(word) - 3))], 1
        )

    def _signs(self, text: str) -> list[float]:
        words = self._words(text)
        body, spoken = words[1:-1], [word for word in words[1:-1] if word[0].isalnum()]
        ones, twos, threes = (self.counts_[self._keys(words, size)] for size in (1, 2, 3))
        letters = self.counts_[self._spellings(words)] if body else np.zeros(1, np.float32)
        threes = threes if body else np.zeros(1, np.float32)
        likely = (ones + self.UNSEEN) / (self.words_ + self.UNSEEN * self.BUCKETS)
        rarity = -np.log(likely)
        # Surprise at each word after the one before it; `clash`: how much more surprising than anywhere else.
        surprise = -np.log((twos + self.PRIOR * likely[1:]) / (ones[:-1] + self.PRIOR))
        clash = surprise - rarity[1:]
        # One wrong word surprises twice: after its neighbour, and before the next.
        surprise_twice, clash_twice = (v[1:] + v[:-1] if body else v for v in (surprise, clash))
        phrases = [(at, size) for size in (2, 3, 4) for at in range(len(body) - 2 * size + 1)]
        return [
            np.log1p(len(body)),
            surprise.mean(),
            surprise.max(),
            surprise[-1],
            surprise_twice.max(),
            clash.mean(),
            clash_twice.max(),
            (surprise > 8).sum(),
            (twos == 0).mean(),
            (twos == 0).sum(),
            (threes == 0).mean(),
            (threes == 0).sum(),
            rarity.mean(),
            rarity.max(),
            (ones == 0).sum(),
            np.log1p(letters).mean(),
            (letters == 0).mean(),
            1 - len(set(spoken)) / max(1, len(spoken)),
            sum(word == following for word, following in pairwise(body)),
            sum(body[at : at + size] == body[at + size : at + 2 * size] for at, size in phrases),
            len(self.TAG.findall(text)),
            max((len(word) for word in body if not word[0].isalnum()), default=0),
            sum(len(word) == 1 for word in spoken) / max(1, len(spoken)),
        ]


# Files: skops, never pickle, and the same bytes for the same estimator.

# What skops does not know by itself and we do: calibration's plain holders of numbers, and our own language model.
TRUSTED = [
    "emotune.judges.Fluency",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
]


def save(estimator: Pipeline, path: Path) -> None:
    """Write an estimator so that equal estimators are equal bytes.

    skops names objects by their address in memory and dates its zip; here they are numbered in order of appearance, and
    the date is the zip format's first.
    """
    for step in estimator:
        # The address of a vectorizer's stop words, by which scikit-learn knows that it has looked at them.
        vars(step).pop("_stop_words_id", None)
    numbers: dict[str, str] = {}
    with ZipFile(io.BytesIO(skops.io.dumps(estimator))) as found, ZipFile(path, "w") as written:
        schema = re.sub(
            r'(?<="__id__": )\d+|(?<="file": ")\d+(?=\.npy")',
            lambda address: numbers.setdefault(address[0], str(len(numbers))),
            found.read("schema.json").decode(),
        )
        written.writestr(ZipInfo("schema.json"), schema, ZIP_DEFLATED)
        arrays = {int(numbers[Path(name).stem]): name for name in found.namelist() if name.endswith(".npy")}
        for number, name in sorted(arrays.items()):
            written.writestr(ZipInfo(f"{number}.npy"), found.read(name), ZIP_DEFLATED)


def load(path: Path) -> Judge:
    """The judge of a file that `save` wrote: texts -> [(label, probability of that label)], in order.

    InputError where there is no such file or its types are not those of our judges.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; the judges stage writes it")
    unknown = sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED))
    if unknown:
        raise InputError(f"{path}: holds {', '.join(unknown)}; accepted beside scikit-learn: {', '.join(TRUSTED)}")
    return verdicts_of(skops.io.load(path, trusted=TRUSTED))


def verdicts_of(estimator: Pipeline) -> Judge:
    """The judge that a fitted scikit-learn classifier of texts is; where labels tie, the first in order."""

    def judge(texts: Sequence[str]) -> list[tuple[str, float]]:
        if not texts:
            return []
        return _best(estimator.predict_proba(list(texts)), [str(label) for label in estimator.classes_])

    return judge


def _best(probabilities: np.ndarray, labels: Sequence[str]) -> list[tuple[str, float]]:
    """[texts, labels] -> the most probable label of each text, with its probability."""
    return [(labels[best], float(row[best])) for row, best in zip(probabilities, probabilities.argmax(1), strict=True)]


def load_hub(name: str, revision: str | None, label_map: Mapping[str, str] | None, batch_size: int) -> Judge:
    """A transformers sequence classifier as a judge: a Hub name at a commit, or a local folder at its content's hash.

    `label_map` turns all of the model's labels into ours; labels that become one are added up. None keeps them.
    InputError where the pin is missing or wrong, or a label is not mapped.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from emotune import models

    folder = models.located(name)
    if folder.is_dir():
        if revision != (found := models.folder_revision(folder)):
            raise InputError(f"judge {name}: revision must be the hash of its content, {found}; got {revision}")
        where: dict[str, Any] = {"pretrained_model_name_or_path": str(folder)}
    elif re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        where = {"pretrained_model_name_or_path": name, "revision": revision}
    else:
        raise InputError(
            f"judge {name}: no such folder, and as a Hub name it needs its 40-digit commit, not a branch, as revision; "
            f"got {revision}"
        )
    tokenizer = models.opened(AutoTokenizer, "judge", where)
    model = models.opened(AutoModelForSequenceClassification, "judge", where, dtype=torch.float32)
    model = model.to(models.device()).eval()
    own = [model.config.id2label[index] for index in range(model.config.num_labels)]
    ours, share = _mapped(own, label_map, name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
    # RoBERTa numbers its positions from behind the padding token.
    longest -= model.config.pad_token_id + 1 if "roberta" in model.config.model_type else 0

    @torch.inference_mode()
    def judge(texts: Sequence[str]) -> list[tuple[str, float]]:
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        verdicts: dict[int, tuple[str, float]] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer(
                [texts[row] for row in rows], padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            batch.pop("token_type_ids", None)
            probabilities = model(**batch.to(model.device)).logits.double().softmax(-1).cpu().numpy()
            verdicts |= zip(rows, _best(probabilities @ share, ours), strict=True)
        return [verdicts[row] for row in range(len(texts))]

    return judge


def _mapped(own: Sequence[str], label_map: Mapping[str, str] | None, name: str) -> tuple[list[str], np.ndarray]:
    """Our labels in order of first use, and [own, ours]: 1 where a model's label counts for ours."""
    mapping = {label: label for label in own} if label_map is None else label_map
    for label in own:
        if label not in mapping:
            raise InputError(
                f"judge {name}: label {label!r} of the model is not mapped; mapped are {', '.join(mapping)}"
            )
    for label in mapping:
        if label not in own:
            raise InputError(f"judge {name}: labels maps {label!r}; the model's labels are {', '.join(own)}")
    ours = list(dict.fromkeys(mapping[label] for label in own))
    return ours, np.array([[mapping[label] == our for our in ours] for label in own], dtype=np.float64)

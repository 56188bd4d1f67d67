"""A judge as a file: by skops, never pickle, the same bytes for the same estimator, and of trusted types alone."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np

from emotune.core import records
from emotune.core.errors import InputError
from emotune.judges.hub import load_hub
from emotune.judges.light import skops
from emotune.judges.matcher import Matcher
from emotune.judges.params import EmotionChoice, JudgeChoice
from emotune.judges.verdicts import Classifier

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

# What our judges are made of, beside plain numbers, texts and arrays.
TRUSTED = [
    "emotune.judges.matcher.Matcher",
    "emotune.judges.gibberish.Fluency",
    "sklearn.calibration.CalibratedClassifierCV",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.feature_extraction.text.HashingVectorizer",
    "sklearn.feature_extraction.text.TfidfTransformer",
    "sklearn.linear_model._stochastic_gradient.SGDClassifier",
    "sklearn.neural_network._multilayer_perceptron.MLPClassifier",
    "sklearn.pipeline.Pipeline",
    "sklearn.preprocessing._data.StandardScaler",
    "sklearn.preprocessing._label.LabelBinarizer",
    "sklearn.svm._classes.LinearSVC",
]


def open_judge(trained: Path, choice: JudgeChoice) -> Classifier:
    """The judge of a params.yaml section: the one that the judges stage trained, or the one that is named there.

    One of emotions is divided by the prior that the stage wrote beside it, as far as the section or the stage says.
    """
    judge = undivided(trained, choice)
    if not isinstance(choice, EmotionChoice) or choice.tau == 0:
        return judge
    beside = records.read_json(_prior(trained))
    return replace(judge, prior=beside["prior"], tau=beside["tau"] if choice.tau is None else choice.tau)


def undivided(trained: Path, choice: JudgeChoice) -> Classifier:
    """The same judge with tau 0, whatever the section says."""
    if choice.is_embedded:
        return load(trained)
    return load_hub(choice.name, choice.revision, choice.labels)


def save_prior(judge: Classifier, trained: Path) -> None:
    """Write what `open_judge` divides a judge by, beside where its file is or would be."""
    records.write_json(_prior(trained), {"prior": judge.prior, "tau": judge.tau})


def _prior(trained: Path) -> Path:
    return trained.with_suffix(".prior.json")


def save(estimator: Pipeline, path: Path) -> None:
    """Write an estimator so that equal estimators are equal bytes.

    skops names objects by their address in memory and dates its zip; here they are numbered in order of appearance, and
    the date is the zip format's first.
    """
    for step in estimator:
        # The address of a vectorizer's stop words, by which scikit-learn knows that it has looked at them.
        vars(step).pop("_stop_words_id", None)
    numbers: dict[str, str] = {}
    with ZipFile(io.BytesIO(skops.io.dumps(estimator))) as dumped, ZipFile(path, "w") as file:
        schema = re.sub(
            r'(?<="__id__": )\d+|(?<="file": ")\d+(?=\.npy")',
            lambda address: numbers.setdefault(address[0], str(len(numbers))),
            dumped.read("schema.json").decode(),
        )
        file.writestr(ZipInfo("schema.json"), schema, ZIP_DEFLATED)
        arrays = {int(numbers[Path(name).stem]): name for name in dumped.namelist() if name.endswith(".npy")}
        for number, name in sorted(arrays.items()):
            file.writestr(ZipInfo(f"{number}.npy"), dumped.read(name), ZIP_DEFLATED)


def load(path: Path) -> Classifier:
    """The judge of a file that `save` wrote."""
    return verdicts_of(_opened(path))


def load_matcher(path: Path) -> Matcher:
    """The matcher of a file that `save` wrote."""
    [matcher] = _opened(path)
    return matcher


def _opened(path: Path) -> Pipeline:
    """InputError where there is no such file or its types are not those of our judges."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; the judges stage writes it")
    unknown = sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED))
    if unknown:
        raise InputError(f"{path}: holds {', '.join(unknown)}; accepted: {', '.join(TRUSTED)}")
    return skops.io.load(path, trusted=TRUSTED)


def verdicts_of(estimator: Pipeline) -> Classifier:
    """The judge that a fitted scikit-learn classifier of texts is."""
    labels = [str(label) for label in estimator.classes_]
    none = np.zeros((0, len(labels)))
    return Classifier(labels, lambda texts: estimator.predict_proba(list(texts)) if texts else none)

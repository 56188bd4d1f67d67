"""A judge as a file: by skops, never pickle, the same bytes for the same estimator, and of trusted types alone."""

import io
import re
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import sklearn.utils
from sklearn.pipeline import Pipeline

from emotune.core.errors import InputError
from emotune.judges.hub import load_hub
from emotune.judges.params import JudgeChoice
from emotune.judges.verdicts import Judge, most_probable

# What our judges are made of, beside plain numbers, texts and arrays.
TRUSTED = [
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
# By itself skops trusts every estimator of scikit-learn, and imports them all to list them: more trust and more time
# than our judges need.
_all_estimators, sklearn.utils.all_estimators = sklearn.utils.all_estimators, list
import skops.io  # noqa: E402

sklearn.utils.all_estimators = _all_estimators


def open_judge(trained: Path, choice: JudgeChoice) -> Judge:
    """The judge of a params.yaml section: the one that the judges stage trained, or the one that is named there."""
    if choice.is_embedded:
        return load(trained)
    return load_hub(choice.name, choice.revision, choice.labels)


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


def load(path: Path) -> Judge:
    """The judge of a file that `save` wrote: texts -> [(label, probability of that label)], in order.

    InputError where there is no such file or its types are not those of our judges.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; the judges stage writes it")
    unknown = sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED))
    if unknown:
        raise InputError(f"{path}: holds {', '.join(unknown)}; accepted: {', '.join(TRUSTED)}")
    return verdicts_of(skops.io.load(path, trusted=TRUSTED))


def verdicts_of(estimator: Pipeline) -> Judge:
    """The judge that a fitted scikit-learn classifier of texts is; where labels tie, the first in order."""
    labels = [str(label) for label in estimator.classes_]
    return lambda texts: most_probable(estimator.predict_proba(list(texts)), labels) if texts else []

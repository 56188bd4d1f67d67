"""skops, and scikit-learn below it, without what no judge needs: most of the time that they take to be imported."""

import sys

# Where pandas is installed scikit-learn imports it, so as to know a data frame when it sees one.
_is_hidden = sys.modules.setdefault("pandas", None) is None  # type: ignore[arg-type]
import sklearn.utils  # noqa: E402

if _is_hidden:
    del sys.modules["pandas"]
# By itself skops trusts every estimator of scikit-learn, and imports them all to list them: more trust, too.
_all_estimators, sklearn.utils.all_estimators = sklearn.utils.all_estimators, list
import skops.io  # noqa: E402

sklearn.utils.all_estimators = _all_estimators

__all__ = ["skops"]

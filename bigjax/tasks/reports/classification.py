"""How well classes are told apart: accuracy, precision, recall, F1, log loss and the confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def report(probs_NC: np.ndarray, true_N: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Return what scikit-learn measures, as JSON-able values.

    `accuracy` (which is also micro-averaged precision, recall and F1 where every row has one class), `log_loss` in
    nats, `macro` averages over the classes, `classes` with the `precision`, `recall`, `f1` and `rows` of each, and
    `confusion`, rows of the true and columns of the predicted class. A class that is never predicted has precision 0.
    """
    from sklearn import metrics

    labels, predicted_N = list(range(len(classes))), probs_NC.argmax(axis=-1)
    names = ("precision", "recall", "f1")
    # Typed Any: the annotations of scikit-learn hide that the number 0 is accepted, and that arrays come back.
    scored: Any = metrics.precision_recall_fscore_support
    exact_NC = probs_NC / probs_NC.sum(axis=-1, keepdims=True, dtype=np.float64)
    each = scored(true_N, predicted_N, labels=labels, zero_division=0)
    macro = scored(true_N, predicted_N, labels=labels, zero_division=0, average="macro")
    return {
        "rows": len(true_N),
        "accuracy": float(metrics.accuracy_score(true_N, predicted_N)),
        "log_loss": float(metrics.log_loss(true_N, exact_NC, labels=labels)),
        "macro": {name: float(value) for name, value in zip(names, macro[:3], strict=True)},
        "classes": {
            label: {**{name: float(row[i]) for name, row in zip(names, each[:3], strict=True)}, "rows": int(each[3][i])}
            for i, label in enumerate(classes)
        },
        "confusion": metrics.confusion_matrix(true_N, predicted_N, labels=labels).tolist(),
    }


def table(measured: dict[str, Any]) -> str:
    """Return the report as text: a line for each class, with the row of the confusion matrix."""
    classes = measured["classes"]
    width = max(map(len, [*classes, "predicted as", "macro"]))
    columns = [max(len(name), 6) for name in classes]
    lines = [f"{'':{width}}  precision  recall      F1    rows   {'predicted as'}"]
    heads = "  ".join(f"{name:>{size}}" for name, size in zip(classes, columns, strict=True))
    lines.append(f"{'':{width}}  {'':33}   {heads}")
    for (name, one), row in zip(classes.items(), measured["confusion"], strict=True):
        counts = "  ".join(f"{count:>{size}}" for count, size in zip(row, columns, strict=True))
        figures = f"{one['precision']:9.3f}  {one['recall']:6.3f}  {one['f1']:6.3f}  {one['rows']:6d}"
        lines.append(f"{name:{width}}  {figures}   {counts}")
    macro = measured["macro"]
    lines.append(f"{'macro':{width}}  {macro['precision']:9.3f}  {macro['recall']:6.3f}  {macro['f1']:6.3f}")
    return "\n".join(lines)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits `(..., classes)`."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)

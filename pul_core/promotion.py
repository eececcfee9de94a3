"""What speaks against replacing a model by another one: lower scores on the same data, or a degenerate reliable set."""

from collections.abc import Mapping
from typing import Any

from pul_core.stopping import EXPLANATIONS

SCORES = {"rank_1": "rank-1", "mAP": "mAP"}


def reasons_against(candidate: Mapping[str, Any], champion: Mapping[str, Any], *, same_data: bool) -> list[str]:
    """Return what speaks against the candidate, in words; an empty list if nothing does.

    Without labels nothing can be said about accuracy: the sizes of reliable sets do not rank models. Only a degenerate reliable set, where
    that of the champion is not, counts against the candidate (see `pul_core.stopping.degeneration`).

    Args:
        candidate: ``rank_1`` and ``mAP`` as fractions, or None without labels, and ``degenerate``, how its reliable set is, or None.
        champion: the same of the model in use.
        same_data: whether the scores are on the same images.

    Example:
        >>> better, worse = {"rank_1": 0.7, "mAP": 0.6}, {"rank_1": 0.7, "mAP": 0.5}
        >>> reasons_against(better, worse, same_data=True), reasons_against(worse, better, same_data=True)
        ([], ['mAP is 50.0 %, that of the champion 60.0 %'])
        >>> reasons_against(worse, better, same_data=False)
        ['the scores of the two models are on different images']
        >>> [text.partition(":")[0] for text in reasons_against({"degenerate": "stable_everything"}, {}, same_data=True)]
        ['its reliable set is degenerate']
    """
    against = []
    scored = [all(model.get(name) is not None for name in SCORES) for model in (candidate, champion)]
    if scored == [False, True]:
        against.append("it has no scores, but the champion has")
    elif all(scored) and not same_data:
        against.append("the scores of the two models are on different images")
    elif all(scored):
        against += [
            f"{title} is {100 * candidate[name]:.1f} %, that of the champion {100 * champion[name]:.1f} %"
            for name, title in SCORES.items()
            if candidate[name] < champion[name]
        ]
    if (degenerate := candidate.get("degenerate")) and not champion.get("degenerate"):
        against.append(f"its reliable set is {EXPLANATIONS[degenerate]}")
    return against

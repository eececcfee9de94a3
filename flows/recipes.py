"""Recipes are data: the values a run uses where the user left a parameter empty. Sources: docs/method.md, table by table."""

from typing import Any, Literal

from flows.config import Clustering, FineTuning, Model, Plan, Section, Selection, Stopping, Training

RecipeName = Literal["paper", "modern", "released-code"]

# The trainer of `paper` is ours: the usual re-ID baseline (Adam, 3.5e-4) without its metric-learning parts, chosen on drawn people (seeds
# 10 to 14) and held-out source people (docs/log.md).
OUR_TRAINING = Training(
    epochs=10,
    batch_size=32,
    images_per_class=0,
    optimiser="adam",
    backbone_learning_rate=0.00035,
    classifier_learning_rate=0.00035,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    schedule="one_cycle",
    batch_norm=True,
    dropout=0.0,
    label_smoothing=0.1,
    flip_probability=0.5,
    crop_share=0.08,
    erase_probability=0.5,
    rotation_degrees=0,
    shift_share=0,
    colour_share=0,
)
AUTHORS_TRAINING = Training(
    epochs=40,
    batch_size=16,
    images_per_class=0,
    optimiser="sgd",
    backbone_learning_rate=0.001,
    classifier_learning_rate=0.001,
    momentum=0.9,
    nesterov=False,
    weight_decay=0,
    schedule="constant",
    batch_norm=False,
    dropout=0.5,
    label_smoothing=0,
    flip_probability=0,
    crop_share=0,
    erase_probability=0,
    rotation_degrees=20,
    shift_share=0.2,
    colour_share=0,
)

# What all images share (light, blur, a camera) weighs less in whitened features, and they are spread more evenly: 0.45 keeps a third to a
# half of the images in the first iteration (docs/log.md), where nearly all of Adam's plain ones pass the authors' 0.85.
WHITENING = {"whitening": 0.7, "shrinkage": 0.3}
# No recipe uses the margin; the share is that of Ge et al. 2020.
DENSITY = {
    "num_neighbours": 10,
    "num_averaged": 4,
    "camera_aware": True,
    "max_distance": 0.45,
    "min_samples": 2,
    "margin": 0,
    "independent_share": 0.9,
}
# What only fine-tuning has. The memory's numbers are those of Dai et al. 2021; no recipe uses it.
FINE_TUNING = {"start_from": "original", "loss": "softmax", "memory_momentum": 0.1, "temperature": 0.05}
# A longer fine-tuning learns clusters by heart. Those of k-means are often one camera's images of a person: learnt at the source's rate,
# poor ones leave a model worse than direct transfer (docs/adr/0011).
OUR_FINE_TUNING = OUR_TRAINING.model_dump() | FINE_TUNING | {"epochs": 4}
SLOWER = {"backbone_learning_rate": 0.0002, "classifier_learning_rate": 0.0002}

PAPER: dict[str, Section] = {
    "model": Model(height=256, width=128, centre_cameras=False),
    "pretraining": OUR_TRAINING,
    "clustering": Clustering(
        algorithm="kmeans", normalise=True, num_restarts=1, max_passes=100, centre_from="members", **DENSITY, **WHITENING
    ),
    "selection": Selection(min_similarity=0.45, close_to="own_centre", keep_empty_classes=False, keep_unclustered=False),
    "fine_tuning": FineTuning(**OUR_FINE_TUNING | SLOWER | {"colour_share": 0.08}),
    "stopping": Stopping(max_iterations=15, stop_when_stable=True, stability_tolerance=0.02, stability_patience=2),
}
RECIPES: dict[RecipeName, dict[str, Section]] = {
    "paper": PAPER,
    # The same loop, knowing cameras, and with clusters that are chosen by density: what they leave out is what is not reliable.
    "modern": PAPER
    | {
        "model": Model(height=256, width=128, centre_cameras=True),
        "clustering": PAPER["clustering"].model_copy(update={"algorithm": "dbscan", "whitening": 0}),
        "selection": Selection(min_similarity=-1, close_to="own_centre", keep_empty_classes=False, keep_unclustered=False),
        "fine_tuning": FineTuning(**OUR_FINE_TUNING),
        "stopping": Stopping(max_iterations=6, stop_when_stable=True, stability_tolerance=0.02, stability_patience=2),
    },
    "released-code": {
        "model": Model(height=224, width=224, centre_cameras=False),
        "pretraining": AUTHORS_TRAINING,
        "clustering": Clustering(
            algorithm="kmeans",
            normalise=False,
            num_restarts=10,
            max_passes=300,
            centre_from="all",
            **DENSITY,
            **WHITENING | {"whitening": 0},
        ),
        "selection": Selection(min_similarity=0.85, close_to="any_centre", keep_empty_classes=True, keep_unclustered=False),
        "fine_tuning": FineTuning(**AUTHORS_TRAINING.model_dump() | FINE_TUNING | {"epochs": 20}),
        "stopping": Stopping(max_iterations=25, stop_when_stable=False, stability_tolerance=0, stability_patience=1),
    },
}


def resolve(recipe: RecipeName, sections: dict[str, Section], *, source: str | list[str] | None, **rest: Any) -> Plan:
    """Fill what the user left empty with the recipe's values.

    Example:
        >>> from flows.config import FewLabels, Machine
        >>> given = {name: type(section)() for name, section in RECIPES["paper"].items()} | {"selection": Selection(min_similarity=0.7)}
        >>> rest = dict(machine=Machine(), few_labels=FewLabels(), target="crops", original_model=None, seed=0)
        >>> plan = resolve("paper", given, source=None, **rest)
        >>> plan.selection.min_similarity, plan.selection.close_to, plan.model.height
        (0.7, 'own_centre', 256)
    """
    filled: dict[str, Any] = {}
    for name, default in RECIPES[recipe].items():
        given = {key: value for key, value in sections[name].model_dump().items() if value is not None}
        filled[name] = type(default).model_validate(default.model_dump() | given)
    sources = [source] if isinstance(source, str) else source or []
    return Plan(recipe=recipe, source=sources, **filled, **rest)

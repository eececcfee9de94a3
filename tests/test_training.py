"""Training by classification: it learns, it is repeatable to the byte, it goes on where it was stopped, it refuses what cannot train."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pul_core.errors import NotFiniteError
from pul_core.learning.backbone import build_backbone, normalise
from pul_core.learning.training import begin_training, learning_rate_share, train

HEAD = {
    "num_classes": 3,
    "optimiser": "sgd",
    "backbone_learning_rate": 0.005,
    "classifier_learning_rate": 0.05,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "batch_norm": True,
    "dropout": 0.0,
    "seed": 0,
}
PLAIN = {
    "epochs": 1,
    "batch_size": 4,
    "schedule": "constant",
    "label_smoothing": 0.0,
    "flip_probability": 0,
    "crop_share": 0,
    "erase_probability": 0,
    "rotation_degrees": 0,
    "shift_share": 0,
    "colour_share": 0,
    "seed": 0,
}
ALL_RANDOM = PLAIN | {
    "epochs": 4,
    "schedule": "one_cycle",
    "label_smoothing": 0.1,
    "flip_probability": 0.5,
    "crop_share": 0.1,
    "erase_probability": 0.5,
    "rotation_degrees": 20,
    "shift_share": 0.2,
    "colour_share": 0.2,
}
SLOWLY = {"resnet": True, "backbone_learning_rate": 0.0005, "classifier_learning_rate": 0.001}
FROZEN = {"backbone_learning_rate": 0.0, "classifier_learning_rate": 0.0}
ROWS, CLASSES = np.arange(12), np.repeat(np.arange(3), 4)


@pytest.fixture(scope="module")
def images():
    """Twelve images of three people: red, green and blue, in noise."""
    pixels = np.random.default_rng(0).integers(0, 120, (12, 64, 32, 3))
    pixels[np.arange(12), :, :, CLASSES] += 130
    return pixels.astype(np.uint8)


class Tiny(nn.Sequential):
    """Two convolutions and an average pool, for what does not depend on the architecture."""

    num_features = 16

    def __init__(self, seed):
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(3, 8, 5, stride=4),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


def begin(*, backbone_seed=0, resnet=False, **options):
    backbone = build_backbone("resnet10t", seed=backbone_seed) if resnet else Tiny(backbone_seed)
    return begin_training(backbone, **HEAD | options)


def weights(training):
    tensors = training.backbone.state_dict() | {f"classifier.{name}": t for name, t in training.classifier.state_dict().items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def differing(left, right):
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


def trained(images, head=None, **options):
    training = begin(**head or {})
    history = list(train(training, images, ROWS, CLASSES, **PLAIN | options))
    return weights(training), history


def test_it_learns_what_can_be_told_apart(images):
    _, history = trained(images, SLOWLY, epochs=6, batch_size=6)
    assert history[0].loss > 2 * history[-1].loss
    assert history[-1].accuracy > 0.9 > history[0].accuracy
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4, 5, 6]


def test_it_learns_the_classes_of_its_rows(images):
    """Rows in another order and only some of them, one twice: what is learnt is the class that stands beside each."""
    rows = np.array([9, 1, 5, 0, 8, 5, 4, 11])
    training = begin(**SLOWLY)
    history = list(train(training, images, rows, CLASSES[rows], **PLAIN | {"epochs": 8}))
    assert history[-1].images == 8
    training.backbone.eval(), training.classifier.eval()
    with torch.no_grad():
        logits = training.classifier(training.backbone(normalise(torch.from_numpy(images).permute(0, 3, 1, 2))))
    assert logits.argmax(1).tolist() == CLASSES.tolist()


def test_the_first_loss_is_that_of_guessing(images):
    """With a learning rate of nothing every step sees the new classifier, whose outputs are all but 0: the loss is ln 3."""
    _, (epoch,) = trained(images, FROZEN)
    assert epoch.loss == pytest.approx(math.log(3), abs=0.01)


@pytest.mark.parametrize("batch_size", [5, 7, 12])
def test_statistics_are_means_over_images_however_they_are_batched(images, batch_size):
    """A trunk that is the mean colour has no BatchNorm, so an image's loss does not depend on its batch."""
    colour = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    colour.num_features = 3
    training = begin_training(colour, **HEAD | FROZEN | {"batch_norm": False})
    with torch.no_grad():
        training.classifier[2].weight.copy_(torch.tensor([[2.0, -1, 0], [0, 3, 1], [1, 0, -2]]))
        logits = training.classifier(colour(normalise(torch.from_numpy(images).permute(0, 3, 1, 2)))).double().numpy()
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(12), CLASSES]
    (epoch,) = train(training, images, ROWS, CLASSES, **PLAIN | {"batch_size": batch_size})
    assert np.ptp(losses) > 0.1
    assert epoch.loss == pytest.approx(losses.mean(), rel=1e-4)
    assert epoch.accuracy == pytest.approx((logits.argmax(1) == CLASSES).mean())
    assert epoch.images == 12


def test_the_same_seed_is_the_same_bytes_and_another_one_is_not(images):
    options = ALL_RANDOM | {"epochs": 1}
    first, history = trained(images, {"dropout": 0.5}, **options)
    again, same_history = trained(images, {"dropout": 0.5}, **options)
    assert differing(first, again) == []
    assert history == same_history
    other, _ = trained(images, {"dropout": 0.5}, **options | {"seed": 1})
    assert "classifier.2.weight" in differing(first, other)


@pytest.mark.parametrize(
    "part",
    [
        {"flip_probability": 0.5},
        {"crop_share": 0.1},
        {"erase_probability": 0.5},
        {"rotation_degrees": 20},
        {"shift_share": 0.2},
        {"colour_share": 0.2},
        {"label_smoothing": 0.1},
        {"schedule": "one_cycle"},
    ],
)
def test_every_option_has_an_effect(images, part):
    plain, _ = trained(images)
    assert differing(plain, trained(images, **part)[0])


@pytest.mark.parametrize("part", [{"dropout": 0.5}, {"batch_norm": False}, {"weight_decay": 0.0}, {"nesterov": False}, {"seed": 1}])
def test_every_option_of_the_head_has_an_effect(images, part):
    plain, _ = trained(images)
    other, _ = trained(images, part)
    assert any(not torch.equal(plain[name], other[name]) for name in plain if name in other)


def test_dropout_follows_from_the_seed_whatever_was_drawn_before(images):
    torch.manual_seed(1)
    first, _ = trained(images, {"dropout": 0.5})
    torch.manual_seed(2)
    torch.rand(7)
    assert differing(first, trained(images, {"dropout": 0.5})[0]) == []


def test_epochs_differ_in_what_is_dropped(images):
    training, masks = begin(**FROZEN, dropout=0.5), []
    training.classifier[1].register_forward_hook(lambda _module, _inputs, output: masks.append((output == 0).numpy(force=True)))
    list(train(training, images, ROWS, CLASSES, **PLAIN | {"epochs": 3, "batch_size": 12}))
    assert len({mask.tobytes() for mask in masks}) == 3
    assert all(0.3 < mask.mean() < 0.7 for mask in masks)


def test_epochs_differ_in_order_and_augmentation(images):
    """With a learning rate of nothing the same epoch twice would have the same loss."""
    _, history = trained(images, FROZEN, epochs=3, flip_probability=0.5, crop_share=0.2)
    assert len({epoch.loss for epoch in history}) == 3


def fresh(**options):
    """A training whose initial weights are not those of the one to be restored."""
    return begin(backbone_seed=77, **options | {"seed": 78})


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_training_that_was_stopped_ends_like_one_that_was_not(images, through_a_file, optimiser):
    options = {"resnet": not through_a_file, "dropout": 0.5, "optimiser": optimiser}
    whole = begin(**options)
    history = list(train(whole, images, ROWS, CLASSES, **ALL_RANDOM))

    stopped = begin(**options)
    epochs = train(stopped, images, ROWS, CLASSES, **ALL_RANDOM)
    first = [next(epochs), next(epochs)]
    state = stopped.state()
    if through_a_file:
        torch.save(state, file := io.BytesIO())
        state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)

    restored = fresh(**options)
    restored.restore(state)
    assert restored.epochs_done == 2
    rest = list(train(restored, images, ROWS, CLASSES, **ALL_RANDOM))
    assert [epoch.epoch for epoch in rest] == [3, 4]
    assert first + rest == history
    assert differing(weights(whole), weights(restored)) == []
    assert restored.epochs_done == whole.epochs_done == 4


def test_a_training_can_go_back_to_a_state_it_returned(images):
    training = begin()
    epochs = train(training, images, ROWS, CLASSES, **PLAIN | {"epochs": 2})
    next(epochs)
    state, then = training.state(), weights(training)
    next(epochs)
    assert differing(weights(training), then)
    training.restore(state)
    assert training.epochs_done == 1
    assert differing(weights(training), then) == []


def test_two_trainings_restored_from_one_state_do_not_touch_each_other(images):
    begun = begin()
    list(train(begun, images, ROWS, CLASSES, **PLAIN))
    state = begun.state()
    ends = []
    for _ in range(2):
        training = fresh()
        training.restore(state)
        list(train(training, images, ROWS, CLASSES, **PLAIN | {"epochs": 2}))
        ends.append(weights(training))
    assert differing(*ends) == []


def test_a_finished_training_does_nothing_more(images):
    training = begin()
    list(train(training, images, ROWS, CLASSES, **PLAIN))
    before = weights(training)
    assert list(train(training, images, ROWS, CLASSES, **PLAIN)) == []
    assert differing(before, weights(training)) == []


@pytest.mark.parametrize(
    ("m", "batch_size", "sizes"),
    [(9, 4, [4, 5]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (12, 4, [4, 4, 4]), (5, 2, [2, 3]), (3, 8, [3]), (3, 2, [3]), (2, 2, [2])],
)
def test_a_last_batch_of_one_image_joins_the_one_before(images, m, batch_size, sizes):
    seen = []
    (epoch,) = train(begin(), images, ROWS[:m], CLASSES[:m], **PLAIN | {"batch_size": batch_size}, on_batch=seen.append)
    assert seen == sizes
    assert epoch.steps == len(sizes)
    assert epoch.images == m


def test_every_image_is_seen_once_an_epoch(images):
    """Each image carries its row in a corner; what reaches the backbone is compared with the rows asked for."""
    marked = images.copy()
    marked[:, 0, 0] = (ROWS * 20)[:, None]
    training, seen = begin(), []

    def note(_module, inputs):
        seen.extend((inputs[0][:, 0, 0, 0] * 0.229 + 0.485).mul(255 / 20).round().int().tolist())

    training.backbone.register_forward_pre_hook(note)
    list(train(training, marked, ROWS[2:], CLASSES[2:], **PLAIN | {"epochs": 2}))
    first, second = seen[:10], seen[10:]
    assert sorted(first) == sorted(second) == list(range(2, 12))
    assert first != second


@pytest.mark.parametrize("batch_norm", [True, False])
def test_every_layer_trains(images, batch_norm):
    """Two steps, for a residual block begins as the identity; no decay, which would move what has no gradient."""
    training = begin(resnet=True, batch_norm=batch_norm, weight_decay=0.0, backbone_learning_rate=1.0, classifier_learning_rate=1.0)
    modules = {"backbone": training.backbone, "classifier": training.classifier}
    before = {(part, name): p.detach().clone() for part, module in modules.items() for name, p in module.named_parameters()}
    list(train(training, images, ROWS, CLASSES, **PLAIN))
    still = [key for key, old in before.items() if torch.equal(old, dict(modules[key[0]].named_parameters())[key[1]])]
    assert still == []


def test_backbone_and_classifier_have_their_own_learning_rates(images):
    options = {"weight_decay": 0.0}
    before = weights(begin())
    parameters = {name for name, _ in begin().backbone.named_parameters()}
    for rates, moved_part in (((0.0, 0.1), "classifier"), ((0.1, 0.0), "backbone")):
        training = begin(backbone_learning_rate=rates[0], classifier_learning_rate=rates[1], **options)
        list(train(training, images, ROWS, CLASSES, **PLAIN))
        moved = differing(before, weights(training))
        assert ("classifier.2.weight" in moved) == (moved_part == "classifier")
        assert bool(parameters & set(moved)) == (moved_part == "backbone")


def test_the_learning_rate_reported_is_the_schedules(images):
    _, history = trained(images, epochs=4, schedule="one_cycle")
    expected = [0.005 * learning_rate_share("one_cycle", 3 * epoch - 1, 12) for epoch in (1, 2, 3, 4)]
    assert [epoch.learning_rate for epoch in history] == pytest.approx(expected)


def test_one_step_equals_pytorchs_own_by_hand(images):
    """Forward, softmax cross-entropy and Nesterov SGD with decay, written out for the first step of a training."""
    training, twin = begin(resnet=True), begin(resnet=True)
    list(train(training, images[:6], np.arange(6), CLASSES[:6], **PLAIN | {"batch_size": 6, "label_smoothing": 0.1}))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (torch.from_numpy(images[:6]).permute(0, 3, 1, 2) / 255 - mean) / std
    twin.backbone.train(), twin.classifier.train()
    logits = twin.classifier(twin.backbone(pixels))
    target = torch.full((6, 3), 0.1 / 3).scatter_(1, torch.from_numpy(CLASSES[:6])[:, None], 0.9 + 0.1 / 3)
    (-(target * logits.log_softmax(1)).sum(1).mean()).backward()
    for part, rate in (("backbone", 0.005), ("classifier", 0.05)):
        for ours, theirs in zip(getattr(training, part).parameters(), getattr(twin, part).parameters(), strict=True):
            gradient = theirs.grad + 5e-4 * theirs.detach()
            torch.testing.assert_close(ours.detach(), theirs.detach() - rate * (gradient + 0.9 * gradient), atol=2e-5, rtol=1e-3)


def test_images_may_be_memory_mapped_read_only(images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    before = mapped.tobytes()
    assert differing(trained(mapped, **ALL_RANDOM | {"epochs": 1})[0], trained(images, **ALL_RANDOM | {"epochs": 1})[0]) == []
    assert mapped.tobytes() == before


def test_bfloat16_trains_too(images):
    exact, _ = trained(images)
    rough, (epoch,) = trained(images, bf16=True)
    assert math.isfinite(epoch.loss)
    assert differing(exact, rough)
    assert all(tensor.dtype != torch.bfloat16 for tensor in rough.values())


@pytest.mark.fault("NaN in the loss", "`the loss is nan in epoch ..., step ...: lower the learning rate`")
def test_a_damaged_model_stops_at_once_and_says_where(images):
    training = begin()
    with torch.no_grad():
        next(training.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=r"loss is nan in epoch 1, step 1"):
        list(train(training, images, ROWS, CLASSES, **PLAIN))
    assert training.epochs_done == 0


@pytest.mark.fault("gradients that explode", "`the loss is ...: lower the learning rate`")
def test_a_learning_rate_that_explodes_stops_and_says_where(images):
    training = begin(backbone_learning_rate=1e30, classifier_learning_rate=1e30, batch_norm=False)
    seen = []
    with pytest.raises(NotFiniteError, match=r"in epoch \d+, step \d+: lower the learning rate") as error:
        list(train(training, images, ROWS, CLASSES, **PLAIN | {"epochs": 5}, on_batch=seen.append))
    epoch, step = training.epochs_done + 1, len(seen) % 3 + 1
    assert f"epoch {epoch}, step {step}:" in str(error.value)


@pytest.mark.fault(
    "a last step that blows the weights up after a loss that was fine", "`the weights are no longer finite ...: lower the learning rate`"
)
def test_weights_that_explode_in_the_last_step_are_no_model(images):
    training = begin(backbone_learning_rate=1e3, classifier_learning_rate=1e3, weight_decay=1e38)  # 1 - 1e41 overflows
    with pytest.raises(NotFiniteError, match="weights are no longer finite after epoch 1: lower the learning rate"):
        list(train(training, images, ROWS, CLASSES, **PLAIN | {"epochs": 1, "batch_size": len(ROWS)}))
    assert training.epochs_done == 0


@pytest.mark.parametrize("m", [0, 1])
def test_fewer_than_two_images_cannot_train(images, m):
    with pytest.raises(ValueError, match=f"at least 2 images, not {m}"):
        list(train(begin(), images, ROWS[:m], CLASSES[:m], **PLAIN))


def test_rows_and_classes_have_to_match(images):
    with pytest.raises(ValueError, match="12 images but 11 classes"):
        list(train(begin(), images, ROWS, CLASSES[:-1], **PLAIN))


@pytest.mark.parametrize("num_classes", [0, 1])
def test_one_class_is_nothing_to_tell_apart(num_classes):
    with pytest.raises(ValueError, match=f"at least 2 classes, not {num_classes}"):
        begin(num_classes=num_classes)


def test_the_classifier_begins_as_the_authors_does():
    training = begin(num_classes=3000, dropout=0.5)
    norm, dropout, linear = training.classifier
    assert isinstance(norm, nn.BatchNorm1d)
    assert dropout.p == 0.5
    assert linear.weight.shape == (3000, 16)
    assert float(linear.weight.detach().std()) == pytest.approx(0.001, rel=0.02)
    assert abs(float(linear.weight.detach().mean())) < 2e-5  # 4 standard errors
    assert not linear.bias.any()


def test_the_classifier_follows_from_its_seed():
    first, again, other = (begin(seed=seed).classifier[2].weight for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_batch_norm_the_feature_goes_straight_in():
    training = begin(batch_norm=False)
    training.classifier.eval()
    features = torch.randn(4, 16)
    torch.testing.assert_close(training.classifier(features), features @ training.classifier[2].weight.T)


@given(st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_one_cycle_rises_once_and_falls_once(steps):
    shares = [learning_rate_share("one_cycle", step, steps) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares)
    assert shares[0] == pytest.approx(1 / 25)
    peak = int(np.argmax(shares))
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    if steps >= 20:
        assert abs(peak - 0.3 * steps) <= 1
        assert max(shares) > 0.9
        assert shares[-1] < 0.05


def test_a_linear_warm_up_and_half_a_cosine():
    shares = np.array([learning_rate_share("one_cycle", step, 100) for step in range(100)])
    np.testing.assert_allclose(np.diff(shares[:31]), 0.96 / 30)
    np.testing.assert_allclose(shares[30:], np.cos(np.linspace(0, np.pi / 2, 71)[:-1]) ** 2, atol=1e-12)


@given(st.integers(0, 999), st.integers(1, 1000))
@settings(max_examples=20, deadline=None)
def test_constant_is_constant(step, steps):
    assert learning_rate_share("constant", step, steps) == 1

"""Training by classification: it learns, is reproducible to the byte, resumes from a checkpoint, and refuses invalid input."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pul_core.errors import NotFiniteError, UserError
from pul_core.learning.augmentation import colour_jitter, erase, flip, pad_crop, rotate_shift
from pul_core.learning.backbone import IMAGENET_MEAN, IMAGENET_STD, build_backbone, normalise
from pul_core.learning.batches import epoch_batches
from pul_core.learning.training import begin_training, learning_rate_share, train
from pul_core.seeds import derive_seed
from pul_core.settings import Augmentation, Optimisation, Training

SGD = Optimisation(optimiser="sgd", backbone_learning_rate=0.005, classifier_learning_rate=0.05, schedule="constant")
PLAIN = Training(
    epochs=1,
    batch_size=4,
    label_smoothing=0,
    optimisation=SGD,
    augmentation=Augmentation(flip_probability=0, crop_share=0, erase_probability=0),
)
ALL_RANDOM = replace(
    PLAIN,
    epochs=4,
    label_smoothing=0.1,
    optimisation=replace(SGD, schedule="one_cycle"),
    augmentation=Augmentation(
        flip_probability=0.5, crop_share=0.1, erase_probability=0.5, rotation_degrees=20, shift_share=0.2, colour_share=0.2
    ),
)
ROWS, CLASSES = np.arange(12), np.repeat(np.arange(3), 4)


@pytest.fixture(scope="module")
def images():
    """Twelve images of three people: red, green and blue, in noise."""
    pixels = np.random.default_rng(0).integers(0, 120, (12, 64, 32, 3))
    pixels[np.arange(12), :, :, CLASSES] += 130
    return pixels.astype(np.uint8)


class Tiny(nn.Sequential):
    """Two convolutions and an average pool, for tests that do not depend on the architecture."""

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


def with_optimisation(settings=PLAIN, **options):
    return replace(settings, optimisation=replace(settings.optimisation, **options))


def with_rates(backbone, classifier, settings=PLAIN):
    return with_optimisation(settings, backbone_learning_rate=backbone, classifier_learning_rate=classifier)


SLOW = with_rates(0.0005, 0.001)  # for a ResNet
FROZEN = with_rates(0.0, 0.0)


def begin(settings=PLAIN, *, backbone_seed=0, resnet=False, num_classes=3, seed=0, dtype="float32"):
    backbone = build_backbone("test_resnet", seed=backbone_seed) if resnet else Tiny(backbone_seed)
    return begin_training(backbone, settings, num_classes=num_classes, seed=seed, dtype=dtype)


def weights(training):
    tensors = training.backbone.state_dict() | {f"classifier.{name}": t for name, t in training.classifier.state_dict().items()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def differing(left, right):
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


def run(training, images, settings=PLAIN, *, seed=0, **options):
    return list(train(training, images, ROWS, CLASSES, settings, seed=seed, **options))


def trained(images, settings=PLAIN, *, resnet=False, dtype="float32", **options):
    training = begin(settings, resnet=resnet, dtype=dtype)
    history = run(training, images, settings, **options)
    return weights(training), history


def as_input(images):
    return normalise(torch.from_numpy(images).permute(0, 3, 1, 2))


class MeanColour(nn.Sequential):
    """A linear map of an image's mean colour: without BatchNorm, so an image's feature does not depend on its batch."""

    num_features = 3

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_training_separates_three_colours(images):
    _, history = trained(images, replace(SLOW, epochs=6, batch_size=6), resnet=True)
    assert history[0].loss > 2 * history[-1].loss
    assert history[-1].accuracy > 0.9 > history[0].accuracy
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4, 5, 6]


def test_classes_belong_to_the_rows(images):
    """The rows are a part of the images in another order, with one row twice."""
    rows, settings = np.array([9, 1, 5, 0, 8, 5, 4, 11]), replace(SLOW, epochs=8)
    training = begin(settings, resnet=True)
    history = list(train(training, images, rows, CLASSES[rows], settings, seed=0))
    assert history[-1].images == 8
    training.backbone.eval(), training.classifier.eval()
    with torch.no_grad():
        logits = training.classifier(training.backbone(as_input(images)))
    assert logits.argmax(1).tolist() == CLASSES.tolist()


def test_the_first_loss_is_that_of_random_guessing(images):
    """With learning rate 0 every step uses the new classifier, whose outputs are almost 0: the loss is ln 3."""
    _, (epoch,) = trained(images, FROZEN)
    assert epoch.loss == pytest.approx(math.log(3), abs=0.01)


@pytest.mark.parametrize("batch_size", [5, 7, 12])
def test_statistics_are_means_over_images_for_any_batch_size(images, batch_size):
    settings = replace(FROZEN, batch_norm=False, batch_size=batch_size)
    training = begin_training(MeanColour(), settings, num_classes=3, seed=0)
    with torch.no_grad():
        training.classifier[2].weight.copy_(torch.tensor([[2.0, -1, 0], [0, 3, 1], [1, 0, -2]]))
        logits = training.classifier(training.backbone(as_input(images))).double().numpy()
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(12), CLASSES]
    (epoch,) = run(training, images, settings)
    assert np.ptp(losses) > 0.1
    assert epoch.loss == pytest.approx(losses.mean(), rel=1e-4)
    assert epoch.accuracy == pytest.approx((logits.argmax(1) == CLASSES).mean())
    assert epoch.images == 12


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(images):
    settings = replace(ALL_RANDOM, epochs=1, dropout=0.5)
    first, history = trained(images, settings)
    again, same_history = trained(images, settings)
    assert differing(first, again) == []
    assert history == same_history
    other, _ = trained(images, settings, seed=1)
    assert "classifier.2.weight" in differing(first, other)


@pytest.mark.parametrize(
    ("augmentation", "apply"),
    [
        ({"flip_probability": 0.5}, lambda pixels, generator: flip(pixels, 0.5, generator)),
        ({"crop_share": 0.1}, lambda pixels, generator: pad_crop(pixels, 0.1, generator)),
        ({"erase_probability": 0.5}, lambda pixels, generator: erase(pixels, 0.5, generator)),
        ({"rotation_degrees": 20}, lambda pixels, generator: rotate_shift(pixels, 20, 0, generator)),
        ({"shift_share": 0.2}, lambda pixels, generator: rotate_shift(pixels, 0, 0.2, generator)),
        ({"colour_share": 0.2}, lambda pixels, generator: colour_jitter(pixels, 0.2, generator)),
    ],
)
def test_each_augmentation_changes_what_the_backbone_gets(images, augmentation, apply):
    """Two epochs, batch by batch, compared with the augmentation's own function (whose oracles are in test_augmentation)."""
    settings = replace(PLAIN, epochs=2, augmentation=replace(PLAIN.augmentation, **augmentation))
    training, inputs, expected, changes = begin(settings), [], [], []
    training.backbone.register_forward_pre_hook(lambda _module, arguments: inputs.append(arguments[0].clone()))
    run(training, images, settings)
    for epoch in (1, 2):
        generator = torch.Generator().manual_seed(derive_seed(0, epoch))
        for batch in epoch_batches(CLASSES, batch_size=4, images_per_class=0, generator=generator):
            pixels = torch.from_numpy(images[batch]).permute(0, 3, 1, 2)
            expected.append(normalise(augmented := apply(pixels, generator)))
            changes.append(not torch.equal(augmented, pixels))
    assert len(inputs) == len(expected) == 6
    assert all(torch.equal(one, two) for one, two in zip(inputs, expected, strict=True))
    assert any(changes)


def trained_in_numpy(images, training, settings):
    """Train the linear model `MeanColour` -> classifier on full batches in float64: the losses, and the weights (backbone, classifier)."""
    pixels = images.reshape(12, -1, 3).mean(1) / 255
    inputs = np.c_[(pixels - IMAGENET_MEAN) / IMAGENET_STD, np.ones(12)]  # (12, 4), the last column for the bias
    layers = training.backbone[0], training.classifier[2]
    matrices = [np.c_[layer.weight.detach().numpy().reshape(3, 3), layer.bias.detach().numpy()].astype(float) for layer in layers]
    target = np.full((12, 3), settings.label_smoothing / 3)
    target[np.arange(12), CLASSES] += 1 - settings.label_smoothing
    first, second, losses = [0.0, 0.0], [0.0, 0.0], []
    optimisation = settings.optimisation
    for step in range(settings.epochs):
        features = np.c_[inputs @ matrices[0].T, np.ones(12)]
        powers = np.exp(features @ matrices[1].T)
        probabilities = powers / powers.sum(1, keepdims=True)
        losses.append(-(target * np.log(probabilities)).sum(1).mean())
        error = (probabilities - target) / 12
        gradients = [(error @ matrices[1][:, :3]).T @ inputs, error.T @ features]
        share = learning_rate_share(optimisation.schedule, step, settings.epochs)
        for layer, rate in enumerate((optimisation.backbone_learning_rate, optimisation.classifier_learning_rate)):
            gradient = gradients[layer] + optimisation.weight_decay * matrices[layer]
            if optimisation.optimiser == "adam":
                first[layer] = 0.9 * first[layer] + 0.1 * gradient
                second[layer] = 0.999 * second[layer] + 0.001 * gradient**2
                change = first[layer] / (1 - 0.9 ** (step + 1)) / (np.sqrt(second[layer] / (1 - 0.999 ** (step + 1))) + 1e-8)
            else:
                first[layer] = optimisation.momentum * first[layer] + gradient
                change = gradient + optimisation.momentum * first[layer] if optimisation.nesterov else first[layer]
            matrices[layer] = matrices[layer] - share * rate * change
    return losses, matrices


LINEAR = with_rates(0.02, 0.03, replace(PLAIN, epochs=4, batch_size=12, batch_norm=False))
ADAM = with_optimisation(LINEAR, optimiser="adam")


@pytest.mark.parametrize(
    ("settings", "without"),
    [
        (LINEAR, FROZEN),
        (replace(LINEAR, label_smoothing=0.2), LINEAR),
        (with_optimisation(LINEAR, momentum=0.5), LINEAR),
        (with_optimisation(LINEAR, nesterov=False), LINEAR),
        (with_optimisation(LINEAR, weight_decay=0.1), LINEAR),
        (with_optimisation(LINEAR, schedule="one_cycle"), LINEAR),
        (with_optimisation(LINEAR, backbone_learning_rate=0.1), LINEAR),
        (with_optimisation(LINEAR, classifier_learning_rate=0.1), LINEAR),
        (ADAM, LINEAR),
        (with_optimisation(ADAM, weight_decay=0.1), ADAM),
        (with_optimisation(ADAM, schedule="one_cycle"), ADAM),
    ],
)
def test_each_option_of_the_optimisation_equals_numpy(images, settings, without):
    """``without`` the option, the weights in numpy are different ones, so that the comparison detects an option that is ignored."""
    training = begin_training(MeanColour(), settings, num_classes=3, seed=0)
    expected_losses, expected = trained_in_numpy(images, training, settings)
    _, ignored = trained_in_numpy(images, training, replace(without, epochs=4))
    history = run(training, images, settings)
    layers = training.backbone[0], training.classifier[2]
    matrices = [np.c_[layer.weight.detach().numpy().reshape(3, 3), layer.bias.detach().numpy()] for layer in layers]
    np.testing.assert_allclose([epoch.loss for epoch in history], expected_losses, rtol=1e-4)
    np.testing.assert_allclose(np.c_[*matrices], np.c_[*expected], atol=1e-4)
    assert np.abs(np.c_[*ignored] - np.c_[*expected]).max() > 5e-4


@pytest.mark.parametrize("dropout", [0.0, 0.25, 0.75])
def test_dropout_drops_its_share_and_scales_the_rest(images, dropout):
    settings = replace(FROZEN, dropout=dropout, epochs=8)
    training, shares = begin(settings), []

    def compare(_module, arguments, output):
        dropped = output == 0
        torch.testing.assert_close(output, torch.where(dropped, 0, arguments[0] / (1 - dropout)))
        shares.append(float(dropped[arguments[0] != 0].float().mean()))

    training.classifier[1].register_forward_hook(compare)
    run(training, images, settings)
    assert np.mean(shares) == pytest.approx(dropout, abs=0.05 if dropout else 0)  # 4 standard deviations of 1,536 draws


def test_batch_norm_standardises_the_features_of_a_batch(images):
    for batch_norm in (True, False):
        settings = replace(FROZEN, batch_norm=batch_norm)
        training, pairs = begin(settings), []
        training.backbone.register_forward_hook(lambda _module, _arguments, output, pairs=pairs: pairs.append([output]))
        training.classifier[2].register_forward_pre_hook(lambda _module, arguments, pairs=pairs: pairs[-1].append(arguments[0]))
        run(training, images, settings)
        assert len(pairs) == 3
        for features, classified in pairs:
            standardised = (features - features.mean(0)) / torch.sqrt(features.var(0, correction=0) + 1e-5)
            torch.testing.assert_close(classified, standardised if batch_norm else features, atol=1e-4, rtol=1e-3)


def test_dropout_follows_from_the_seed_whatever_was_drawn_before(images):
    settings = replace(PLAIN, dropout=0.5)
    torch.manual_seed(1)
    first, _ = trained(images, settings)
    torch.manual_seed(2)
    torch.rand(7)
    assert differing(first, trained(images, settings)[0]) == []


def test_epochs_differ_in_what_is_dropped(images):
    settings = replace(FROZEN, dropout=0.5, epochs=3, batch_size=12)
    training, masks = begin(settings), []
    training.classifier[1].register_forward_hook(lambda _module, _inputs, output: masks.append((output == 0).numpy(force=True)))
    run(training, images, settings)
    assert len({mask.tobytes() for mask in masks}) == 3
    assert all(0.3 < mask.mean() < 0.7 for mask in masks)


def test_epochs_differ_in_order_and_augmentation(images):
    """With learning rate 0, repeating the same epoch would give the same loss."""
    _, history = trained(images, replace(FROZEN, epochs=3, augmentation=Augmentation(erase_probability=0, crop_share=0.2)))
    assert len({epoch.loss for epoch in history}) == 3


def begin_differently(settings, **options):
    """Begin a training whose initial weights differ from those of `begin`."""
    return begin(settings, backbone_seed=77, seed=78, **options)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_resumed_training_ends_with_the_same_bytes(images, through_a_file, optimiser):
    settings = with_optimisation(replace(ALL_RANDOM, dropout=0.5), optimiser=optimiser)
    whole = begin(settings, resnet=not through_a_file)
    history = run(whole, images, settings)

    stopped = begin(settings, resnet=not through_a_file)
    epochs = train(stopped, images, ROWS, CLASSES, settings, seed=0)
    first = [next(epochs), next(epochs)]
    state = stopped.state_dict()
    if through_a_file:
        torch.save(state, file := io.BytesIO())
        state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)

    resumed = begin_differently(settings, resnet=not through_a_file)
    resumed.load_state_dict(state)
    assert resumed.epochs_done == 2
    rest = run(resumed, images, settings)
    assert [epoch.epoch for epoch in rest] == [3, 4]
    assert first + rest == history
    assert differing(weights(whole), weights(resumed)) == []
    assert resumed.epochs_done == whole.epochs_done == 4


def test_a_training_can_return_to_an_earlier_state(images):
    training = begin()
    epochs = train(training, images, ROWS, CLASSES, replace(PLAIN, epochs=2), seed=0)
    next(epochs)
    state, earlier = training.state_dict(), weights(training)
    next(epochs)
    assert differing(weights(training), earlier)
    training.load_state_dict(state)
    assert training.epochs_done == 1
    assert differing(weights(training), earlier) == []


def test_trainings_resumed_from_one_state_do_not_share_tensors(images):
    begun = begin()
    run(begun, images)
    state = begun.state_dict()
    ends = []
    for _ in range(2):
        training = begin_differently(PLAIN)
        training.load_state_dict(state)
        run(training, images, replace(PLAIN, epochs=2))
        ends.append(weights(training))
    assert differing(*ends) == []


def test_a_finished_training_does_nothing_more(images):
    training = begin()
    run(training, images)
    before = weights(training)
    assert run(training, images) == []
    assert differing(before, weights(training)) == []


@pytest.mark.parametrize(
    ("m", "batch_size", "sizes"),
    [(9, 4, [4, 5]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (12, 4, [4, 4, 4]), (5, 2, [2, 3]), (3, 8, [3]), (3, 2, [3]), (2, 2, [2])],
)
def test_a_last_batch_of_one_image_is_merged_into_the_one_before(images, m, batch_size, sizes):
    batches = []
    settings = replace(PLAIN, batch_size=batch_size)
    (epoch,) = train(begin(), images, ROWS[:m], CLASSES[:m], settings, seed=0, on_batch=batches.append)
    assert batches == sizes
    assert epoch.steps == len(sizes)
    assert epoch.images == m


def test_every_image_is_used_once_per_epoch(images):
    """The first pixel of each image encodes its row, which is decoded from the backbone's input."""
    marked = images.copy()
    marked[:, 0, 0] = (ROWS * 20)[:, None]
    training, rows = begin(), []

    def decode(_module, inputs):
        rows.extend((inputs[0][:, 0, 0, 0] * 0.229 + 0.485).mul(255 / 20).round().int().tolist())

    training.backbone.register_forward_pre_hook(decode)
    list(train(training, marked, ROWS[2:], CLASSES[2:], replace(PLAIN, epochs=2), seed=0))
    first, second = rows[:10], rows[10:]
    assert sorted(first) == sorted(second) == list(range(2, 12))
    assert first != second


@pytest.mark.parametrize("batch_norm", [True, False])
def test_every_layer_trains(images, batch_norm):
    """Several steps, because a residual block is initially the identity; no weight decay, which changes parameters without a gradient."""
    settings = with_optimisation(with_rates(1.0, 1.0, replace(PLAIN, batch_norm=batch_norm)), weight_decay=0.0)
    training = begin(settings, resnet=True)
    modules = {"backbone": training.backbone, "classifier": training.classifier}
    before = {(part, name): p.detach().clone() for part, module in modules.items() for name, p in module.named_parameters()}
    run(training, images, settings)
    unchanged = [key for key, old in before.items() if torch.equal(old, dict(modules[key[0]].named_parameters())[key[1]])]
    assert unchanged == []


def test_backbone_and_classifier_have_separate_learning_rates(images):
    before = weights(begin())
    parameters = {name for name, _ in begin().backbone.named_parameters()}
    for rates, trained_part in (((0.0, 0.1), "classifier"), ((0.1, 0.0), "backbone")):
        changed = differing(before, trained(images, with_optimisation(with_rates(*rates), weight_decay=0.0))[0])
        assert ("classifier.2.weight" in changed) == (trained_part == "classifier")
        assert bool(parameters & set(changed)) == (trained_part == "backbone")


def test_the_reported_learning_rate_follows_the_schedule(images):
    _, history = trained(images, with_optimisation(replace(PLAIN, epochs=4), schedule="one_cycle"))
    expected = [0.005 * learning_rate_share("one_cycle", 3 * epoch - 1, 12) for epoch in (1, 2, 3, 4)]
    assert [epoch.learning_rate for epoch in history] == pytest.approx(expected)


def test_one_step_of_a_resnet_equals_autograd_by_hand(images):
    """Forward pass, softmax cross-entropy and Nesterov SGD with weight decay, for the first step of a training."""
    settings = replace(PLAIN, batch_size=6, label_smoothing=0.1)
    training, twin = begin(resnet=True), begin(resnet=True)
    list(train(training, images[:6], np.arange(6), CLASSES[:6], settings, seed=0))
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
    settings = replace(ALL_RANDOM, epochs=1)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    before = mapped.tobytes()
    assert differing(trained(mapped, settings)[0], trained(images, settings)[0]) == []
    assert mapped.tobytes() == before


def set_scale(training, scale, **options):
    """Set the scale of the loss of a float16 training; the initial one, 65,536, is too large for the first steps of these tests."""
    if training.dtype == "float16":
        training.scaler.load_state_dict(training.scaler.state_dict() | {"scale": scale} | options)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_training_in_16_bits_is_close_and_keeps_the_weights_in_float32(images, dtype):
    exact, _ = trained(images)
    training = begin(dtype=dtype)
    set_scale(training, 2.0**10)
    (epoch,) = run(training, images)
    approximate = weights(training)
    assert math.isfinite(epoch.loss)
    assert differing(exact, approximate)
    for name, tensor in approximate.items():
        assert tensor.dtype == exact[name].dtype
        torch.testing.assert_close(tensor, exact[name], atol=0.02, rtol=0.02)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_float16_scales_the_loss_and_skips_a_step_whose_gradients_overflow(images, optimiser, monkeypatch):
    """With a scale near the largest float32, the gradients of the first step are infinite: the weights stay, and the scale is halved.

    Memory that torch leaves undefined is filled with NaN, to detect an optimiser whose state is undefined after a skipped step.
    """
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **options: torch.full_like(tensor, float("nan"), **options))
    settings = with_optimisation(replace(PLAIN, batch_size=12), optimiser=optimiser)
    training = begin(settings, dtype="float16")
    set_scale(training, 2.0**127)
    before = {name: parameter.detach().clone() for name, parameter in training.backbone.named_parameters()}
    run(training, images, settings)
    assert training.scaler.get_scale() == 2.0**126
    assert all(torch.equal(parameter, before[name]) for name, parameter in training.backbone.named_parameters())
    set_scale(training, 2.0**10)
    run(training, images, replace(settings, epochs=2))
    after = dict(training.backbone.named_parameters())
    assert all(parameter.isfinite().all() and not torch.equal(parameter, before[name]) for name, parameter in after.items())


def test_a_resumed_float16_training_continues_with_the_scale_of_the_loss(images):
    """The scale grows after every step here, so a training that resumed with the initial one would end with other bytes."""
    settings = replace(PLAIN, epochs=3)

    def begin_scaled():
        training = begin(settings, dtype="float16")
        set_scale(training, 3.0, growth_interval=1)
        return training

    whole, stopped, resumed = begin_scaled(), begin_scaled(), begin(settings, dtype="float16")
    run(whole, images, settings)
    next(train(stopped, images, ROWS, CLASSES, settings, seed=0))
    torch.save(stopped.state_dict(), file := io.BytesIO())
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    run(resumed, images, settings)
    assert whole.scaler.state_dict() == resumed.scaler.state_dict()
    assert whole.scaler.get_scale() == 3.0 * 2**9
    assert differing(weights(whole), weights(resumed)) == []


@pytest.mark.fault("NaN in the loss", "`the loss is nan in epoch ..., step ... (steps ... to ... were checked): lower the learning rate`")
def test_a_damaged_model_stops_at_once_and_says_where(images):
    training = begin()
    with torch.no_grad():
        next(training.backbone.parameters()).fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=r"loss is nan in epoch 1, step 1 \(steps 1 to 3 were checked\): lower the learning rate"):
        run(training, images)
    assert training.epochs_done == 0


@pytest.mark.fault("gradients that explode", "`the loss is ...: lower the learning rate`")
def test_a_learning_rate_that_explodes_stops_and_says_where(images):
    """The first step whose loss is not finite is named, although the losses of an epoch's steps are read together."""
    settings = with_rates(1e30, 1e30, replace(PLAIN, batch_norm=False, epochs=5))
    training, finite = begin(settings), []
    training.classifier[2].register_forward_hook(lambda _module, _inputs, logits: finite.append(bool(logits.isfinite().all())))
    with pytest.raises(NotFiniteError, match=r"in epoch \d+, step \d+ \(steps 1 to 3 were checked\): lower the learning rate") as error:
        run(training, images, settings)
    epoch, step = divmod(finite.index(False), 3)
    assert f"epoch {epoch + 1}, step {step + 1} " in str(error.value)
    assert training.epochs_done == epoch


@pytest.mark.parametrize(("bad_step", "checked"), [(1, "1 to 2"), (2, "1 to 2"), (3, "3 to 4"), (5, "5 to 5")])
def test_losses_are_checked_every_so_many_steps_and_at_the_end_of_an_epoch(images, monkeypatch, bad_step, checked):
    monkeypatch.setattr("pul_core.learning.training.CHECK_INTERVAL", 2)
    settings = replace(FROZEN, batch_size=2, batch_norm=False)
    training, steps = begin(settings), []

    def spoil(_module, _inputs, logits):
        steps.append(logits)
        return logits * float("nan") if len(steps) == bad_step else logits

    training.classifier[2].register_forward_hook(spoil)
    message = rf"loss is nan in epoch 1, step {bad_step} \(steps {checked} were checked\): lower the learning rate"
    with pytest.raises(NotFiniteError, match=message):
        list(train(training, images, ROWS[:10], CLASSES[:10], settings, seed=0))
    assert len(steps) == int(checked[-1])


@pytest.mark.fault(
    "a last step that blows the weights up after a loss that was fine", "`the weights are no longer finite ...: lower the learning rate`"
)
def test_weights_that_explode_in_the_last_step_are_no_model(images):
    settings = with_optimisation(with_rates(1e3, 1e3, replace(PLAIN, batch_size=len(ROWS))), weight_decay=1e38)  # 1 - 1e41 overflows
    training = begin(settings)
    with pytest.raises(NotFiniteError, match="weights are no longer finite after epoch 1: lower the learning rate"):
        run(training, images, settings)
    assert training.epochs_done == 0


@pytest.mark.parametrize("m", [0, 1])
def test_fewer_than_two_images_are_refused(images, m):
    with pytest.raises(UserError, match=f"at least 2 images, got {m}"):
        list(train(begin(), images, ROWS[:m], CLASSES[:m], PLAIN, seed=0))


def test_rows_and_classes_have_to_match(images):
    with pytest.raises(ValueError, match="12 rows but 11 classes"):
        list(train(begin(), images, ROWS, CLASSES[:-1], PLAIN, seed=0))


@pytest.mark.parametrize("num_classes", [0, 1])
def test_fewer_than_two_classes_are_refused(num_classes):
    with pytest.raises(UserError, match=f"at least 2 classes, got {num_classes}"):
        begin(num_classes=num_classes)


def test_the_classifier_is_initialised_like_the_authors():
    training = begin(replace(PLAIN, dropout=0.5), num_classes=3000)
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


def test_without_batch_norm_the_classifier_gets_the_plain_feature():
    training = begin(replace(PLAIN, batch_norm=False))
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


def test_one_cycle_is_a_linear_warm_up_and_half_a_cosine():
    shares = np.array([learning_rate_share("one_cycle", step, 100) for step in range(100)])
    np.testing.assert_allclose(np.diff(shares[:31]), 0.96 / 30)
    np.testing.assert_allclose(shares[30:], np.cos(np.linspace(0, np.pi / 2, 71)[:-1]) ** 2, atol=1e-12)


@given(st.integers(0, 999), st.integers(1, 1000))
@settings(max_examples=20, deadline=None)
def test_constant_is_constant(step, steps):
    assert learning_rate_share("constant", step, steps) == 1

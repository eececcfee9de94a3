"""The memories, held against loops in numpy: how they begin, what they say of features, how they follow them, how they go on."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pul_core.learning.backbone import normalise
from pul_core.learning.batches import epoch_batches
from pul_core.learning.extraction import extract_features
from pul_core.learning.memory import ClusterMemory, ImageMemory, class_means, update_memory
from pul_core.learning.training import begin_training, train
from pul_core.seeds import derive_seed

HEAD = {
    "num_classes": 3,
    "optimiser": "sgd",
    "backbone_learning_rate": 0.01,
    "classifier_learning_rate": 0.01,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "batch_norm": False,
    "dropout": 0.0,
    "loss": "cluster_memory",
    "memory_momentum": 0.3,
    "temperature": 0.2,
    "seed": 0,
}
PLAIN = {
    "epochs": 1,
    "batch_size": 4,
    "images_per_class": 0,
    "schedule": "constant",
    "label_smoothing": 0.0,
    "flip_probability": 0,
    "crop_share": 0,
    "erase_probability": 0,
    "rotation_degrees": 0,
    "shift_share": 0,
    "colour_share": 0,
    "seed": 5,
}
FROZEN = {"backbone_learning_rate": 0.0, "weight_decay": 0.0}
ROWS, CLASSES = np.arange(12), np.array([0, 1, 2, 0, 1, 2, 0, 1, 0, 0, 0, 1])


def unit(x):
    return x / np.linalg.norm(x)


def slow_means(features, classes, k):
    means = np.zeros((k, features.shape[1]))
    for number in set(classes.tolist()):
        means[number] = unit(np.mean([unit(f) for f in features[classes == number]], axis=0))
    return means


def slow_update(memory, features, classes, momentum):
    memory = memory.copy()
    for f, c in zip(features, classes, strict=True):
        memory[c] = unit(momentum * memory[c] + (1 - momentum) * unit(f))
    return memory


def slow_losses(memory, features, classes, temperature):
    cosines = np.array([[unit(f) @ vector for vector in memory] for f in features])
    powers = np.exp(cosines / temperature)
    return -np.log(powers[np.arange(len(classes)), classes] / powers.sum(1)), cosines


def drawn(seed, n, k, d=8):
    """Features around one direction, so that no average of them is near zero, and classes."""
    rng = np.random.default_rng(seed)
    return 1 + rng.normal(0, 0.8, (n, d)) * rng.uniform(0.5, 3, (n, 1)), rng.integers(0, k, n)


def tensors(features, classes):
    return torch.from_numpy(features).float(), torch.from_numpy(classes)


class Colour(nn.Sequential):
    """A trunk without BatchNorm: an image has the same feature in training and in evaluation."""

    num_features = 6

    def __init__(self, seed=0, *, norm=False):
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6) if norm else nn.ReLU(), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )


@pytest.fixture(scope="module")
def images():
    """Twelve images of three people: red, green and blue, in noise."""
    pixels = np.random.default_rng(0).integers(0, 120, (12, 32, 16, 3))
    pixels[np.arange(12), :, :, CLASSES] += 130
    return pixels.astype(np.uint8)


def features_of(backbone, images):
    return np.concatenate(list(extract_features(backbone, images))).astype(np.float64)


def state_bytes(training):
    parts = training.backbone.state_dict() | {f"classifier.{name}": t for name, t in training.classifier.state_dict().items()}
    return {name: tensor.numpy().tobytes() for name, tensor in parts.items()}


@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_it_begins_with_the_means_of_the_classes(seed, n, k):
    features, classes = drawn(seed, n, k)
    found = class_means(*tensors(features, classes), num_classes=k).numpy()
    np.testing.assert_allclose(found, slow_means(features, classes, k), atol=1e-5)


def test_a_class_without_an_image_is_zero_and_every_feature_is_as_near_to_it():
    memory = ClusterMemory(3, 4, momentum=0.1, temperature=0.05)
    memory.begin(torch.eye(4)[:2], torch.tensor([0, 2]))
    assert not memory.vectors[1].any()
    assert memory(torch.randn(5, 4))[:, 1].tolist() == [0] * 5


def test_images_that_cancel_out_leave_no_nan():
    assert class_means(torch.tensor([[1.0, 0], [-3, 0]]), torch.zeros(2, dtype=torch.int64), num_classes=2).tolist() == [[0, 0], [0, 0]]


@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 12), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_it_follows_image_after_image(seed, n, k, momentum):
    features, classes = drawn(seed, n, k)
    memory = slow_means(*drawn(seed + 1, 50, k), k) + 1e-9
    found = torch.from_numpy(memory).float()
    update_memory(found, *tensors(features, classes), momentum=momentum)
    np.testing.assert_allclose(found.numpy(), slow_update(memory, features, classes, momentum), atol=2e-5)


@given(st.integers(0, 999), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_its_vectors_stay_of_length_one_and_others_do_not_move(seed, momentum):
    features, classes = tensors(*drawn(seed, 20, 4))
    before = class_means(features, classes, num_classes=6)
    after = before.clone()
    update_memory(after, features[classes < 2], classes[classes < 2], momentum=momentum)
    present = before.any(1)
    np.testing.assert_allclose(after[present].norm(dim=1), 1, atol=1e-5)
    assert torch.equal(after[2:], before[2:])


def test_the_order_within_a_class_matters_and_between_classes_does_not():
    features, classes = tensors(*drawn(3, 8, 1))
    classes = torch.tensor([0, 1] * 4)

    def after(order):
        memory = class_means(features, classes, num_classes=2)
        update_memory(memory, features[order], classes[order], momentum=0.3)
        return memory

    alternating, sorted_by_class, other = (after(order) for order in ([*range(8)], [0, 2, 4, 6, 1, 3, 5, 7], [2, 0, 4, 6, 1, 3, 5, 7]))
    torch.testing.assert_close(alternating, sorted_by_class)
    assert not torch.allclose(sorted_by_class[0], other[0])
    torch.testing.assert_close(sorted_by_class[1], other[1])


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, [1, 0]), (0.0, [0, 1])])
def test_momentum_is_what_the_vector_keeps(momentum, expected):
    memory = torch.tensor([[1.0, 0]])
    update_memory(memory, torch.tensor([[-1.0, 0.5], [0, 9]]), torch.zeros(2, dtype=torch.int64), momentum=momentum)
    assert memory.tolist() == [expected]


@given(st.integers(0, 999), st.integers(1, 20), st.floats(0.02, 2))
@settings(max_examples=40, deadline=None)
def test_its_loss_is_the_one_by_hand(seed, n, temperature):
    features, classes = drawn(seed, n, 5)
    memory = ClusterMemory(5, 8, momentum=0.1, temperature=temperature)
    memory.vectors.copy_(torch.from_numpy(slow_means(*drawn(seed + 1, 60, 5), 5)))
    given_features, wanted = tensors(features, classes)
    found = nn.functional.cross_entropy(memory(given_features), wanted, reduction="none").numpy()
    np.testing.assert_allclose(found, slow_losses(memory.vectors.numpy(), features, classes, temperature)[0], atol=1e-4, rtol=1e-3)


def test_its_gradient_reaches_the_features_and_not_the_memory():
    memory = ClusterMemory(3, 8, momentum=0.1, temperature=0.2)
    features, classes = tensors(*drawn(0, 6, 3))
    memory.begin(features, classes)
    nn.functional.cross_entropy(memory(features.requires_grad_()), classes).backward()
    assert list(memory.parameters()) == []
    assert bool(features.grad.any(1).all())
    np.testing.assert_allclose((features.grad * features.detach()).sum(1), 0, atol=1e-5)  # a cosine does not know a feature's length


def test_it_computes_in_float32_under_autocast():
    memory = ClusterMemory(3, 8, momentum=0.1, temperature=0.05)
    features, classes = tensors(*drawn(0, 6, 3))
    memory.begin(features, classes)
    with torch.autocast("cpu", torch.bfloat16):
        logits = memory(features)
    assert torch.equal(logits, memory(features))
    memory.follow(features.bfloat16(), classes)
    assert memory.vectors.dtype == torch.float32


@pytest.mark.parametrize("images_per_class", [0, 2])
def test_an_epoch_is_the_one_by_hand(images, images_per_class):
    """Nothing learns, so features stand still: what is lost, what is right and where the memory ends follow from the batches."""
    training = begin_training(backbone := Colour(), **HEAD | FROZEN)
    options = {"batch_size": 4, "images_per_class": images_per_class}
    (epoch,) = train(training, images, ROWS, CLASSES, **PLAIN | options)
    features = features_of(backbone, images)
    memory = slow_means(features, CLASSES, 3)
    losses, hits = [], []
    for batch in epoch_batches(CLASSES, **options, generator=torch.Generator().manual_seed(derive_seed(5, 1))):
        lost, cosines = slow_losses(memory, features[batch], CLASSES[batch], 0.2)
        losses.extend(lost)
        hits.extend(cosines.argmax(1) == CLASSES[batch])
        memory = slow_update(memory, features[batch], CLASSES[batch], 0.3)
    assert epoch.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert epoch.accuracy == pytest.approx(np.mean(hits))
    assert epoch.images == len(losses)
    np.testing.assert_allclose(training.classifier[2].vectors.numpy(), memory, atol=1e-5)


def test_it_begins_from_the_starting_model_as_it_scores(images):
    """Evaluation mode, and no augmentation whatever the training has; momentum 1 keeps the vectors where they began."""
    expected = slow_means(features_of(Colour(norm=True), images[2:]), CLASSES[2:], 3)
    training = begin_training(Colour(norm=True), **HEAD | {"memory_momentum": 1.0})
    augmented = {"flip_probability": 0.5, "erase_probability": 1.0, "rotation_degrees": 20, "colour_share": 0.2}
    list(train(training, images, ROWS[2:], CLASSES[2:], **PLAIN | augmented))
    np.testing.assert_allclose(training.classifier[2].vectors.numpy(), expected, atol=1e-5)


def test_behind_a_batch_norm_it_begins_there(images):
    training = begin_training(backbone := Colour(), **HEAD | FROZEN | {"batch_norm": True, "memory_momentum": 1.0})
    list(train(training, images, ROWS, CLASSES, **PLAIN))
    features = features_of(backbone, images)
    standard = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-5)
    np.testing.assert_allclose(training.classifier[2].vectors.numpy(), slow_means(standard, CLASSES, 3), atol=1e-3)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_it_learns_what_can_be_told_apart(images, batch_norm):
    training = begin_training(Colour(norm=True), **HEAD | {"optimiser": "adam", "batch_norm": batch_norm})
    before = {name: weight.detach().clone() for name, weight in training.backbone.named_parameters()}
    history = list(train(training, images, ROWS, CLASSES, **PLAIN | {"epochs": 12, "images_per_class": 2}))
    assert history[-1].loss < 0.8 * history[0].loss
    assert history[-1].accuracy > 0.9
    assert not any(torch.equal(weight, before[name]) for name, weight in training.backbone.named_parameters())


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("options", [{"images_per_class": 2}, {"images_per_class": 0, "label_smoothing": 0.1}])
def test_a_training_that_was_stopped_ends_in_the_same_bytes(images, optimiser, options):
    head = HEAD | {"optimiser": optimiser, "dropout": 0.2, "batch_norm": True}
    random = PLAIN | {"epochs": 4, "schedule": "one_cycle", "flip_probability": 0.5, "erase_probability": 0.5} | options
    whole = begin_training(Colour(norm=True), **head)
    history = list(train(whole, images, ROWS, CLASSES, **random))

    stopped = begin_training(Colour(norm=True), **head)
    epochs = train(stopped, images, ROWS, CLASSES, **random)
    first = [next(epochs), next(epochs)]
    torch.save(stopped.state(), file := io.BytesIO())
    restored = begin_training(Colour(seed=9, norm=True), **head | {"seed": 9})
    restored.restore(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert first + list(train(restored, images, ROWS, CLASSES, **random)) == history
    assert state_bytes(restored) == state_bytes(whole)
    assert "classifier.2.vectors" in state_bytes(whole)


@pytest.mark.parametrize(
    ("classes", "options"),
    [
        ([0, 0, 0, 1, 1], {}),  # two classes
        ([0, 0, 0, 0, 2], {"images_per_class": 2}),  # a class with one image, a class without one
        ([0, 1], {"batch_size": 2, "images_per_class": 1}),
        ([0, 0, 0, 0, 0], {"images_per_class": 4}),  # no other class to be told from
    ],
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_degenerate_sets_train(images, classes, options, batch_norm):
    classes = np.array(classes)
    training = begin_training(Colour(norm=True), **HEAD | {"batch_norm": batch_norm})
    for epoch in train(training, images, ROWS[: len(classes)], classes, **PLAIN | {"epochs": 2} | options):
        assert np.isfinite(epoch.loss)
    assert bool(torch.isfinite(training.classifier[2].vectors).all())


def test_a_batch_of_one_image_moves_one_vector():
    memory = ClusterMemory(2, 3, momentum=0.5, temperature=0.05)
    memory.begin(torch.eye(3)[:2], torch.tensor([0, 1]))
    memory.follow(torch.tensor([[0.0, 0, 2]]), torch.tensor([1]))
    torch.testing.assert_close(memory.vectors, torch.tensor([[1, 0, 0], [0, 0.5**0.5, 0.5**0.5]]))


def test_it_takes_images_by_row_and_a_read_only_array(images):
    classes = CLASSES.copy()
    classes.flags.writeable = False

    class ByRow:
        def __getitem__(self, rows):
            assert isinstance(rows, np.ndarray)
            return images[rows]

    one, two = (begin_training(Colour(norm=True), **HEAD) for _ in range(2))
    list(train(one, ByRow(), ROWS, classes, **PLAIN))
    list(train(two, images, ROWS, CLASSES, **PLAIN))
    assert state_bytes(one) == state_bytes(two)


def test_what_it_sees_are_normalised_pixels(images):
    """The oracle above goes through `extract_features`; here the trunk is asked directly."""
    backbone = Colour()
    with torch.no_grad():
        direct = backbone(normalise(torch.from_numpy(images).permute(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(features_of(backbone, images), direct, atol=1e-6)


def slow_image_losses(memory, owners, features, classes, temperature, k):
    """A class's logit is the mean cosine to its images' vectors; a class without an image has 0."""
    logits = np.zeros((len(features), k))
    for row, f in enumerate(features):
        for c in set(owners.tolist()):
            logits[row, c] = np.mean([unit(f) @ vector for vector in memory[owners == c]]) / temperature
    powers = np.exp(logits)
    return -np.log(powers[np.arange(len(classes)), classes] / powers.sum(1)), logits


@given(st.integers(0, 999), st.integers(1, 30), st.floats(0.05, 2))
@settings(max_examples=40, deadline=None)
def test_the_memory_of_images_says_what_it_says_image_by_image(seed, n, temperature):
    features, owners = drawn(seed, n, 5)
    memory = ImageMemory(torch.from_numpy(owners), 6, 8, momentum=0.2, temperature=temperature)
    memory.begin(torch.from_numpy(features).float(), torch.arange(n))
    np.testing.assert_allclose(memory.vectors.numpy(), [unit(f) for f in features], atol=1e-5)
    asked, wanted = drawn(seed + 1, 9, 5)
    found = memory(torch.from_numpy(asked).float())
    losses, logits = slow_image_losses(memory.vectors.numpy(), owners, asked, wanted, temperature, 6)
    np.testing.assert_allclose(found.numpy(), logits, atol=1e-4)
    np.testing.assert_allclose(nn.functional.cross_entropy(found, torch.from_numpy(wanted), reduction="none"), losses, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("images_per_class", [0, 3])
def test_an_epoch_with_a_memory_of_images_is_the_one_by_hand(images, images_per_class):
    """Rows are no positions, and one class has fewer images than a batch shows of it."""
    rows, classes = ROWS[10:1:-1], np.where(ROWS == 5, 1, CLASSES)[10:1:-1]
    training = begin_training(backbone := Colour(), classes=classes, **HEAD | FROZEN | {"loss": "image_memory"})
    options = {"batch_size": 6, "images_per_class": images_per_class}
    (epoch,) = train(training, images, rows, classes, **PLAIN | options)
    features = features_of(backbone, images)[rows]
    memory = np.array([unit(f) for f in features])
    losses = []
    for batch in epoch_batches(classes, **options, generator=torch.Generator().manual_seed(derive_seed(5, 1))):
        losses.extend(slow_image_losses(memory, classes, features[batch], classes[batch], 0.2, 3)[0])
        memory = slow_update(memory, features[batch], batch, 0.3)
    assert epoch.loss == pytest.approx(np.mean(losses), rel=1e-4)
    np.testing.assert_allclose(training.classifier[2].vectors.numpy(), memory, atol=1e-5)


def test_a_training_with_a_memory_of_images_goes_on_in_the_same_bytes(images):
    head = HEAD | {"loss": "image_memory", "dropout": 0.2, "batch_norm": True, "optimiser": "adam"}
    whole, stopped = (begin_training(Colour(norm=True), classes=CLASSES, **head) for _ in range(2))
    options = PLAIN | {"epochs": 3, "images_per_class": 2, "flip_probability": 0.5}
    history = list(train(whole, images, ROWS, CLASSES, **options))
    first = [next(train(stopped, images, ROWS, CLASSES, **options))]
    torch.save(stopped.state(), file := io.BytesIO())
    restored = begin_training(Colour(seed=9, norm=True), classes=CLASSES, **head | {"seed": 9})
    restored.restore(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert first + list(train(restored, images, ROWS, CLASSES, **options)) == history
    assert state_bytes(restored) == state_bytes(whole)


def test_a_memory_of_images_asks_for_their_classes():
    with pytest.raises(ValueError, match="class of each image"):
        begin_training(Colour(), **HEAD | {"loss": "image_memory"})


def test_a_memory_of_other_images_is_refused(images):
    training = begin_training(Colour(), classes=CLASSES, **HEAD | {"loss": "image_memory"})
    with pytest.raises(ValueError, match="other classes than train"):
        next(train(training, images, ROWS[:-1], CLASSES[:-1], **PLAIN))

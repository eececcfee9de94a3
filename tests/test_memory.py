"""The feature memories, compared with loops in numpy: initialisation, logits, updates and resumed trainings."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pul_core.learning.backbone import normalise
from pul_core.learning.batches import epoch_batches
from pul_core.learning.extraction import extract_features
from pul_core.learning.memory import ClusterMemory, ImageMemory, class_means, count_passes, update_memory
from pul_core.learning.training import begin_training, train
from pul_core.seeds import derive_seed
from pul_core.settings import Augmentation, Memory, Optimisation, Training

PLAIN = Training(
    epochs=1,
    batch_size=4,
    batch_norm=False,
    label_smoothing=0,
    optimisation=Optimisation(optimiser="sgd", backbone_learning_rate=0.01, classifier_learning_rate=0.01, schedule="constant"),
    augmentation=Augmentation(flip_probability=0, crop_share=0, erase_probability=0),
    memory=Memory(entries="clusters", momentum=0.3, temperature=0.2),
)
FROZEN = replace(PLAIN, optimisation=replace(PLAIN.optimisation, backbone_learning_rate=0, weight_decay=0))
IMAGES = replace(PLAIN.memory, entries="images")
SEED = 5
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
    """Draw features around one direction, so that no mean of them is near zero, and classes."""
    rng = np.random.default_rng(seed)
    return 1 + rng.normal(0, 0.8, (n, d)) * rng.uniform(0.5, 3, (n, 1)), rng.integers(0, k, n)


def tensors(features, classes):
    return torch.from_numpy(features).float(), torch.from_numpy(classes)


class Colour(nn.Sequential):
    """A small backbone; without BatchNorm an image has the same feature in training and in evaluation."""

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


def begin(settings=PLAIN, *, seed=0, norm=True, classes=None):
    return begin_training(Colour(seed, norm=norm), settings, num_classes=3, classes=classes, seed=seed)


def run(training, images, settings=PLAIN, rows=ROWS, classes=CLASSES):
    return list(train(training, images, rows, classes, settings, seed=SEED))


def state_bytes(training):
    parts = training.backbone.state_dict() | {f"classifier.{name}": t for name, t in training.classifier.state_dict().items()}
    return {name: tensor.numpy().tobytes() for name, tensor in parts.items()}


@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_class_means_equal_numpy(seed, n, k):
    features, classes = drawn(seed, n, k)
    means = class_means(*tensors(features, classes), num_classes=k).numpy()
    np.testing.assert_allclose(means, slow_means(features, classes, k), atol=1e-5)


def test_a_class_without_an_image_has_a_zero_vector_and_the_logit_0():
    memory = ClusterMemory(3, 4, momentum=0.1, temperature=0.05)
    memory.initialize(torch.eye(4)[:2], torch.tensor([0, 2]))
    assert not memory.vectors[1].any()
    assert memory(torch.randn(5, 4))[:, 1].tolist() == [0] * 5


def test_features_that_cancel_out_give_a_zero_vector():
    assert class_means(torch.tensor([[1.0, 0], [-3, 0]]), torch.zeros(2, dtype=torch.int64), num_classes=2).tolist() == [[0, 0], [0, 0]]


@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 12), st.floats(0, 1, allow_subnormal=False))
@settings(max_examples=100, deadline=None)
def test_update_memory_equals_numpy_image_by_image(seed, n, k, momentum):
    features, classes = drawn(seed, n, k)
    memory = slow_means(*drawn(seed + 1, 50, k), k) + 1e-9
    updated = torch.from_numpy(memory).float()
    update_memory(updated, *tensors(features, classes), momentum=momentum)
    np.testing.assert_allclose(updated.numpy(), slow_update(memory, features, classes, momentum), atol=2e-5)


@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_the_number_of_passes_is_the_largest_number_of_images_of_an_entry(seed, n, k):
    features, classes = drawn(seed, n, k)
    passes = count_passes(classes)
    assert passes == max(classes.tolist().count(number) for number in classes.tolist())
    memories = torch.from_numpy(slow_means(*drawn(seed + 1, 50, k), k) + 1e-9).float().repeat(3, 1, 1)
    for memory, number in zip(memories, (None, passes, passes + 2), strict=True):
        update_memory(memory, *tensors(features, classes), momentum=0.3, passes=number)
    assert torch.equal(memories[0], memories[1])
    assert torch.equal(memories[0], memories[2])


@given(st.integers(0, 999), st.floats(0, 1, allow_subnormal=False))
@settings(max_examples=40, deadline=None)
def test_updated_vectors_have_length_one_and_others_do_not_change(seed, momentum):
    features, classes = tensors(*drawn(seed, 20, 4))
    before = class_means(features, classes, num_classes=6)
    after = before.clone()
    update_memory(after, features[classes < 2], classes[classes < 2], momentum=momentum)
    present = before.any(1)
    np.testing.assert_allclose(after[present].norm(dim=1), 1, atol=1e-5)
    assert torch.equal(after[2:], before[2:])


def test_only_the_order_of_the_images_of_a_class_matters():
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
def test_momentum_is_the_share_of_the_old_vector(momentum, expected):
    memory = torch.tensor([[1.0, 0]])
    update_memory(memory, torch.tensor([[-1.0, 0.5], [0, 9]]), torch.zeros(2, dtype=torch.int64), momentum=momentum)
    assert memory.tolist() == [expected]


@given(st.integers(0, 999), st.integers(1, 20), st.floats(0.02, 2))
@settings(max_examples=40, deadline=None)
def test_the_loss_equals_numpy(seed, n, temperature):
    features, classes = drawn(seed, n, 5)
    memory = ClusterMemory(5, 8, momentum=0.1, temperature=temperature)
    memory.vectors.copy_(torch.from_numpy(slow_means(*drawn(seed + 1, 60, 5), 5)))
    inputs, targets = tensors(features, classes)
    losses = nn.functional.cross_entropy(memory(inputs), targets, reduction="none").numpy()
    np.testing.assert_allclose(losses, slow_losses(memory.vectors.numpy(), features, classes, temperature)[0], atol=1e-4, rtol=1e-3)


def test_the_gradient_reaches_the_features_and_not_the_memory():
    memory = ClusterMemory(3, 8, momentum=0.1, temperature=0.2)
    features, classes = tensors(*drawn(0, 6, 3))
    memory.initialize(features, classes)
    nn.functional.cross_entropy(memory(features.requires_grad_()), classes).backward()
    assert list(memory.parameters()) == []
    assert bool(features.grad.any(1).all())
    np.testing.assert_allclose((features.grad * features.detach()).sum(1), 0, atol=1e-5)  # a cosine ignores the feature's length


def test_the_memory_computes_in_float32_under_autocast():
    memory = ClusterMemory(3, 8, momentum=0.1, temperature=0.05)
    features, classes = tensors(*drawn(0, 6, 3))
    memory.initialize(features, classes)
    with torch.autocast("cpu", torch.bfloat16):
        logits = memory(features)
    assert torch.equal(logits, memory(features))
    memory.update(features.bfloat16(), classes)
    assert memory.vectors.dtype == torch.float32


@pytest.mark.parametrize("images_per_class", [0, 2])
def test_an_epoch_with_a_cluster_memory_equals_numpy(images, images_per_class):
    """The learning rate is 0, so features are constant: loss, accuracy and the final memory follow from the batches."""
    settings = replace(FROZEN, images_per_class=images_per_class)
    training = begin(settings, norm=False)
    (epoch,) = run(training, images, settings)
    features = features_of(training.backbone, images)
    memory = slow_means(features, CLASSES, 3)
    losses, hits = [], []
    generator = torch.Generator().manual_seed(derive_seed(SEED, 1))
    for batch in epoch_batches(CLASSES, batch_size=4, images_per_class=images_per_class, generator=generator):
        batch_losses, cosines = slow_losses(memory, features[batch], CLASSES[batch], 0.2)
        losses.extend(batch_losses)
        hits.extend(cosines.argmax(1) == CLASSES[batch])
        memory = slow_update(memory, features[batch], CLASSES[batch], 0.3)
    assert epoch.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert epoch.accuracy == pytest.approx(np.mean(hits))
    assert epoch.images == len(losses)
    np.testing.assert_allclose(training.classifier[2].vectors.numpy(), memory, atol=1e-5)


def test_a_memory_is_initialised_in_evaluation_mode_without_augmentation(images):
    """Momentum 1 keeps the initial vectors."""
    expected = slow_means(features_of(Colour(norm=True), images[2:]), CLASSES[2:], 3)
    augmentation = Augmentation(flip_probability=0.5, erase_probability=1, rotation_degrees=20, crop_share=0, colour_share=0.2)
    settings = replace(PLAIN, memory=replace(PLAIN.memory, momentum=1), augmentation=augmentation)
    training = begin(settings)
    run(training, images, settings, ROWS[2:], CLASSES[2:])
    np.testing.assert_allclose(training.classifier[2].vectors.numpy(), expected, atol=1e-5)


def test_with_batch_norm_a_memory_is_initialised_with_standardised_features(images):
    settings = replace(FROZEN, batch_norm=True, memory=replace(PLAIN.memory, momentum=1))
    training = begin(settings, norm=False)
    run(training, images, settings)
    features = features_of(training.backbone, images)
    standardised = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-5)
    np.testing.assert_allclose(training.classifier[2].vectors.numpy(), slow_means(standardised, CLASSES, 3), atol=1e-3)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_training_with_a_memory_separates_three_colours(images, batch_norm):
    optimisation = replace(PLAIN.optimisation, optimiser="adam")
    settings = replace(PLAIN, epochs=12, images_per_class=2, batch_norm=batch_norm, optimisation=optimisation)
    training = begin(settings)
    before = {name: weight.detach().clone() for name, weight in training.backbone.named_parameters()}
    history = run(training, images, settings)
    assert history[-1].loss < 0.8 * history[0].loss
    assert history[-1].accuracy > 0.9
    assert not any(torch.equal(weight, before[name]) for name, weight in training.backbone.named_parameters())


def check_resuming(images, settings, stop_after):
    """Assert that a training that is stopped and resumed from a file has the statistics and the bytes of one that is not."""
    whole, stopped, resumed = (begin(settings, seed=seed, classes=CLASSES) for seed in (0, 0, 9))
    history = run(whole, images, settings)
    epochs = train(stopped, images, ROWS, CLASSES, settings, seed=SEED)
    first = [next(epochs) for _ in range(stop_after)]
    torch.save(stopped.state_dict(), file := io.BytesIO())
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert first + run(resumed, images, settings) == history
    assert state_bytes(resumed) == state_bytes(whole)
    assert "classifier.2.vectors" in state_bytes(whole)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("options", [{"images_per_class": 2}, {"images_per_class": 0, "label_smoothing": 0.1}])
def test_a_resumed_training_with_a_cluster_memory_ends_with_the_same_bytes(images, optimiser, options):
    optimisation = replace(PLAIN.optimisation, optimiser=optimiser, schedule="one_cycle")
    settings = replace(PLAIN, epochs=4, dropout=0.2, batch_norm=True, optimisation=optimisation, augmentation=Augmentation(), **options)
    check_resuming(images, settings, stop_after=2)


@pytest.mark.parametrize(
    ("classes", "options"),
    [
        ([0, 0, 0, 1, 1], {}),  # two classes
        ([0, 0, 0, 0, 2], {"images_per_class": 2}),  # a class with one image, a class without one
        ([0, 1], {"batch_size": 2, "images_per_class": 1}),
        ([0, 0, 0, 0, 0], {"images_per_class": 4}),  # a single class
    ],
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_degenerate_sets_train(images, classes, options, batch_norm):
    settings = replace(PLAIN, epochs=2, batch_norm=batch_norm, **options)
    training = begin(settings)
    for epoch in run(training, images, settings, ROWS[: len(classes)], np.array(classes)):
        assert np.isfinite(epoch.loss)
    assert bool(torch.isfinite(training.classifier[2].vectors).all())


def test_a_batch_of_one_image_updates_one_vector():
    memory = ClusterMemory(2, 3, momentum=0.5, temperature=0.05)
    memory.initialize(torch.eye(3)[:2], torch.tensor([0, 1]))
    memory.update(torch.tensor([[0.0, 0, 2]]), torch.tensor([1]))
    torch.testing.assert_close(memory.vectors, torch.tensor([[1, 0, 0], [0, 0.5**0.5, 0.5**0.5]]))


def test_images_are_indexed_by_row_and_classes_may_be_read_only(images):
    classes = CLASSES.copy()
    classes.flags.writeable = False

    class ByRow:
        def __getitem__(self, rows):
            assert isinstance(rows, np.ndarray)
            return images[rows]

    one, two = begin(), begin()
    run(one, ByRow(), classes=classes)
    run(two, images)
    assert state_bytes(one) == state_bytes(two)


def test_extracted_features_are_those_of_normalised_pixels(images):
    """The oracles above use `extract_features`; this compares it with the backbone itself."""
    backbone = Colour()
    with torch.no_grad():
        direct = backbone(normalise(torch.from_numpy(images).permute(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(features_of(backbone, images), direct, atol=1e-6)


def slow_image_losses(memory, image_classes, features, classes, temperature, k):
    """The logit of a class is the mean cosine to the vectors of its images; a class without an image has 0."""
    logits = np.zeros((len(features), k))
    for row, f in enumerate(features):
        for c in set(image_classes.tolist()):
            logits[row, c] = np.mean([unit(f) @ vector for vector in memory[image_classes == c]]) / temperature
    powers = np.exp(logits)
    return -np.log(powers[np.arange(len(classes)), classes] / powers.sum(1)), logits


@given(st.integers(0, 999), st.integers(1, 30), st.floats(0.05, 2))
@settings(max_examples=40, deadline=None)
def test_the_logits_of_an_image_memory_equal_numpy(seed, n, temperature):
    features, image_classes = drawn(seed, n, 5)
    memory = ImageMemory(torch.from_numpy(image_classes), 6, 8, momentum=0.2, temperature=temperature)
    memory.initialize(torch.from_numpy(features).float(), torch.arange(n))
    np.testing.assert_allclose(memory.vectors.numpy(), [unit(f) for f in features], atol=1e-5)
    queries, classes = drawn(seed + 1, 9, 5)
    logits = memory(torch.from_numpy(queries).float())
    losses = nn.functional.cross_entropy(logits, torch.from_numpy(classes), reduction="none")
    expected_losses, expected_logits = slow_image_losses(memory.vectors.numpy(), image_classes, queries, classes, temperature, 6)
    np.testing.assert_allclose(logits.numpy(), expected_logits, atol=1e-4)
    np.testing.assert_allclose(losses, expected_losses, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("images_per_class", [0, 3])
def test_an_epoch_with_an_image_memory_equals_numpy(images, images_per_class):
    """The rows are not positions, and one class has fewer images than a batch holds of it."""
    rows, classes = ROWS[10:1:-1], np.where(ROWS == 5, 1, CLASSES)[10:1:-1]
    settings = replace(FROZEN, batch_size=6, images_per_class=images_per_class, memory=IMAGES)
    training = begin(settings, norm=False, classes=classes)
    (epoch,) = run(training, images, settings, rows, classes)
    features = features_of(training.backbone, images)[rows]
    memory = np.array([unit(f) for f in features])
    losses = []
    generator = torch.Generator().manual_seed(derive_seed(SEED, 1))
    for batch in epoch_batches(classes, batch_size=6, images_per_class=images_per_class, generator=generator):
        losses.extend(slow_image_losses(memory, classes, features[batch], classes[batch], 0.2, 3)[0])
        memory = slow_update(memory, features[batch], batch, 0.3)
    assert epoch.loss == pytest.approx(np.mean(losses), rel=1e-4)
    np.testing.assert_allclose(training.classifier[2].vectors.numpy(), memory, atol=1e-5)


def test_a_resumed_training_with_an_image_memory_ends_with_the_same_bytes(images):
    settings = replace(PLAIN, epochs=3, images_per_class=2, dropout=0.2, batch_norm=True, memory=IMAGES)
    settings = replace(
        settings,
        optimisation=replace(PLAIN.optimisation, optimiser="adam"),
        augmentation=replace(PLAIN.augmentation, flip_probability=0.5),
    )
    check_resuming(images, settings, stop_after=1)


def test_an_image_memory_needs_the_classes():
    with pytest.raises(ValueError, match="class of each image"):
        begin(replace(PLAIN, memory=IMAGES))


def test_an_image_memory_of_other_classes_is_refused(images):
    settings = replace(PLAIN, memory=IMAGES)
    with pytest.raises(ValueError, match="classes differ"):
        run(begin(settings, classes=CLASSES), images, settings, ROWS[:-1], CLASSES[:-1])

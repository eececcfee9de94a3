"""Training of the backbone and feature extraction: backbone, augmentation, batches, memories, training, extraction, precision."""

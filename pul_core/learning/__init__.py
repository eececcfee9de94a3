"""The backbone, its training (augmentation, batches, memories) and feature extraction."""

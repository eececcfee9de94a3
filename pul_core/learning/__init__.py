"""How a backbone learns: backbone, augmentation, batches, memories, training, feature extraction."""

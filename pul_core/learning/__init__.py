"""The backbone, its training (augmentation, batches, memories) and feature extraction."""

import torch

# Weight decay shrinks unused weights and the moments of Adam until they are denormal, and a CPU multiplies denormal numbers many times more
# slowly: a trained MobileNetV2 is fine-tuned at 28 images/s per core with them, and at 72 without (docs/adr/0013). Threads inherit the mode
# from the thread that starts them, so it has to be set before the first parallel operation starts the workers.
torch.set_flush_denormal(True)

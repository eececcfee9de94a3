"""The method, as plain functions of plain values: no Prefect, no MLflow, no files, no logging, no clock.

One iteration of Progressive Unsupervised Learning, in reading order: `learning.backbone` and `learning.extraction` (images to features),
`clustering` (features to clusters), `selection` (clusters to the reliable set), `learning.training` and `learning.augmentation`
(fine-tuning), `stopping` (when the loop ends). `scoring` evaluates a model: `ranks`, `evaluation`, `protocols`, `reranking`, `comparison`.

Two defaults of the process are set when the package is imported, because only then are they in force for all threads: waiting threads
sleep (here), and denormal numbers are zero (`learning`).
"""

import os

# Threads that wait for the slowest one sleep instead of spinning: where another process takes a core, training is several times as fast
# (docs/adr/0013). libgomp reads the variable when it is loaded, that is, when torch is imported; whoever sets it keeps their value.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


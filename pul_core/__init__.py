"""The method, as plain functions of plain values: no Prefect, no MLflow, no files, no logging, no clock.

One iteration of Progressive Unsupervised Learning, in reading order: `learning.backbone` and `learning.extraction` (images to features),
`clustering` (features to clusters), `selection` (clusters to the reliable set), `learning.training` and `learning.augmentation`
(fine-tuning), `stopping` (when the loop ends). `scoring` evaluates a model: `ranks`, `evaluation`, `protocols`, `reranking`, `comparison`.
"""

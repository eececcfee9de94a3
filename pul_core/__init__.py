"""The method, as plain functions of plain values: no Prefect, no MLflow, no files, no logging, no clock.

Read it in this order: `backbone` (what turns an image into a feature), `augmentation` and `training` (how it learns), `extraction`,
`clustering`, `selection`, `stopping` (one iteration of Progressive Unsupervised Learning), `ranks`, `evaluation`,
`protocols` (how it is scored), `neighbours`, `reranking` (whom images have for neighbours).
"""

"""Composition: which task runs next and when to stop. No tensors and no files; a flow reads like the method's description."""

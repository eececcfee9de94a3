"""Models outside the project: exports in formats of other runtimes, the parity gate, and features of any folder with any of the models."""

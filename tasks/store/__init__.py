"""What a run writes and reads back: artifacts, references, model files."""

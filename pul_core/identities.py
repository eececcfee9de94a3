"""Numbers that mean no person and no camera, as Market-1501 uses them; people and cameras are numbered from 1."""

DISTRACTOR_PID = 0  # scored, always wrong
JUNK_PID = -1  # left out of scoring
NO_CAMERA = -1  # unknown

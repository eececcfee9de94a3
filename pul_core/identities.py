"""Two identity numbers that name nobody, as Market-1501 has them; people are numbered from 1."""

DISTRACTOR_PID = 0  # scored, always wrong
JUNK_PID = -1  # left out of scoring

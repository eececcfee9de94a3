"""Reserved identity and camera numbers, as in Market-1501. Real identities and cameras are numbered from 1."""

DISTRACTOR_PID = 0  # a gallery image that is scored and never a correct match
JUNK_PID = -1  # a gallery image that is ignored in scoring
NO_CAMERA = -1  # the camera is unknown

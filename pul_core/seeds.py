"""Derived random seeds: every seed of a run follows from the run's seed, the iteration and the name of the step."""

import hashlib


def derive_seed(run_seed: int, *names: int | str) -> int:
    """Derive an independent seed for one use of randomness: 31 bits of the BLAKE2b digest of the run's seed and the names.

    Args:
        run_seed: the run's seed.
        names: the use of the seed, e.g. an iteration number and the name of a step.

    Returns:
        A seed in [0, 2**31).

    Example:
        >>> derive_seed(0, 1, "cluster") == derive_seed(0, 1, "cluster")
        True
        >>> derive_seed(0, 1, "cluster") == derive_seed(0, 2, "cluster")
        False
    """
    text = "/".join(str(part) for part in (run_seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) & 0x7FFF_FFFF

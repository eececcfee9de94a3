"""Every way to start the project: the `pul` command, the local servers and the Prefect deployments. Nothing is computed here."""

import flows  # noqa: F401  its process defaults, before the slow imports

"""One Prefect task a step: each reads artifacts, calls the core and writes an artifact. All side effects live here, tracking included."""

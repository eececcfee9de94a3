"""Every way to start it: the `pul` command, the local servers, the deployments. Arguments only; nothing is computed here."""

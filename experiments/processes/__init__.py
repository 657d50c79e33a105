"""Several processes of one run: how they start, find each other, and notice one that is lost."""

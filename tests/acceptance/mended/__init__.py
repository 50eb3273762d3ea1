"""An app with a bug that is mended by a new release, and two groups on each of its topics."""

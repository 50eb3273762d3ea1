"""The app whose handler the consuming benchmark runs."""

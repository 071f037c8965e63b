"""The feature dictionary as a versioned folder: written, opened, searched, exported."""

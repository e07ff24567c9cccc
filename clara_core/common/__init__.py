"""What every layer may use: errors, names that load late, suggestions, the version."""

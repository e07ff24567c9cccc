"""How the bundled model is taught plain English; see README.md."""

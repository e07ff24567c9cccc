"""Programs that make parts of this project and do not belong to it when it is installed."""

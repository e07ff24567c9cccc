"""Programs that create parts of this project. They are not part of the installed package."""

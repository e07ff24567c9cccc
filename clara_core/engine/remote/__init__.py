"""Client of a server: the calls of an engine over HTTP. Imports torch only when tensors are read."""

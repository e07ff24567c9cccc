"""An engine behind a server: the calls of `ClaraEngine` over HTTP. Imports torch only where somebody reads tensors."""

"""The LlamaIndex components against LlamaIndex itself: the conformance suite that it does not ship."""
